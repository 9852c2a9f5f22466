"""A trained run, ready to use: vectors of pictures and texts, and pictures ranked for texts."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tuwen import encoder, tasks
from tuwen.data.batch import Images
from tuwen.data.corpus import BrokenImage
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.engines import Engine
from tuwen.nn.generation import Generation
from tuwen.predictor import FIRST, Picture, Predictor, vectors
from tuwen.progress import bars, batches, track
from tuwen.run import CONFIG, PROVENANCE, SCORE, TOKENIZER, WEIGHTS, provenance, read_json
from tuwen.similarity.final import weight_named
from tuwen.systems.system import System
from tuwen.training.config import RunConfig
from tuwen.training.loaded import predictor_of

_OTHERS = ("config.json", "open_clip_config.json")  # by which weights of transformers and of open_clip are known
LONG = 20  # batches from which on a progress bar is shown


@dataclass(frozen=True)
class Embedded:
    """Unit vectors, float32 on the CPU: images [I, D], texts [T, D]; None for what was not given.

    positions: positions of the given pictures that `images` has a row for; all, unless broken ones were skipped.
    """

    images: Tensor | None
    texts: Tensor | None
    positions: list[int]


@dataclass(frozen=True)
class Ranking:
    """The pictures for one text, best first.

    images: positions in the given list. scores: of the same, float; the first `reranked` have the final score of
    matching picture and text, the rest the first stage's. first: first-stage scores of the same.
    """

    text: str
    images: list[int]
    scores: list[float]
    first: list[float]
    reranked: int


def load(run: str | os.PathLike, device: str = "cpu", engine: str = "torch", int8: bool = False) -> "Model":
    """The system of a run's folder with its newest weights and its tokenizer.

    engine: "torch", or "onnx" or "openvino" for `embed` by what `tuwen export` wrote (int8: its 8-bit copies).

    Raises:
        UserError: if the folder holds no run, no weights yet, or damaged ones.
    """
    folder, config = Path(run), usable_config(run)
    predictor = predictor_of(folder, config, device)
    other = None if engine == "torch" else Engine(folder, engine, int8)
    weight = _weight(folder, config, "imported" in provenance(folder))
    return Model(replace(predictor, engine=other, weight=weight), config)


def usable_config(run: str | os.PathLike) -> RunConfig:
    """The config of a run that has all that `load` reads.

    Raises:
        UserError: if the folder holds no run, or no weights yet.
    """
    folder = Path(run)
    if folder.is_file() or (not (folder / CONFIG).exists() and any((folder / name).is_file() for name in _OTHERS)):
        raise UserError(
            f"{folder}: published weights, not a run yet; `tuwen import {folder} --out RUN` makes one, which then is "
            "evaluated, tuned and indexed like any other"
        )
    for name in (CONFIG, TOKENIZER, PROVENANCE, WEIGHTS):
        if not (folder / name).exists():
            raise UserError(
                f"{folder}: no {name} there; give the folder of a run of `tuwen train` that has a checkpoint"
            )
    return RunConfig.read(folder)


def _weight(folder: Path, config: RunConfig, imported: bool) -> float | None:
    """Of the match in a run's final score: what a fit settled; else None for the paper's rule, or 0 unproven.

    Raises:
        UserError: a damaged file of the fit.
    """
    path = folder / SCORE
    if path.exists():
        try:
            return weight_named(read_json(path).get("weight"))
        except ValueError as error:
            raise UserError(f"{path}: {error}; fit it anew with `tuwen eval {folder} --fit-score val`") from None
    return None if imported or getattr(config.model, "score", "published") == "published" else 0.0


@dataclass(frozen=True)
class Model:
    """A predictor, in evaluation mode, with the config of its run."""

    predictor: Predictor
    config: RunConfig

    @property
    def system(self) -> System:
        return self.predictor.system

    @property
    def tokenizer(self) -> Tokenizer:
        return self.predictor.tokenizer

    @property
    def languages(self) -> tuple[str, ...]:
        return self.predictor.languages

    def embed(
        self,
        images: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
        language: str | None = None,
        batch_size: int = 64,
        skip_broken: bool = False,
    ) -> Embedded:
        """First-stage vectors of pictures (paths, bytes, Pillow images, or uint8 tensors [3, H, W]) and texts.

        language: of all texts, as the corpus named it; None: told from each text's script.

        Raises:
            UserError: for a broken picture (unless `skip_broken`), or a system that has no first-stage vectors.
        """
        readable: list[int] = []
        pictures = sentences = None
        if images is not None:
            encoded, readable = self._pictures(images, batch_size, skip_broken, FIRST)
            pictures = self._vectors(encoded)
        if texts is not None:
            sentences = self._vectors(self._texts(texts, language, batch_size, FIRST))
        return Embedded(pictures, sentences, readable)

    # ---- as evaluators of other projects ask

    def encode(self, inputs: Any, batch_size: int = 64, convert_to_tensor: bool = False, **how: Any) -> Any:
        """Vectors [N, D] float32 of texts and Pillow images, as sentence-transformers and mteb ask for them.

        inputs: see `tuwen.encoder.row_vectors`. how: truncate_dim, the rest is for other models.

        Raises:
            UserError: rows that are neither texts nor pictures, or a system that has no first-stage vectors.
        """

        def embed(images: Any, texts: Any) -> tuple[Tensor | None, Tensor | None]:
            both = self.embed(images, texts, batch_size=batch_size)
            return both.images, both.texts

        vectors = encoder.row_vectors(embed, inputs, how.get("truncate_dim"))
        return vectors if convert_to_tensor else vectors.numpy()

    encode_query = encode_document = encode
    similarity_fn_name = "cosine"

    def similarity(self, first: Any, second: Any) -> Tensor:
        """Cosines [N, M]."""
        return encoder.cosine_scores(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Tensor:
        """Cosines [N] of rows and rows."""
        return encoder.cosine_scores(first, second, pairwise=True)

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the run."""
        config: Any = self.config.model
        return encoder.mteb_meta(self.system, f"tuwen/{self.config.system}", config.embed, config.text.length)

    @cached_property
    def model_card_data(self) -> "encoder.Card":
        """What sentence-transformers' evaluators measured on this model."""
        return encoder.Card()

    # ---- two stages

    def rank(
        self,
        images: Sequence[Picture],
        texts: Sequence[str],
        top_k: int = 64,
        language: str | None = None,
        batch_size: int = 64,
        skip_broken: bool = False,
    ) -> list[Ranking]:
        """The pictures in order for each text: by first-stage score, the best `top_k` then by matching where it can.

        Equal scores keep the order given. What matching reads is held in memory: meant for thousands of pictures.

        Raises:
            UserError: as `embed`, and for a `top_k` below 0.
        """
        predictor = self.predictor
        if predictor.engine is not None:
            raise UserError("rank needs engine='torch': the others serve embed alone")
        if top_k < 0:
            raise UserError(f"top_k is {top_k}; give 0 (first stage alone) or more")
        fields = self.system.index_fields if top_k and self.system.matches() else FIRST
        pictures, readable = self._pictures(images, batch_size, skip_broken, fields)
        depth = top_k if predictor.reranks(pictures) else 0
        sentences = self._texts(texts, language, batch_size, None)
        if not readable or not len(texts):
            return [Ranking(text, [], [], [], 0) for text in texts]
        rankings = []
        with bars(len(texts) >= LONG * batch_size):
            for t in track(range(len(texts)), "ranking", len(texts)):
                sentence = sentences.select(torch.tensor([t]))
                first = predictor.first(pictures, sentence).t2i[:, 0]
                order = torch.argsort(first, descending=True, stable=True)
                reranked = min(depth, len(order)) if predictor.has_first(pictures) or not depth else len(order)
                final = self._final(pictures, sentence, order[:reranked], first, batch_size)
                again = torch.argsort(final, descending=True, stable=True)
                order = torch.cat([order[:reranked][again], order[reranked:]])
                scores = torch.cat([final[again], first[order[reranked:]]])
                places = [readable[i] for i in order.tolist()]
                rankings.append(Ranking(texts[t], places, scores.tolist(), first[order].tolist(), reranked))
        return rankings

    @torch.no_grad()
    def generate(
        self,
        language: str,
        images: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
        how: Generation | None = None,
        text_language: str | None = None,
        batch_size: int = 64,
    ) -> list[str]:
        """Texts in a language: captions of pictures, translations of texts, or of texts beside their pictures.

        images, texts: of equal length where both are given. how: beam search with 5 beams unless told. text_language:
        of the given texts; None: told from each text's script.

        Raises:
            UserError: a system without a decoder, a language the run does not know, a broken picture, neither pictures
                nor texts, or not as many of both.
        """
        if not self.system.can("generate"):
            raise self.system.lacks("generate", "it has no decoder")
        if language not in self.languages:
            raise UserError(f"no language {language!r} in this run; it has {', '.join(self.languages)}")
        _refuse_single(images, (str, bytes, os.PathLike, Image.Image, Tensor), "images")
        _refuse_single(texts, (str,), "texts")
        counts = {len(given) for given in (images, texts) if given is not None}
        if len(counts) != 1:
            raise UserError("give images, texts, or as many of both")
        made: list[str] = []
        count, predictor = counts.pop(), self.predictor
        with bars(count >= LONG * batch_size):
            for start in track(range(0, count, batch_size), "texts made", batches(count, batch_size)):
                part = slice(start, start + batch_size)
                pictures = prompt = None
                if images is not None:
                    pixels = [self._pixels(image, start + k) for k, image in enumerate(images[part])]
                    pictures = predictor.encode(Images(torch.stack(pixels)))
                if texts is not None:
                    prompt = predictor.tokens(texts[part], text_language)
                rows = min(batch_size, count - start)
                spoken = torch.full((rows,), self.languages.index(language), device=predictor.device)
                keys = torch.arange(start, start + rows)
                ids = self.system.generate(pictures, prompt, spoken, how or Generation(), keys).ids
                made += self.tokenizer.decode(ids.cpu())
        return made

    # ---- what a task has taught, by its verb

    def keep(self, images: Sequence[Picture], batch_size: int = 64) -> Encoded:
        """Pictures encoded once, on the CPU: `answer` and `judge` take rows of it (`select`) in their place."""
        return self._pictures(images, batch_size, False, (*FIRST, "states"))[0]

    def answer(self, images: Sequence[Any] | Encoded, questions: Sequence[str], **how: Any) -> list[Any]:
        """An answer with its probability for each picture, or row of `keep`, and question, by a run that has learnt to
        (task vqa)."""
        return self._do("answer", images, questions, how)

    def judge(self, images: Sequence[Any] | Encoded, texts: Sequence[str], **how: Any) -> list[Any]:
        """A label with its probability for each picture, or sequence of pictures, and statement (two_pictures,
        entailment). Of `keep` give rows, or of two pictures a statement a pair of such."""
        return self._do("judge", images, texts, how)

    def classify(self, images: Sequence[Any], **how: Any) -> list[Any]:
        """A class with its probability for each picture."""
        return self._do("classify", images, None, how)

    def ground(self, images: Sequence[Any], phrases: Sequence[str], **how: Any) -> list[Any]:
        """Where in each picture what its phrase says is."""
        return self._do("ground", images, phrases, how)

    def caption(self, images: Sequence[Any], **how: Any) -> list[Any]:
        """A text for each picture."""
        return self._do("caption", images, None, how)

    def _do(self, verb: str, images: Any, texts: Sequence[str] | None, how: dict[str, Any]) -> list[Any]:
        """By the task that the run has learnt, if that is its verb; else by one that needs no head.

        Raises:
            UserError: no such task, naming those there are; what the task finds wrong with what is given.
        """
        _refuse_single(images, (str, bytes, os.PathLike, Image.Image, Tensor), "images")
        _refuse_single(texts, (str,), "texts")
        able = [name for name in tasks.with_verb(verb) if tasks.can(type(self.system), tasks.find_task(name))]
        if self.config.task_name in able:
            return tasks.of(self.config.task).use(self.predictor, self.system.head, images, texts, **how)
        ready = [name for name in able if not tasks.find_task(name).learnt]
        if ready:
            return tasks.find_task(ready[0])().use(self.predictor, None, images, texts, **how)
        known = ", ".join(tasks.with_verb(verb)) or "none"
        raise UserError(
            f"this run has not learnt to {verb}; tasks that teach it: {known} "
            f"(`tuwen train {self.config.system} --task TASK --init RUN`)"
        )

    # ---- pieces

    def _pictures(
        self, images: Sequence[Picture], batch_size: int, skip_broken: bool, fields: Sequence[str]
    ) -> tuple[Encoded, list[int]]:
        """Encoded pictures, and the positions of those that could be read."""
        _refuse_single(images, (str, bytes, os.PathLike, Image.Image, Tensor), "images")
        readable: list[int] = []

        def read() -> Iterator[Images]:
            starts = range(0, len(images), batch_size)
            for start in track(starts, "pictures", len(starts)):
                pixels = []
                for position in range(start, min(start + batch_size, len(images))):
                    try:
                        pixels.append(self._pixels(images[position], position))
                        readable.append(position)
                    except UserError:
                        if not skip_broken:
                            raise
                if pixels:
                    yield Images(torch.stack(pixels))

        with bars(len(images) >= LONG * batch_size):
            return self.predictor.pictures(read(), fields, len(images)), readable

    def _pixels(self, image: Picture, position: int) -> Tensor:
        """[3, side, side] uint8."""
        try:
            return self.predictor.pixels(image)
        except BrokenImage as error:
            name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"images[{position}]"
            raise UserError(f"{name}: {error}; mend it or skip_broken=True") from None

    def _texts(self, texts: Sequence[str], language: str | None, batch_size: int, fields) -> Encoded:
        _refuse_single(texts, (str,), "texts")
        with bars(len(texts) >= LONG * batch_size):
            return self.predictor.texts(texts, language, batch_size, fields)

    def _vectors(self, encoded: Encoded) -> Tensor:
        out = vectors(encoded)
        if out is None:
            raise self.system.lacks("embed", "it has no first-stage vectors")
        return out

    def _final(self, pictures: Encoded, sentence: Encoded, chosen: Tensor, first: Tensor, batch_size: int) -> Tensor:
        """Final scores of the chosen pictures (int64 [K]) for one text."""
        if not len(chosen):
            return first[:0]
        return torch.cat(
            [
                self.predictor.final(pictures.select(rows), sentence.select(torch.zeros_like(rows)), first[rows])
                for rows in chosen.split(batch_size)
            ]
        )


def _refuse_single(items: object, kinds: tuple[type, ...], name: str) -> None:
    if isinstance(items, kinds) and not (isinstance(items, Tensor) and items.dim() == 4):
        raise UserError(f"{name} must be a list, even of one: {name}=[...]")
