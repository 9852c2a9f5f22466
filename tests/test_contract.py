"""The contract held against six very different papers, as sketches with numbers small enough to follow by hand.

FLAVA (unpaired sources, views), ERNIE-UniX2 (parallel texts, a decoder), GRIT-VLP (an order from features),
BagFormer (spans), NLVR2 (two pictures a row, and a task that is learnt on top), MAX-VL (sentences, several texts a
row).
"""

import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from tuwen.data.batch import Batch, Images, Spans, Texts
from tuwen.data.corpus import Corpus, Record
from tuwen.data.grouping import chain
from tuwen.data.text import Vocabulary
from tuwen.data.views import View
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.generation import Generated, Generation
from tuwen.predictor import Predictor
from tuwen.systems.system import Fused, Head, Losses, Needs, Progress, Reads, System
from tuwen.tasks import can
from tuwen.tasks.task import Task, TaskConfig
from tuwen.training import checkpoint, optim
from tuwen.training.config import TrainConfig
from tuwen.training.step import train_step

START = Progress(step=0, steps_per_epoch=4, total_steps=8, batch_size=2)
VOCABULARY = Vocabulary(size=12, pad=0, unknown=1, cls=2, sep=3, mask=4)


def ints(*values) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def flat(values: list[float]) -> Tensor:
    """Pictures of one pixel, grey: [P, 3, 1, 1]."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 1, 1).clone()


def texts(rows: list[list[int]], owner=None, language=None, spans=None) -> Texts:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    language = torch.zeros(len(rows), dtype=torch.int64) if language is None else language
    return Texts(ids, ids != 0, language, owner, spans)


def batch(images, words, rows: int, columns=None, source="pairs", image_id=None, text_id=None) -> Batch:
    ids = torch.arange(rows)
    return Batch(
        images,
        words,
        ids + 100 if image_id is None else image_id,
        ids + 200 if text_id is None else text_id,
        ids + 10,
        columns or {},
        source,
    )


def moved(b: Batch) -> Batch:
    """The batch on another device: every tensor it holds must have gone along."""
    there = b.to("meta")
    stack = [there]
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            assert item.device.type == "meta"
        elif isinstance(item, dict):
            stack += item.values()
        elif dataclasses.is_dataclass(item):
            stack += [getattr(item, f.name) for f in dataclasses.fields(item)]
    assert there.source == b.source
    return b.to("cpu")


# ---- FLAVA: sources of one modality, homogeneous batches, a second view of the pictures


class Flava(System):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    @classmethod
    def needs(cls, config):
        return Needs(views={"codes": View(1)}, sources={"pairs": 2.0, "images": 1.0, "texts": 1.0})

    def encode_images(self, images):
        pixels, codes = images.pixels.float().mean((1, 2, 3)), images.view("codes").pixels.float().mean((1, 2, 3))
        return Encoded(states={"last": self.scale * pixels[:, None], "codes": codes[:, None]})

    def encode_texts(self, texts):
        total = (texts.ids * texts.mask).sum(1, keepdim=True).float()
        return Encoded(states={"last": self.scale * total}, state_mask=texts.mask)

    def losses(self, encoded, batch, progress):
        terms = {}
        if batch.source == "images":
            state = encoded["images"].states
            terms["masked_patches"] = (state["last"] - state["codes"]).square().mean()
        elif batch.source == "texts":
            terms["masked_words"] = encoded["texts"].states["last"].mean()
        else:
            terms["contrast"] = (encoded["images"].states["last"] - encoded["texts"].states["last"]).abs().mean()
        return Losses(terms)


def flava_batches() -> dict[str, Batch]:
    pictures = Images(flat([1, 2, 3, 4]), views={"codes": flat([2, 2, 2, 2])})
    words = texts([[5], [5, 1], [3, 3, 1], [9]])
    return {
        "images": batch(pictures, None, 4, source="images"),
        "texts": batch(None, words, 4, source="texts"),
        "pairs": batch(pictures, words, 4),
    }


def test_flava_one_source_a_batch():
    system, batches = Flava(), flava_batches()
    assert {k: {n: float(v.detach()) for n, v in system(b, START).terms.items()} for k, b in batches.items()} == {
        "images": {"masked_patches": (0 + 4 + 16 + 36) / 4},  # (2 p - 2)^2 at p = 1..4
        "texts": {"masked_words": 2 * (5 + 6 + 7 + 9) / 4},
        "pairs": {"contrast": 2 * (4 + 4 + 4 + 5) / 4},
    }
    for source, b in batches.items():
        halves = [float(system(part, START).total.detach()) for part in b.split(2)]
        assert sum(halves) / 2 == pytest.approx(float(system(b, START).total.detach()))
        assert {part.source for part in b.split(2)} == {source}
        assert float(system(moved(b), START).total.detach()) == float(system(b, START).total.detach())


def test_flava_views_follow_their_pictures():
    pictures = Images(flat([1, 2, 3]), ints(0, 2, 2), views={"codes": flat([7, 8, 9])})
    chosen = pictures.select(ints(2, 0))
    assert chosen.pixels[:, 0, 0, 0].tolist() == [2, 3, 1]
    assert chosen.view("codes").pixels[:, 0, 0, 0].tolist() == [8, 9, 7]
    assert chosen.view("codes").owner.tolist() == [0, 0, 1]


# ---- ERNIE-UniX2: a caption in two languages, a decoder that translates


class Translator(System):
    """A decoder that has learned one thing: the word w of one language is w + 1 in the other."""

    def __init__(self):
        super().__init__()
        self.surprise = nn.Parameter(torch.tensor(1.0))

    @classmethod
    def needs(cls, config):
        return Needs(languages=2)

    def encode_texts(self, texts):
        return Encoded(states={"last": texts.ids[..., None].float()}, state_mask=texts.mask)

    def losses(self, encoded, batch, progress):
        wanted = batch.columns["parallel"]
        said = encoded["texts"].states["last"][..., 0] + 1
        wrong = ((said != wanted.ids) & wanted.mask).float()
        return Losses({"translation": self.surprise * wrong.sum() / wanted.mask.sum()})

    def generate(self, images, prompt, language, how, keys=None):
        memory = self.encode_texts(prompt)
        said = (memory.states["last"][..., 0].long() + 1) * memory.state_mask
        return Generated(said, memory.state_mask, torch.zeros(len(prompt)))


def test_ernie_unix2_parallel_texts_follow_their_rows():
    parallel = texts([[6, 7], [9], [3, 9]], language=ints(1, 1, 1))
    b = batch(None, texts([[5, 6], [8], [2, 8]]), 3, {"parallel": parallel})
    system = Translator()
    assert float(system(b, START).total.detach()) == 0
    assert float(system(moved(b).select(ints(2, 2, 0)), START).total.detach()) == 0
    crossed = dataclasses.replace(b, columns={"parallel": parallel.select(ints(1, 0, 2))})
    assert float(system(crossed, START).total.detach()) == pytest.approx(3 / 5)
    assert b.select(ints(2)).columns["parallel"].ids.tolist() == [[3, 9]]
    said = system.generate(None, b.texts.select(ints(1, 0)), ints(1, 1), Generation())
    assert [row[mask].tolist() for row, mask in zip(said.ids, said.mask, strict=True)] == [[9], [6, 7]]


def test_a_capability_that_is_missing_is_refused_in_one_line():
    assert Translator.capabilities() == ("encode_texts", "generate")
    with pytest.raises(UserError, match=r"cannot match: it has no cross encoder") as caught:
        Translator().match(Encoded(), Encoded())
    assert "\n" not in str(caught.value)


# ---- GRIT-VLP: the next epoch's order grows out of the features seen in this one


class Grit(System):
    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.eye(2))
        self.seen: list[dict[str, Tensor]] = []

    def encode_images(self, images):
        pooled = images.pixels.float()[:, :2, 0, 0] @ self.turn
        return Encoded(pooled / pooled.norm(dim=-1, keepdim=True))

    def encode_texts(self, texts):
        angle = texts.ids[:, 0].double() * math.pi / 180
        return Encoded(torch.stack([angle.cos(), angle.sin()], -1).float())

    def losses(self, encoded, batch, progress):
        images, words = encoded["images"].pooled, encoded["texts"].pooled
        keep = {"images": images.detach(), "texts": words.detach(), "index": batch.index}
        return Losses({"distance": (images - words).square().sum(-1).mean()}, keep)

    def after_step(self, keep, progress):
        self.seen.append(dict(keep))


def test_grit_chains_the_most_similar_of_what_encode_gave():
    angles = [0, 90, 12, 70, 31]  # of the texts; each picture stands 5 degrees further
    points = [[math.cos(math.radians(a + 5)), math.sin(math.radians(a + 5)), 0] for a in angles]
    b = batch(Images(torch.tensor(points).view(5, 3, 1, 1)), texts([[a] for a in angles]), 5)
    system = Grit()
    first = [system(b.select(rows), START, collect=True).first for rows in (ints(0, 1), ints(2, 3, 4))]
    assert not system(b, START).first, "only where the step asks"
    assert not first[0]["images"].requires_grad
    v, w = (torch.cat([part[name] for part in first]).numpy() for name in ("images", "texts"))
    # picture 5 -> text 12 -> picture 36 (nearest to 12 of those left) -> text 70 -> picture 95
    assert b.entry[chain(v @ w.T, 0)].tolist() == [10, 12, 14, 13, 11]


# ---- BagFormer: spans of a text are summed into bags


class Bags(System):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.arange(12.0)[:, None], freeze=False)

    @classmethod
    def reads(cls, config):
        return Reads(spans=("entity",))

    def encode_texts(self, texts):
        states, spans = self.embed(texts.ids), texts.spans
        rows = zip(spans.sequence.tolist(), spans.start.tolist(), spans.end.tolist(), strict=True)
        bags = [[] for _ in range(len(texts))]
        for sequence, start, end in rows:
            bags[sequence].append(states[sequence, start:end].sum())
        tokens = nn.utils.rnn.pad_sequence([torch.stack(bag) if bag else states.new_zeros(0) for bag in bags], True)
        mask = torch.arange(tokens.shape[1]) < ints(*map(len, bags))[:, None]
        return Encoded(tokens=tokens[..., None], token_mask=mask)

    def losses(self, encoded, batch, progress):
        words = encoded["texts"]
        return Losses({"bags": (words.tokens[..., 0] * words.token_mask).sum() / len(batch)})


def bagged() -> Batch:
    """Text 0: bags 5 6 | 7; text 1: none; text 2: two that overlap, 8 9 and 9 10."""
    spans = Spans(ints(0, 0, 2, 2), ints(1, 3, 0, 1), ints(3, 4, 2, 3), ints(40, -1, 41, 42), ints(1, 0, 1, 1))
    return batch(None, texts([[2, 5, 6, 7], [4], [8, 9, 10]], spans=spans), 3)


def test_bagformer_spans_are_renumbered_with_their_texts():
    system, b = Bags(), bagged()
    assert system.encode_texts(b.texts).tokens[..., 0].tolist() == [[11, 7], [0, 0], [17, 19]]
    chosen = moved(b).select(ints(2, 1, 0, 2))
    assert chosen.texts.spans.sequence.tolist() == [0, 0, 2, 2, 3, 3]
    assert chosen.texts.spans.id.tolist() == [41, 42, 40, -1, 41, 42]
    assert chosen.texts.spans.kind.tolist() == [1, 1, 1, 0, 1, 1]
    assert system.encode_texts(chosen.texts).tokens[..., 0].tolist() == [[17, 19], [0, 0], [11, 7], [17, 19]]
    assert [float(system(part, START).total.detach()) for part in b.split(3)] == [18, 0, 36]


def test_encoded_rows_of_uneven_length_join_padded_and_masked():
    system, b = Bags(), bagged()
    parts = [system.encode_texts(b.texts.select(ints(k))) for k in (1, 0)]
    joined = Encoded.cat(parts)
    assert joined.tokens[..., 0].tolist() == [[0, 0], [11, 7]]
    assert joined.token_mask.tolist() == [[False, False], [True, True]]


# ---- NLVR2: a statement about two pictures


class Pairs(System):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([10.0, 1.0]))

    def encode_images(self, images):
        return Encoded(states={"last": images.pixels.float().mean((2, 3))[:, None]})

    def encode_texts(self, texts):
        return Encoded(states={"last": texts.ids[..., None].float()}, state_mask=texts.mask)

    def fuse(self, images, texts):
        seen = sum(w * image.states["last"][:, 0, :1] for w, image in zip(self.weight, images, strict=True))
        said = (texts.states["last"][..., 0] * texts.state_mask).sum(1, keepdim=True)
        return Fused(seen + said / 10, texts.states["last"], texts.state_mask)

    def losses(self, encoded, batch, progress):
        two = [self.encode_images(batch.images.part(k)) for k in range(2)]
        return Losses({"statement": self.fuse(two, encoded["texts"]).pooled[:, 0].sum() / len(batch)})


def test_nlvr_two_pictures_a_row_keep_their_order():
    pictures = Images(flat([1, 2, 3, 4, 5, 6]), ints(0, 0, 1, 1, 2, 2))
    b = batch(pictures, texts([[1], [2], [3, 4]]), 3, {"label": ints(1, 0, 1)})
    system = Pairs()
    assert [float(system(part, START).total.detach()) for part in b.split(3)] == pytest.approx([12.1, 34.2, 56.7])
    chosen = moved(b).select(ints(2, 0, 2))
    assert chosen.images.owner.tolist() == [0, 0, 1, 1, 2, 2]
    assert chosen.images.pixels[:, 0, 0, 0].tolist() == [5, 6, 1, 2, 5, 6]
    assert chosen.columns["label"].tolist() == [1, 1, 1]
    assert float(system(chosen, START).total.detach()) == pytest.approx((56.7 + 12.1 + 56.7) / 3)


def test_nlvr_pictures_out_of_order_still_belong_to_their_rows():
    pictures = Images(flat([3, 1, 4, 2]), ints(1, 0, 1, 0))
    b = batch(pictures, texts([[1], [2]]), 2)
    assert [float(Pairs()(part, START).total.detach()) for part in b.split(2)] == pytest.approx([12.1, 34.2])


# ---- and learnt as a task: its rows, a head with a copy of a part of its own, a frozen run that is asked


class Statements(Corpus):
    """Row k is about the grey pictures 2 k + 1 and 2 k + 2, and true where k is even."""

    languages, fingerprint, pictures = ("en",), "statements", 2

    def __init__(self, count: int):
        self.count = count

    def __len__(self):
        return self.count

    def record(self, row):
        return Record(str(row), {"en": [f"statement {row}"]}, row, {"truth": row % 2 == 0})

    def image(self, row):
        return flat([2 * row + 1, 2 * row + 2])


class Labelled(Statements):
    def __init__(self, inner: Statements, number: dict[bool, int]):
        self.inner, self.number, self.count = inner, number, len(inner)

    def record(self, row):
        record = self.inner.record(row)
        return dataclasses.replace(record, columns={"label": self.number[record.columns["truth"]]})


@dataclasses.dataclass(frozen=True)
class StatementConfig(TaskConfig):
    labels: tuple[bool, ...] = ()


class Statement(Task):
    what, why, metric = "is it true of both pictures", "pictures and text are read together", "accuracy"
    needs, pictures, Config = ("fuse",), 2, StatementConfig

    def prepare(self, corpus):
        truths = {corpus.record(row).columns["truth"] for row in range(len(corpus))}
        return dataclasses.replace(self.config, labels=tuple(sorted(truths)))

    def rows(self, corpus, split):
        return Labelled(corpus, {label: k for k, label in enumerate(self.config.labels)})

    def head(self, system, tokenizer):
        return StatementHead()

    def measure(self, predictor, head, corpus, **options):
        entries = list(self.predictions(predictor, head, corpus))
        labels = [corpus.record(row).columns["label"] for row in range(len(corpus))]
        right = [entry["label"] == label for entry, label in zip(entries, labels, strict=True)]
        majority = max(labels.count(label) for label in set(labels))
        return {"accuracy": sum(right) / len(right), "majority": majority / len(labels)}

    def predictions(self, predictor, head, corpus, **beside):
        for row in range(len(corpus)):
            pictures = [predictor.encode(Images(picture[None])) for picture in corpus.image(row)]
            logit = head.logits(predictor.system, pictures, Encoded(states={"last": torch.zeros(1, 1, 1)}))
            yield {"id": corpus.record(row).id, "label": int(logit > 0)}


class StatementHead(Head):
    """logit = line(fuse): weight as the system weighs the second picture, bias -30."""

    momentum = ("head.line",)
    teachers: ClassVar[dict[str, str]] = {"elder": "fuse"}

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)
        nn.init.constant_(self.line.bias, -30)

    def needs(self):
        return Needs(columns=("label",))

    def begin(self, system):
        with torch.no_grad():
            self.line.weight.copy_(system.weight[1:, None])

    def before_step(self, system, progress):
        self.teacher.update(system, progress.step)

    def logits(self, system, pictures, texts, line=None):
        mask = texts.state_mask if texts.state_mask is not None else torch.ones(len(texts), 1)
        fused = system.fuse(pictures, dataclasses.replace(texts, state_mask=mask)).pooled
        return (line or self.line)(fused)[:, 0]

    def losses(self, system, batch, progress):
        pictures, texts = (
            [system.encode_images(batch.images.part(k)) for k in range(2)],
            system.encode_texts(batch.texts),
        )
        logits, label = self.logits(system, pictures, texts), batch.columns["label"].float()
        with torch.no_grad():
            copy = self.logits(system, pictures, texts, self.teacher.head.line)
            elder = system.roles["elder"]
            asked = elder.fuse(pictures, texts).pooled[:, 0]
        terms = {
            "label": nn.functional.binary_cross_entropy_with_logits(logits, label),
            "copy": (logits - copy).square().mean(),
            "elder": (logits - asked).square().mean(),
        }
        return Losses(terms, {"index": batch.index})

    def after_step(self, system, keep, progress):
        self.stepped = keep["index"].tolist()


def learning() -> tuple[Pairs, Batch]:
    """A system that learns statements, as training makes it, and a batch of three."""
    system = Pairs()
    system.attach(Statement().head(system, None))
    system.head.begin(system)
    system.head.teacher.copy_student(system)
    elder = Pairs()
    with torch.no_grad():
        elder.weight.copy_(torch.tensor([10.0, 2.0]))
    system.roles = {"elder": elder.requires_grad_(False)}
    pictures = Images(flat([1, 2, 3, 4, 5, 6]), ints(0, 0, 1, 1, 2, 2))
    return system, batch(pictures, texts([[1], [2], [3, 4]]), 3, {"label": ints(1, 0, 1)})


def test_what_a_task_is_comes_from_the_training_split_and_its_rows_are_its_own():
    config = Statement().prepare(Statements(5))
    assert config == StatementConfig("test_contract", (False, True)), "a task is named as its file"
    rows = Statement(config).rows(Statements(4), "test")
    assert [rows.record(row).columns["label"] for row in range(4)] == [1, 0, 1, 0]
    assert can(Pairs, Statement)
    assert not can(Translator, Statement), "it cannot fuse"
    with pytest.raises(UserError, match="task retrieval has no head"):
        type("Other", (Task,), {"name": classmethod(lambda cls: "retrieval")})().head(Pairs(), None)


def test_a_head_s_losses_stand_in_the_place_of_the_system_s():
    system, b = learning()
    losses = system(b, START)
    logits = [12.1 - 30, 34.2 - 30, 56.7 - 30]
    label = (math.log1p(math.exp(17.9)) + math.log1p(math.exp(4.2)) + math.log1p(math.exp(-26.7))) / 3
    elder = sum((logit - fused) ** 2 for logit, fused in zip(logits, [14.1, 38.2, 62.7], strict=True)) / 3
    assert {name: float(term.detach()) for name, term in losses.terms.items()} == pytest.approx(
        {"label": label, "copy": 0.0, "elder": elder}, rel=1e-5
    )
    assert float(system(moved(b).select(ints(2, 0, 1)), START).total.detach()) == pytest.approx(label + elder, rel=1e-5)


def test_what_teaches_is_in_no_weights_and_takes_no_gradient():
    system, b = learning()
    system(b, START).total.backward()
    learnt = {name for name, parameter in system.named_parameters() if parameter.requires_grad}
    assert learnt == {"weight", "head.line.weight", "head.line.bias"}
    assert system.roles["elder"].weight.grad is None
    weights, own = checkpoint.parted(system)
    assert set(weights) == learnt
    assert set(own) == {"head.teacher.head.line.weight", "head.teacher.head.line.bias"}
    assert set(system.for_use().state_dict()) == learnt


def test_a_copy_of_the_head_s_own_part_follows_it():
    system, b = learning()
    stepped(system, [b])
    assert system.head.stepped == [10, 11, 12]
    line = [float(parameter.detach()) for parameter in system.head.line.parameters()]
    assert line == pytest.approx([1.25, -29.75], rel=1e-4)  # both are too small for the elder
    assert [float(p) for p in system.head.teacher.head.line.parameters()] == [1, -30]
    system.head.before_step(system, dataclasses.replace(START, step=1))
    followed = [float(p) for p in system.head.teacher.head.line.parameters()]
    assert followed == pytest.approx([1 + 9 / 11 * 0.25, -30 + 9 / 11 * 0.25], rel=1e-4)  # decay (1 + 1) / (10 + 1)


def test_a_task_is_measured_through_the_predictor_with_its_baseline():
    system, _ = learning()
    task = Statement(Statement().prepare(Statements(4)))
    predictor = Predictor(system, None, ("en",), None)
    rows = task.rows(Statements(5), "test")
    # fused 12, 34, 56, 78, 100 against 30: only the first is called false; true are 0, 2, 4
    assert [entry["label"] for entry in task.predictions(predictor, system.head, rows)] == [0, 1, 1, 1, 1]
    assert task.measure(predictor, system.head, rows) == {"accuracy": 2 / 5, "majority": 3 / 5}


# ---- MAX-VL: a report has sentences; each is held against the pictures of the batch


class Reports(System):
    """Section 4, the global-local term, over sentences that belong to their row by `owner`."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))

    @classmethod
    def needs(cls, config):
        return Needs(sentences=True)

    def encode_images(self, images):
        return Encoded(images.pixels.float()[:, 0, 0, :1])

    def encode_texts(self, texts):
        return Encoded(texts.ids[:, :1].float() / 10)

    def losses(self, encoded, batch, progress):
        pictures, sentences, owner = encoded["images"].pooled, encoded["texts"].pooled, batch.texts.owner
        similar = (sentences @ pictures.T / self.temperature).T  # [B, S]
        own = owner[None, :] == torch.arange(len(batch))[:, None]
        others = similar.masked_fill(own, -math.inf).exp().sum(1)
        each = [-(similar[b, s] - (similar[b, s].exp() + others[b]).log()) for s, b in enumerate(owner.tolist())]
        rows = [torch.stack([e for e, b in zip(each, owner, strict=True) if b == k]).mean() for k in owner.unique()]
        return Losses({"sentences": torch.stack(rows).mean()})


