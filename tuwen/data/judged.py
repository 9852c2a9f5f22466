"""Pairs of a picture and a text to judge: right ones of a corpus, and as many wrong ones made of it."""

import hashlib
from dataclasses import replace

import numpy as np
import torch

from tuwen.data import draws
from tuwen.data.corpus import Caption, Corpus, Record, text_id
from tuwen.data.subset import Wrapped
from tuwen.errors import UserError

TRIES = 20  # rows whose text is tried before a picture is left without a wrong one


class JudgedPairs(Wrapped):
    """Two rows a picture and language: with one of its own texts, label 1, and with one that is not true of it, 0.

    Which text, and which other row's, is drawn by (seed, picture, language). A picture that no text tried is wrong for
    is left out.

    Raises:
        UserError: no picture has a right and a wrong text.
    """

    def __init__(self, base: Corpus, seed: int = 0):
        super().__init__([base])
        self.base, self.truth = base, "identity"
        self.pairs: list[tuple[int, str, str, int]] = []  # row, language, text, label
        identity = torch.from_numpy(base.image_ids())
        for language in base.languages:
            drawn = draws.uniform(identity, TRIES + 2, seed, "judged pairs", language).numpy()
            for row in range(len(base)):
                own = base.record(row).texts.get(language, ())
                wrong = self._wrong(row, language, drawn[row]) if own else None
                if wrong is not None:
                    right = own[int(drawn[row][-1] * len(own))]
                    self.pairs += [(row, language, right, 1), (row, language, wrong, 0)]
        if not self.pairs:
            raise UserError(f"corpus {base.name}, split {base.split}: no picture has a right and a wrong text to judge")
        digest = hashlib.blake2b(base.fingerprint.encode(), digest_size=16)
        digest.update(repr(self.pairs).encode())
        self.fingerprint = digest.hexdigest()

    def _wrong(self, row: int, language: str, drawn: np.ndarray) -> str | None:
        """Another row's text that is right for none of the rows tried."""
        for share in drawn[:TRIES]:
            other = int(share * len(self.base))
            texts = self.base.record(other).texts.get(language, ())
            if texts:
                place = int(drawn[TRIES] * len(texts))
                caption = Caption(
                    texts[place], language, text_id(texts[place]), other, self._place(other, language, place)
                )
                if not len(self.base.relevance([row], [caption]).images):
                    return texts[place]
        return None

    def _place(self, row: int, language: str, place: int) -> int:
        """Where a text stands among all of its row, language after language."""
        before = 0
        for spoken, texts in self.base.record(row).texts.items():
            if spoken == language:
                break
            before += len(texts)
        return before + place

    def __len__(self) -> int:
        return len(self.pairs)

    def record(self, row: int) -> Record:
        _, language, text, label = self.pairs[row]
        record = super().record(row)
        return replace(record, id=f"{record.id}#{row}", texts={language: [text]}, columns={"label": label})

    def image_ids(self) -> np.ndarray:
        return self.base.image_ids()[[row for row, *_ in self.pairs]]

    def _origin(self, row: int) -> tuple[Corpus, int]:
        if not 0 <= row < len(self.pairs):
            raise IndexError(f"row {row} of {len(self.pairs)}")
        return self.base, self.pairs[row][0]
