"""A system ready for use: the one way from a picture or a text to tokens, to vectors, to first-stage and final scores.

Evaluation, search, explanations, exports and `tuwen.load` all go through it, so what is measured is what is served.

Shape legend: B rows of a batch, I pictures, T texts, N pairs, C classes, H matching heads, D shared embedding width.
"""

import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tuwen.data.batch import Images, Texts, blank_images
from tuwen.data.corpus import Corpus
from tuwen.data.fit import Fit
from tuwen.data.images import load
from tuwen.data.loader import image_batches
from tuwen.data.needs import check_reads
from tuwen.data.spans import find_spans
from tuwen.data.text import Tokenizer
from tuwen.data.workers import default_workers
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.engines import Engine
from tuwen.progress import batches, track
from tuwen.similarity.final import final_score, weight_name
from tuwen.similarity.prompts import average_scores, average_vectors
from tuwen.systems.system import Scores, System

Picture = str | os.PathLike | bytes | Image.Image | Tensor
FIRST = ("pooled", "tokens", "token_mask")  # parts of `Encoded` that the first stage reads
STATES_IN_FULL = 1 << 30  # bytes of fusion states kept in float32; more are kept in half precision
HALF_LARGEST = 6e4  # float16 ends at 65504
WINDOW = 64  # batches of texts that are sorted by length together: of a million texts only these are held as ids
_NAMES = {"HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "CJK": "zh", "CYRILLIC": "ru", "ARABIC": "ar"}


@dataclass(frozen=True)
class Predictor:
    """A system with what turns pictures and texts into its inputs.

    system: live during training, or loaded. languages: the run's table, which `Texts.language` indexes. config: the
    model's. engine: exported towers that encode in place of the system's own. weight: of the match in the final score
    (`tuwen.similarity.final`), 0 for the first stage alone, inf for the match alone; None: the paper's own rule.
    """

    system: System
    tokenizer: Tokenizer
    languages: tuple[str, ...]
    config: Any
    engine: Engine | None = None
    weight: float | None = None

    @property
    def name(self) -> str:
        """Of the system."""
        return type(self.system).__module__.rpartition(".")[2]

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self.system.parameters()), torch.device("cpu"))

    @property
    def fit(self) -> Fit:
        """How a whole picture becomes the square that the tower reads."""
        return self.config.image.fit

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The system in evaluation mode without gradients; afterwards as it was."""
        training = self.system.training
        self.system.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.system.train(training)

    # ---- inputs

    def pixels(self, picture: Picture) -> Tensor:
        """[3, side, side] uint8, what the tower reads of a picture.

        Raises:
            BrokenImage: it cannot be read.
        """
        return self.fit(load(picture))

    def read(
        self, corpus: Corpus, rows: Sequence[int], batch_size: int, what: str = "pictures", pictures: int = 1
    ) -> Iterator[tuple[Images, list[int], Mapping[str, int]]]:
        """(pictures, the rows that could be read, how many could not by reason) of a corpus's rows, in batches.

        Rows of clips give all their pictures. what: the name of the progress bar. pictures: separate ones a row.

        Raises:
            UserError: a corpus of clips, and a system that reads one picture a row.
        """
        reads = self.system.reads(self.system.config)
        check_reads(corpus, reads, pictures)
        read = image_batches(corpus, rows, self.fit, batch_size, default_workers(), reads.features)
        return track(read, what, batches(len(rows), batch_size))

    def tokens(self, texts: Sequence[str], language: str | Sequence[str] | None = None) -> Texts:
        """Texts as the system reads them, on its device.

        language: of all texts, or of each, as the run's table names it; None: told from each text's script.

        Raises:
            UserError: a language that the run does not know, or what is no text.
        """
        return self._texts(texts, self._spoken(texts, language), self.tokenizer.ids(texts))

    def token_batches(
        self, texts: Sequence[str], language: str | Sequence[str] | None, batch_size: int, what: str = "texts"
    ) -> Iterator[tuple[np.ndarray, Texts]]:
        """(positions [S] int64 among the texts, their tokens), texts of like length together, little is padded."""
        spoken = self._spoken(texts, language)
        return track(self._token_batches(texts, spoken, batch_size), what, batches(len(texts), batch_size))

    def _token_batches(self, texts, spoken: Sequence[str], batch_size: int) -> Iterator[tuple[np.ndarray, Texts]]:
        window = batch_size * WINDOW
        for begin in range(0, len(texts), window):
            ids = self.tokenizer.ids(texts[begin : begin + window])
            order = np.argsort([len(i) for i in ids], kind="stable")
            for start in range(0, len(ids), batch_size):
                places = order[start : start + batch_size]
                chosen = [texts[begin + k] for k in places], [spoken[begin + k] for k in places]
                yield places + begin, self._texts(*chosen, [ids[k] for k in places])

    def _texts(self, texts: Sequence[str], spoken: Sequence[str], ids: Sequence[np.ndarray]) -> Texts:
        length = self.config.text.length
        padded, mask = self.tokenizer.pad(ids, length)
        kinds = self.system.reads(self.system.config).spans
        spans = find_spans(texts, self.tokenizer, length, kinds)
        language = torch.tensor([self.languages.index(name) for name in spoken], dtype=torch.int64)
        return Texts(padded, mask, language, None, spans).to(self.device)

    def _spoken(self, texts: Sequence[str], language: str | Sequence[str] | None) -> Sequence[str]:
        """The language of each text."""
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"texts[{position}] is {type(text).__name__}, not a text")
        if not self.languages:
            raise UserError(
                "this run has no languages: it learnt from pictures alone, or what it says of itself was changed"
            )
        if language is None:
            return [language_of(text, self.languages) for text in texts]
        spoken = [language] * len(texts) if isinstance(language, str) else language
        for name in dict.fromkeys([language] if isinstance(language, str) else spoken):
            if name not in self.languages:
                raise UserError(f"no language {name!r} in this run; it has {', '.join(self.languages)}")
        return spoken

    # ---- vectors, tokens, states

    @torch.no_grad()
    def encode(self, batch: Images | Texts) -> Encoded:
        """One batch through its tower, all that it gives, on the device."""
        towers = self.system if self.engine is None else self.engine
        batch = batch.to(self.device)
        return towers.encode_images(batch) if isinstance(batch, Images) else towers.encode_texts(batch)

    def pictures(
        self, read: Iterable[Images], fields: Sequence[str] | None = None, total: int | None = None
    ) -> Encoded:
        """All pictures of the batches, on the CPU in float32; no batches give no rows of the right widths.

        fields: the parts that are kept, as `System.index_fields` names them; None: what ranking reads, all parts or the
        first stage's alone. total: how many there will be, where they are many: then the states of more than
        `STATES_IN_FULL` bytes are kept in half precision.
        """
        parts = [self._part(self.encode(batch), fields, total) for batch in read]
        if not parts:
            with torch.no_grad():
                blank = self.system.encode_images(blank_images(self.fit.side).to(self.device))
                parts = [self._part(blank, fields).map(lambda x: x[:0])]
        return Encoded.cat(parts)

    def texts(
        self,
        texts: Sequence[str],
        language: str | Sequence[str] | None = None,
        batch_size: int = 64,
        fields: Sequence[str] | None = None,
    ) -> Encoded:
        """All texts in their order, as `pictures` gives pictures; language as for `tokens`."""
        if not texts:
            with torch.no_grad():
                empty = self.system.encode_texts(self.tokens(["a"]))
            return self._part(empty, fields).map(lambda x: x[:0])
        parts, places = [], []
        for place, batch in self.token_batches(texts, language, batch_size):
            parts.append(self._part(self.encode(batch), fields, len(texts)))
            places.append(place)
        return Encoded.cat(parts).select(torch.from_numpy(np.argsort(np.concatenate(places))))

    def _part(self, encoded: Encoded, fields: Sequence[str] | None, total: int | None = None) -> Encoded:
        """The named parts on the CPU."""
        if fields is None:
            fields = (*FIRST, "states") if self.system.matches() else FIRST
        states = {k: v for k, v in encoded.states.items() if f"states.{k}" in fields or "states" in fields}
        pooled, tokens, mask = (getattr(encoded, name) if name in fields else None for name in FIRST)
        size = sum(state.numel() * 4 for state in states.values()) // len(encoded) * (total or len(encoded))
        store = _half if size > STATES_IN_FULL else _full
        part = Encoded(pooled, tokens, mask, {}, encoded.state_mask if states else None).map(_full)
        return replace(part, states={name: store(state) for name, state in states.items()})

    # ---- scores

    def has_first(self, pictures: Encoded) -> bool:
        """Whether there are first-stage scores of the pictures; where there are none, every pair must be matched."""
        return pictures.pooled is not None or self.system.can("scores")

    @torch.no_grad()
    def first(self, pictures: Encoded, texts: Encoded) -> Scores:
        """[I, T] first-stage scores, float32 on the CPU; zeros for a system that can only match.

        Raises:
            UserError: a system that can do neither.
        """
        if not self.has_first(pictures):
            if not self.system.matches():
                raise self.system.lacks("rank", "it has no first-stage vectors and no cross encoder")
            zeros = torch.zeros(len(pictures), len(texts))
            return Scores(zeros, zeros)
        scores = self.system.scores(for_ranking(pictures).to(self.device), for_ranking(texts).to(self.device))
        return Scores(scores.i2t.float().cpu(), scores.t2i.float().cpu())

    def classes(
        self, pictures: Encoded, prompts: Iterable[Sequence[str]], language: str, batch_size: int = 64
    ) -> Tensor:
        """[I, C] scores of every picture with every class, of which each prompt names all in one order.

        Systems of one vector a text average the prompts' vectors; those that score by tokens average the prompts'
        scores. Prompt by prompt, so that few texts are held at once.
        """
        by_vectors, parts = not self.system.can("scores"), []
        for texts in prompts:
            encoded = self.texts(texts, language, batch_size, FIRST)
            if by_vectors and encoded.pooled is not None:
                parts.append(encoded.pooled)
            else:
                parts.append(self._of_pictures(pictures, encoded, batch_size))
        if not by_vectors:
            return average_scores(torch.stack(parts))
        return self._of_pictures(Encoded(pictures.pooled), Encoded(average_vectors(torch.stack(parts))), batch_size)

    def _of_pictures(self, pictures: Encoded, texts: Encoded, batch_size: int) -> Tensor:
        """[I, T] scores for ranking the texts of a picture."""
        parts = torch.arange(len(pictures)).split(batch_size)
        return torch.cat([self.first(pictures.select(rows), texts).i2t for rows in parts])

    @torch.no_grad()
    def match(self, pictures: Encoded, texts: Encoded) -> Tensor:
        """[N, H] float32 log-odds, on the device, that picture n and text n belong together.

        Raises:
            UserError: a system without a cross encoder.
        """
        return match_of(self.system, self.ready(pictures), self.ready(texts)).float()

    def ready(self, encoded: Encoded) -> Encoded:
        """What was kept, as heads and matches read it: on the device, in float32."""
        return encoded.to(self.device).map(_float)

    def reranks(self, pictures: Encoded) -> bool:
        """Whether final scores of the pictures read the match; where not, they are the first stage's, bit for bit."""
        return self.system.matches() and (self.weight != 0 or not self.has_first(pictures))

    def score_rule(self) -> dict[str, Any]:
        """How first stage and match become the final score: {"score": "published"} or {"score": "fitted", "weight"}."""
        if self.weight is None:
            return {"score": "published"}
        return {"score": "fitted", "weight": weight_name(self.weight)}

    @torch.no_grad()
    def final(self, pictures: Encoded, texts: Encoded, first: Tensor, direction: str = "text_to_image") -> Tensor:
        """[N] final scores of pairs (picture n, text n), float32 on the CPU, by which one query's items are ranked.

        Across queries (thresholds, matching) the log-odds of `match` alone count.

        first: [N] the pairs' first-stage scores. direction: "text_to_image" where the pictures of a text are ranked,
        "image_to_text" where the texts of a picture.
        """
        if not self.reranks(pictures):
            return first
        return self.rescored(self.match(pictures, texts), first, direction).cpu()

    def rescored(self, log_odds: Tensor, first: Tensor, direction: str = "text_to_image") -> Tensor:
        """[N] float32 final scores from the match's log-odds [N, H] and first-stage scores [N]."""
        first = first.to(log_odds.device)
        if self.weight is None:
            return self.system.rerank(log_odds, first).float()
        logit = self.system.first_logit(first, direction)
        return final_score(logit, log_odds, self.weight or math.inf)  # 0 comes here without a first stage alone