def by_hand(pictures: list[float], sentences: list[list[int]]) -> float:
    rows = []
    for b, own in enumerate(sentences):
        others = sum(math.exp(s / 10 * pictures[b]) for k, row in enumerate(sentences) if k != b for s in row)
        terms = [-math.log(math.exp(s / 10 * pictures[b]) / (math.exp(s / 10 * pictures[b]) + others)) for s in own]
        rows.append(sum(terms) / len(terms))
    return sum(rows) / len(rows)


def test_max_vl_sentences_belong_to_their_report():
    b = batch(Images(flat([1, -1, 2])), texts([[5], [7], [2], [9], [1], [4]], ints(0, 0, 1, 2, 2, 2)), 3)
    system = Reports()
    assert float(system(b, START).total.detach()) == pytest.approx(by_hand([1, -1, 2], [[5, 7], [2], [9, 1, 4]]))
    chosen = moved(b).select(ints(2, 0))
    assert chosen.texts.owner.tolist() == [0, 0, 0, 1, 1]
    assert chosen.texts.ids[:, 0].tolist() == [9, 1, 4, 5, 7]
    assert float(system(chosen, START).total.detach()) == pytest.approx(by_hand([2, 1], [[9, 1, 4], [5, 7]]))
    shuffled = b.select(ints(1, 2, 0))
    assert float(system(shuffled, START).total.detach()) == pytest.approx(float(system(b, START).total.detach()))


