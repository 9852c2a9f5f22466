"""A trained run, ready to use: vectors of pictures and texts, and pictures ranked for texts."""

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tuwen.data.batch import Images, Texts
from tuwen.data.corpus import BrokenImage
from tuwen.data.images import load as load_picture
from tuwen.data.spans import find_spans
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.engines import Engine
from tuwen.nn.generation import Generation
from tuwen.nn.published.languages import LANGUAGES
from tuwen.run import CONFIG, PROVENANCE, TOKENIZER, WEIGHTS, provenance
from tuwen.systems.system import System
from tuwen.training import checkpoint
from tuwen.training.config import RunConfig
from tuwen.training.start import build_system

Picture = str | os.PathLike | bytes | Image.Image | Tensor
T = TypeVar("T")

LONG = 20  # batches from which on a progress bar is shown
_NAMES = {"HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "CYRILLIC": "ru", "ARABIC": "ar"}


@dataclass(frozen=True)
class Embedded:
    """Unit vectors, float32 on the CPU: images [I, D], texts [T, D]; None for what was not given.

    kept: positions of the given pictures that `images` has a row for; all, unless broken ones were skipped.
    """

    images: Tensor | None
    texts: Tensor | None
    kept: list[int]


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
    folder = Path(run)
    for name in (CONFIG, TOKENIZER, PROVENANCE, WEIGHTS):
        if not (folder / name).exists():
            raise UserError(
                f"{folder}: no {name} there; give the folder of a run of `tuwen train` that has a checkpoint"
            )
    config = RunConfig.read(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    system = build_system(config, tokenizer).for_use()
    checkpoint.load_weights(folder / WEIGHTS, system)
    languages = provenance(folder)["corpus"]["languages"]
    if config.text_weights:  # what the text tower read before the run, it may be asked in
        languages = [*languages, *(name for name in LANGUAGES if name not in languages)]
    other = None if engine == "torch" else Engine(folder, engine, int8)
    return Model(system.to(device), tokenizer, config, tuple(languages), other)


class Model:
    """A system with its tokenizer, in evaluation mode, without gradients.

    system, tokenizer, config: what the run was made of. languages: its table, which `Texts.language` indexes.
    """

    def __init__(
        self, system: System, tokenizer: Tokenizer, config: RunConfig, languages: tuple[str, ...], engine=None
    ):
        self.engine: Engine | None = engine
        self.system, self.tokenizer, self.config, self.languages = system.eval(), tokenizer, config, languages
        self.device = next((p.device for p in system.parameters()), torch.device("cpu"))

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
        kept: list[int] = []
        pictures = sentences = None
        if images is not None:
            encoded, kept = self.encode_images(images, batch_size, skip_broken, ("pooled",))
            pictures = self._pooled(encoded)
        if texts is not None:
            sentences = self._pooled(self.encode_texts(texts, language, batch_size, ("pooled",)))
        return Embedded(pictures, sentences, kept)

    @torch.no_grad()
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
        if self.engine is not None:
            raise UserError("rank needs engine='torch': the others serve embed alone")
        if top_k < 0:
            raise UserError(f"top_k is {top_k}; give 0 (first stage alone) or more")
        fields = self.system.index_fields if top_k and self.system.can("match") else ("pooled", "tokens", "token_mask")
        pictures, kept = self.encode_images(images, batch_size, skip_broken, fields)
        sentences = self.encode_texts(texts, language, batch_size, None)
        if not kept or not len(texts):
            return [Ranking(text, [], [], [], 0) for text in texts]
        rankings = []
        for t in _tracked(range(len(texts)), len(texts), "ranking", LONG * batch_size):
            sentence = sentences.select(torch.tensor([t]))
            first = self._first_stage(pictures, sentence)
            order = torch.argsort(first, descending=True, stable=True)
            scores, reranked = first[order], 0
            if top_k and self.system.can("match"):
                reranked = min(top_k, len(order)) if self._has_first_stage(pictures) else len(order)
                final = self._rerank(pictures, sentence, order[:reranked], first, batch_size)
                again = torch.argsort(final, descending=True, stable=True)
                order = torch.cat([order[:reranked][again], order[reranked:]])
                scores = torch.cat([final[again], first[order[reranked:]]])
            found = [kept[i] for i in order.tolist()]
            rankings.append(Ranking(texts[t], found, scores.tolist(), first[order].tolist(), reranked))
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
        _refuse_other(texts or ())
        counts = {len(given) for given in (images, texts) if given is not None}
        if len(counts) != 1:
            raise UserError("give images, texts, or as many of both")
        made: list[str] = []
        starts = range(0, counts.pop(), batch_size)
        for start in _tracked(starts, len(starts), "texts made", LONG):
            part = slice(start, start + batch_size)
            pictures = None if images is None else self.encode_images(images[part], batch_size)[0].to(self.device)
            prompt = None if texts is None else self.tokens(list(texts[part]), text_language)
            rows = len(prompt) if pictures is None and prompt is not None else len(pictures or ())
            spoken = torch.full((rows,), self.languages.index(language), device=self.device)
            keys = torch.arange(start, start + rows)
            made += self.tokenizer.decode(
                self.system.generate(pictures, prompt, spoken, how or Generation(), keys).ids.cpu()
            )
        return made

    @torch.no_grad()
    def encode_images(
        self,
        images: Sequence[Picture],
        batch_size: int = 64,
        skip_broken: bool = False,
        fields: Sequence[str] | None = None,
    ) -> tuple[Encoded, list[int]]:
        """Encoded pictures on the CPU in float32, and the positions of those that could be read.

        fields: parts of `Encoded` to keep, as `System.index_fields` names them; None: all.
        """
        _refuse_single(images, (str, bytes, os.PathLike, Image.Image, Tensor), "images")
        tower = self.config.model.image
        parts: list[Encoded] = []
        kept: list[int] = []
        starts = range(0, len(images), batch_size)
        for start in _tracked(starts, len(starts), "pictures", LONG):
            pixels = []
            for position in range(start, min(start + batch_size, len(images))):
                try:
                    pixels.append(tower.fit(load_picture(images[position])))
                except BrokenImage as error:
                    if not skip_broken:
                        raise UserError(
                            f"{_called(images[position], position)}: {error}; mend it or skip_broken=True"
                        ) from None
                    continue
                kept.append(position)
            if pixels:
                batch = Images(torch.stack(pixels).to(self.device))
                parts.append(self._keep(self._image(batch), fields))
        if not kept:  # the form of no rows
            parts = [self._keep(self.system.encode_images(Images(self._blank(tower.side))), fields, 0)]
        return Encoded.cat(parts), kept

    @torch.no_grad()
    def encode_texts(
        self,
        texts: Sequence[str],
        language: str | None = None,
        batch_size: int = 64,
        fields: Sequence[str] | None = None,
    ) -> Encoded:
        """Encoded texts on the CPU in float32, in the order given; batches are made of texts of like length."""
        _refuse_single(texts, (str,), "texts")
        _refuse_other(texts)
        if language is not None and language not in self.languages:
            raise UserError(f"no language {language!r} in this run; it has {', '.join(self.languages)}")
        order = sorted(range(len(texts)), key=lambda t: len(texts[t]))
        if not texts:  # the form of no rows
            return self._keep(self.system.encode_texts(self.tokens([""], language)), fields, 0)
        parts: list[Encoded] = []
        starts = range(0, len(texts), batch_size)
        for start in _tracked(starts, len(starts), "texts", LONG):
            chosen = [texts[t] for t in order[start : start + batch_size]]
            parts.append(self._keep(self._text(self.tokens(chosen, language)), fields))
        back = torch.empty(len(texts), dtype=torch.int64)
        back[torch.tensor(order, dtype=torch.int64)] = torch.arange(len(texts))
        return Encoded.cat(parts).select(back)

    # ---- pieces

    def _image(self, images: Images) -> Encoded:
        if self.engine is None:
            return self.system.encode_images(images)
        assert images.pixels is not None
        return self.engine.encode_images(images.pixels)

    def _text(self, texts: Texts) -> Encoded:
        if self.engine is None:
            return self.system.encode_texts(texts)
        return self.engine.encode_texts(texts.ids, texts.mask)

    def tokens(self, texts: Sequence[str], language: str | None = None) -> Texts:
        """Texts as the system reads them, on its device; `language` as for `embed`."""
        length = self.config.model.text.length
        ids, mask = self.tokenizer.encode(texts, length)
        spoken = [self.languages.index(language or language_of(text, self.languages)) for text in texts]
        spans = find_spans(texts, self.tokenizer, length, self.system.reads(self.system.config).spans)
        return Texts(ids, mask, torch.tensor(spoken), None, spans).to(self.device)

    def _blank(self, side: int) -> Tensor:
        return torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.device)

    def _keep(self, encoded: Encoded, fields: Sequence[str] | None, rows: int | None = None) -> Encoded:
        """The named parts, float32 on the CPU; `rows` 0 keeps the form alone, so that no rows still have a width."""
        if fields is not None:
            states = {k: v for k, v in encoded.states.items() if f"states.{k}" in fields or "states" in fields}
            pooled, tokens, mask = (
                getattr(encoded, name) if name in fields else None for name in ("pooled", "tokens", "token_mask")
            )
            encoded = Encoded(pooled, tokens, mask, states, encoded.state_mask if states else None)
        return encoded.map(lambda x: (x.float() if x.is_floating_point() else x)[:rows].cpu())

    def _pooled(self, encoded: Encoded) -> Tensor:
        if encoded.pooled is None:
            raise self.system.lacks("embed", "it has no first-stage vectors")
        return encoded.pooled

    def _has_first_stage(self, images: Encoded) -> bool:
        return images.pooled is not None or self.system.can("scores")

    def _first_stage(self, pictures: Encoded, sentence: Encoded) -> Tensor:
        """[I] float32 scores of the pictures for one text; zeros for a system without a first stage."""
        if not self._has_first_stage(pictures):
            if not self.system.can("match"):
                raise self.system.lacks("rank", "it has no first-stage vectors and no cross encoder")
            return torch.zeros(len(pictures))
        return self.system.scores(pictures.to(self.device), sentence.to(self.device)).t2i.float().cpu()[:, 0]

    def _rerank(self, pictures: Encoded, sentence: Encoded, chosen: Tensor, first: Tensor, batch_size: int) -> Tensor:
        """Final scores of the chosen pictures (int64 [K]) for one text."""
        scores = []
        for rows in chosen.split(batch_size):
            repeated = sentence.select(torch.zeros(len(rows), dtype=torch.int64)).to(self.device)
            match = self.system.match(pictures.select(rows).to(self.device), repeated)
            scores.append(self.system.rerank(match, first[rows].to(match.device)).float().cpu())
        return torch.cat(scores)


def language_of(text: str, languages: Sequence[str]) -> str:
    """The language of a run's table that a text's script tells, else its English, else its first."""
    scripts = {_NAMES.get(unicodedata.name(character, "").partition(" ")[0]) for character in text}
    for name in ("ja", "ko", "zh", "ru", "ar"):
        if name in scripts and name in languages:
            return name
    return "en" if "en" in languages else languages[0]


def _tracked(items: Iterable[T], count: int, what: str, long: int) -> Iterable[T]:
    """The items, with a progress bar on standard error where there are many and someone may be watching."""
    if count < long or not sys.stderr.isatty():
        return items
    return track(items, what, total=count, console=Console(stderr=True), transient=True)


def _refuse_single(items: object, kinds: tuple[type, ...], name: str) -> None:
    if isinstance(items, kinds) and not (isinstance(items, Tensor) and items.dim() == 4):
        raise UserError(f"{name} must be a list, even of one: {name}=[...]")


def _refuse_other(texts: Sequence[object]) -> None:
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"texts[{position}] is {type(text).__name__}, not a text")


def _called(picture: Picture, position: int) -> str:
    return os.fspath(picture) if isinstance(picture, str | os.PathLike) else f"images[{position}]"