def match_of(system: System, pictures: Encoded, texts: Encoded) -> Tensor:
    """[N, H] log-odds of pairs: by the score that a head learnt in the match's place, else by the system's match."""
    learnt = getattr(system.head, "match", None)
    return system.match(pictures, texts) if learnt is None else learnt(system, pictures, texts)


def vectors(encoded: Encoded) -> Tensor | None:
    """[B, D] the pooled vectors; where a system has tokens alone, their mean as a unit vector; None where neither."""
    if encoded.pooled is not None or encoded.tokens is None:
        return encoded.pooled
    tokens, mask = encoded.tokens, encoded.token_mask
    weight = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens)
    return F.normalize((tokens * weight[..., None]).sum(1), dim=1)


def for_ranking(encoded: Encoded) -> Encoded:
    """What the first stage reads: the vectors without the fusion states."""
    return Encoded(encoded.pooled, encoded.tokens, encoded.token_mask)


def language_of(text: str, languages: Sequence[str]) -> str:
    """The language of a run's table that a text's script tells, else its English, else its first."""
    scripts = {_NAMES.get(unicodedata.name(character, "").partition(" ")[0]) for character in text}
    for name in ("ja", "ko", "zh", "ru", "ar"):
        if name in scripts and name in languages:
            return name
    return "en" if "en" in languages else languages[0]


def _float(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _full(x: Tensor) -> Tensor:
    return _float(x).cpu()


def _half(x: Tensor) -> Tensor:
    fits = x.is_floating_point() and bool(x.abs().amax() < HALF_LARGEST)
    return x.half().cpu() if fits else _full(x)