def test_a_row_without_a_text_keeps_its_place():
    words = texts([[5], [7], [2]], ints(0, 0, 2))
    assert words.select(ints(1, 2)).owner.tolist() == [1]
    assert words.select(ints(1, 2)).ids[:, 0].tolist() == [2]


# ---- what holds for all of them


def test_draws_belong_to_the_row_and_not_to_its_place():
    b = batch(None, texts([[5], [7], [2], [9]]), 4)
    drawn = START.uniform(b, 3, "masking")
    rows = ints(3, 1)
    assert torch.equal(START.uniform(b.select(rows), 3, "masking"), drawn[rows])
    assert torch.equal(torch.cat([START.uniform(part, 3, "masking") for part in b.split(2)]), drawn)
    for other in (
        START.uniform(b, 3, "negatives"),
        dataclasses.replace(START, step=4).uniform(b, 3, "masking"),
        dataclasses.replace(START, seed=1).uniform(b, 3, "masking"),
        START.uniform(dataclasses.replace(b, text_id=b.text_id + 1), 3, "masking"),
    ):
        assert (other != drawn).all()
    assert torch.equal(dataclasses.replace(START, step=3).uniform(b, 3, "masking"), drawn)


def test_ramp_reaches_its_value_after_its_epochs():
    ramps = [dataclasses.replace(START, step=s).ramp(0.4) for s in (0, 1, 3, 4, 7)]
    assert ramps == pytest.approx([0, 0.1, 0.3, 0.4, 0.4])
    assert dataclasses.replace(START, step=4).ramp(0.4, epochs=2) == pytest.approx(0.2)


