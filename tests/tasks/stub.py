"""A corpus, a tokenizer and systems whose scores are known beforehand."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from tuwen.data.corpus import BrokenImage, Corpus, Record
from tuwen.data.fit import Fit
from tuwen.data.text import Vocabulary
from tuwen.nn.encoded import Encoded
from tuwen.predictor import Predictor
from tuwen.systems.system import Paper, Scores, System


class Pairs(Corpus):
    """Picture k is a flat colour that says k; texts are given by row and language."""

    def __init__(self, texts, image_ids=None, broken=(), columns=None):
        self.name, self.split, self.fingerprint = "pairs", "test", "stub"
        self.languages = tuple(dict.fromkeys(language for row in texts for language in row))
        self.texts, self.broken, self.columns = texts, set(broken), columns
        self.ids = image_ids or list(range(len(texts)))

    def __len__(self):
        return len(self.texts)

    def record(self, row):
        columns = {} if self.columns is None else self.columns[row]
        return Record(str(row), self.texts[row], self.ids[row], columns)

    def image(self, row):
        if row in self.broken:
            raise BrokenImage("truncated", f"row {row}")
        pixels = torch.tensor([row // 65536, row // 256 % 256, row % 256], dtype=torch.uint8)
        return pixels[:, None, None].expand(3, 4, 4).contiguous()


class Numbers:
    """A tokenizer whose text is a number: its id."""

    vocabulary = Vocabulary(100_000, 0, 1, 2, 3, 4)

    def ids(self, texts):
        return [np.array([int(text.rsplit(" ", 1)[-1])] * (1 + len(text) % 3)) for text in texts]

    def pad(self, ids, length):
        width = max(map(len, ids))
        padded = [np.pad(one, (0, width - len(one)), mode="edge") for one in ids]
        mask = [[k < len(one) for k in range(width)] for one in ids]
        return torch.from_numpy(np.stack(padded)), torch.tensor(mask)


def ready(system, languages, tokenizer=None, side=4, length=8, shorter_side=None) -> Predictor:
    """A predictor of a system without a run; languages: the table it was trained on, or a corpus's."""
    config = SimpleNamespace(image=SimpleNamespace(fit=Fit(side, shorter_side)), text=SimpleNamespace(length=length))
    table = languages.languages if isinstance(languages, Corpus) else languages
    return Predictor(system, tokenizer or Numbers(), tuple(table), config)


@dataclass(frozen=True)
class Table:
    """Scores and log-odds by (picture, text) number."""

    first: torch.Tensor | None
    match: torch.Tensor | None = None


class DualStub(System):
    """First-stage scores looked up in a table; no cross encoder."""

    paper = Paper("", "", "", "", "", "paper", "", "", "", ())
    config = None

    def __init__(self, table):
        super().__init__()
        self.table = table

    def encode_images(self, images):
        rows = (images.pixels[:, :, 0, 0].long() * torch.tensor([65536, 256, 1])).sum(1)
        return Encoded(pooled=rows.float()[:, None], states={"last": rows[:, None].float()})

    def encode_texts(self, texts):
        number = texts.ids[:, :1].float()
        return Encoded(pooled=number, states={"last": number})

    def scores(self, images, texts):
        block = self.table.first[images.pooled[:, 0].long()][:, texts.pooled[:, 0].long()]
        return Scores(block, block)


class FusionStub(DualStub):
    """The same with match log-odds from a table and a log of how many pairs were asked at once."""

    def __init__(self, table):
        super().__init__(table)
        self.asked = []

    def match(self, images, texts):
        assert len(images) == len(texts)
        self.asked.append(len(images))
        return self.table.match[images.states["last"][:, 0].long(), texts.states["last"][:, 0].long()]


class MatchOnly(System):
    """No vectors: every pair must be matched."""

    paper = DualStub.paper
    config = None

    def __init__(self, table):
        super().__init__()
        self.table = table

    def encode_images(self, images):
        return Encoded(states={"last": DualStub.encode_images(self, images).pooled})

    def encode_texts(self, texts):
        return Encoded(states={"last": texts.ids[:, :1].float()})

    def match(self, images, texts):
        return self.table.match[images.states["last"][:, 0].long(), texts.states["last"][:, 0].long()]