def test_a_batch_that_does_not_split_evenly_is_refused():
    with pytest.raises(AssertionError, match="3 rows"):
        bagged().split(2)


# ---- and all of them go through the one step


def stepped(system: System, micro_batches: list[Batch]):
    config = TrainConfig(batch_size=2, lr=0.25, warmup=0.0, precision="float32", clip_norm=None, weight_decay=0.0)
    optimizer = optim.build_optimizer(system, config)
    return train_step(system, system, micro_batches, optimizer, optim.schedule(config, 8), START, config)


def nlvr() -> Batch:
    return batch(Images(flat([1, 2, 3, 4]), ints(0, 0, 1, 1)), texts([[1], [2]]), 2)


def report() -> Batch:
    return batch(Images(flat([1, -1, 2])), texts([[5], [7], [2], [9], [1], [4]], ints(0, 0, 1, 2, 2, 2)), 3)


def wrong_translation() -> Batch:
    return batch(None, texts([[5, 6], [8]]), 2, {"parallel": texts([[6, 6], [9]])})


@pytest.mark.parametrize(
    ("system", "batches", "loss", "parameter", "after"),
    [
        # the first step of Adam moves every weight by the rate, against the sign of its gradient
        (Flava, [flava_batches()["texts"]], 13.5, "scale", 1.75),
        (Flava, flava_batches()["texts"].split(2), 13.5, "scale", 1.75),
        (Flava, [flava_batches()["images"]], 14.0, "scale", 1.75),
        (Translator, [wrong_translation()], 1 / 3, "surprise", 0.75),
        (Bags, [bagged()], 54 / 3, "embed.weight", None),
        (Pairs, nlvr().split(2), (12.1 + 34.2) / 2, "weight", [9.75, 0.75]),
        (Reports, [report()], by_hand([1, -1, 2], [[5, 7], [2], [9, 1, 4]]), "temperature", None),
    ],
)
def test_every_sketch_takes_a_step(system, batches, loss, parameter, after):
    built = system()
    before = built.get_parameter(parameter).detach().clone()
    result = stepped(built, batches)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    now = built.get_parameter(parameter).detach()
    moved = (now - before).abs()
    assert float(moved.max()) == pytest.approx(0.25, rel=1e-3)
    if after is not None:
        assert now.tolist() == pytest.approx(after, rel=1e-4)


def test_bags_move_only_the_words_that_stand_in_one():
    system = Bags()
    stepped(system, [bagged()])
    words = torch.arange(12.0)
    want = [w - 0.25 if w in (5, 6, 7, 8, 9, 10) else w for w in words.tolist()]
    assert system.embed.weight[:, 0].tolist() == pytest.approx(want, rel=1e-4)


def test_what_a_step_keeps_comes_back_in_the_order_of_the_rows():
    angles = [0, 90, 12, 70]
    points = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a)), 0] for a in angles])
    b = batch(Images(points.view(4, 3, 1, 1)), texts([[a] for a in (1, 91, 13, 71)]), 4)
    system = Grit()
    stepped(system, b.split(2))
    (kept,) = system.seen
    assert kept["index"].tolist() == [10, 11, 12, 13]
    torch.testing.assert_close(kept["images"], points[:, :2])
    assert not kept["images"].requires_grad


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows():
    system = Flava()
    with torch.no_grad():
        system.scale.fill_(math.inf)
    with pytest.raises(UserError, match="masked_words") as caught:
        stepped(system, flava_batches()["texts"].split(2))
    assert float(system.scale.detach()) == math.inf
    assert "10, 11, 12, 13" in str(caught.value)
