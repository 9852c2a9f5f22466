"""Several sources in one run: which a step draws, whose rows come, one side alone, resuming, processes, languages."""

import json
import pickle
from collections import Counter

import pytest
import torch

from tests.data.test_loader import TOKENIZER, Memory, same
from tests.training import toy
from tuwen import systems
from tuwen.data import draws
from tuwen.data.corpora.texts import TextLines
from tuwen.data.corpus import BrokenImage, Corpus, Record
from tuwen.data.loader import DataConfig, Loader
from tuwen.data.open import open_corpus, splits_of
from tuwen.data.order import Order
from tuwen.data.sources import MixedLoader, Mixture, languages_of, make_loader
from tuwen.data.views import View
from tuwen.errors import UserError
from tuwen.systems.system import Losses, Needs, Reads, System
from tuwen.training.loop import resume, train

WEIGHTS = {"pairs": 0.7, "images": 0.15, "texts": 0.15}


class Words(Corpus):
    """Texts alone, one a row, some in a language the pairs do not have."""

    name, split, languages, fingerprint = "words", "train", ("ru", "zh"), "words"

    def __len__(self):
        return 9

    def record(self, row):
        return Record(f"w{row}", {"ru": [f"picture {row}"]} if row % 2 else {"zh": [f"图{row}"]}, image_id=row)

    def image(self, row):
        raise AssertionError("no picture is asked for")


class Silent(Memory):
    """Pictures alone."""

    name, languages = "silent", ()

    def record(self, row):
        return Record(f"s{row}", {}, image_id=5000 + row)


def make(corpora=None, weights=None, seed=5, batch_size=6, asked=None, **config):
    corpora = {"pairs": Memory()} | (corpora or {})
    asked = asked or Needs(sources=weights or WEIGHTS)
    config = DataConfig(**({"workers": 0} | config))
    return make_loader(corpora, TOKENIZER, config, Reads(), asked, batch_size, seed, 16, 16)


# ---- which source


def test_frequencies_follow_the_weights():
    """FLAVA's card, check 11: within 1.5 points over 10,000 steps."""
    mixture = Mixture(WEIGHTS, 3)
    counts = Counter(mixture.at(step)[0] for step in range(10_000))
    assert {name: count / 10_000 for name, count in counts.items()} == pytest.approx(WEIGHTS, abs=0.015)


def test_the_source_is_arithmetic_of_seed_and_step():
    steps = [0, 17, 4095, 4096, 9000]
    asked_late = Mixture(WEIGHTS, 3).at(9000)
    mixture = Mixture(WEIGHTS, 3)
    assert [mixture.at(step) for step in reversed(steps)] == [Mixture(WEIGHTS, 3).at(s) for s in reversed(steps)]
    assert mixture.at(9000) == asked_late
    other = Mixture(WEIGHTS, 4)
    assert [mixture.at(s)[0] for s in range(50)] != [other.at(s)[0] for s in range(50)]
    scaled = Mixture({name: 20 * weight for name, weight in WEIGHTS.items()}, 3)
    assert [mixture.at(s) for s in range(50)] == [scaled.at(s) for s in range(50)]


def test_steps_of_a_source_are_counted_one_by_one():
    mixture, seen = Mixture(WEIGHTS, 8), Counter()
    for step in range(9000):
        source, number = mixture.at(step)
        assert number == seen[source]
        seen[source] += 1


def test_a_slow_version_draws_the_same():
    for step in range(40):
        u = float(draws.uniform(torch.tensor([step]), 1, 3, "source"))
        want = "pairs" if u < 0.7 else "images" if u < 0.85 else "texts"
        assert Mixture(WEIGHTS, 3).at(step)[0] == want


def test_a_source_without_weight_is_never_drawn():
    assert {Mixture({"pairs": 0.0, "texts": 2.0}, 1).at(step)[0] for step in range(100)} == {"texts"}
    for weights in ({}, {"pairs": 0.0}, {"pairs": 1.0, "texts": -0.1}):
        with pytest.raises(UserError, match="weights of sources"):
            Mixture(weights, 0)


# ---- whose rows


def test_each_source_is_gone_through_as_if_alone():
    loader = make({"images": Silent(rows=14), "texts": Words()})
    assert isinstance(loader, MixedLoader)
    alone = Loader(Memory(), TOKENIZER, Order(23, 6, 5), DataConfig(workers=0), Reads(), Needs(), 5, 16, 16)
    rows = {"images": [], "texts": []}
    pair_steps = 0
    for step in range(60):
        batch = loader[step]
        if batch.source == "pairs":
            same(batch, alone[pair_steps])
            pair_steps += 1
        else:
            rows[batch.source].append(batch.index.tolist())
    for name, count in (("images", 14), ("texts", 9)):
        order = Order(count, 6, draws.key(5, name))
        assert rows[name] == [order.batch(k).tolist() for k in range(len(rows[name]))]
        assert len(rows[name]) > 3


def test_one_side_alone_holds_nothing_of_the_other():
    loader = make(
        {"images": Silent(rows=14, broken=(3,)), "texts": Words()},
        asked=Needs(sources=WEIGHTS, views={"codes": View(8)}, columns=("noise",)),
    )
    seen = {loader[step].source: loader[step] for step in range(40)}
    pictures, words, pairs = seen["images"], seen["texts"], seen["pairs"]
    assert pictures.texts is None
    assert pictures.images.views["codes"].shape[-1] == 8
    assert not pictures.text_id.any()
    assert pictures.image_id.tolist() == [5000 + row for row in pictures.index.tolist()]
    assert words.images is None
    assert not words.image_id.any()
    assert len(set(words.text_id.tolist())) == 6
    assert pictures.columns == words.columns == {}
    assert set(pairs.columns) == {"noise"}
    assert all(part.source == "texts" and len(part) == 3 for part in words.split(2))


def test_languages_of_all_sources_share_one_table():
    corpora = {"pairs": Memory(), "texts": Words()}
    assert languages_of(corpora) == ("zh", "en", "de", "ru")
    loader = make({"texts": Words()}, {"texts": 1.0})
    batch = loader[0]
    for row, language in zip(batch.index.tolist(), batch.texts.language.tolist(), strict=True):
        assert language == (3 if row % 2 else 0)
    only = make({"texts": Words()}, WEIGHTS, languages=("zh",))
    found = [only[step] for step in range(40)]
    assert {int(k) for batch in found if batch.texts is not None for k in batch.texts.language} == {0}


def test_sources_not_named_are_one_side_of_the_pairs():
    loader = make()
    assert {loader.loaders[name].corpus.name for name in WEIGHTS} == {"memory"}
    images = next(loader[step] for step in range(40) if loader[step].source == "images")
    assert images.texts is None
    assert loader.steps_per_epoch == round((23 // 6) / 0.7)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_change_nothing(workers):
    loader = make({"texts": Words()}, workers=workers)
    for step, batch in zip(range(3, 12), loader.run(3, 12), strict=True):
        same(batch, make({"texts": Words()})[step])
    halves = [make({"texts": Words()}, workers=workers).run(3, 12, rank, 2) for rank in (0, 1)]
    for step, parts in zip(range(3, 12), zip(*halves, strict=True), strict=True):
        whole = loader.load(step)[0]
        assert {part.source for part in parts} == {whole.source}
        assert torch.cat([part.index for part in parts]).tolist() == whole.index.tolist()
    copy = pickle.loads(pickle.dumps(loader))
    same(copy[5], loader[5])


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="source texts, corpus words: 9 rows do not fill a batch of 12"):
        make({"texts": Words()}, batch_size=12)
    with pytest.raises(UserError, match="does not learn from texts alone"):
        make({"texts": Words()}, asked=Needs())
    with pytest.raises(UserError, match="has no texts in zh"):
        make({"texts": Other()}, languages=("zh",))
    with pytest.raises(UserError, match="has no texts in xxx") as refusal:
        make({"texts": Other()}, languages=("x" * 100_000,))
    assert len(str(refusal.value)) < 1000
    with pytest.raises(ValueError, match="images and texts, got sounds"):
        DataConfig(sources={"sounds": "here"})


class Other(Words):
    languages = ("ru",)


# ---- a file of texts


def test_lines_of_a_file_are_a_corpus(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff一只狗\r\n\n  \na dog\nдом\n".encode())
    corpus = open_corpus(path, "train")
    assert splits_of(path) == ("train",)
    assert [dict(corpus.record(row).texts) for row in range(len(corpus))] == [
        {"zh": ["一只狗"]},
        {"en": ["a dog"]},
        {"und": ["дом"]},
    ]
    assert corpus.languages == ("en", "und", "zh")
    with pytest.raises(BrokenImage, match="texts alone"):
        corpus.image(0)
    before = corpus.fingerprint
    assert TextLines(path).fingerprint == before
    path.write_text("一只狗\na dog\nдом\n!\n")
    assert TextLines(path).fingerprint != before


def test_a_bad_file_of_texts_is_one_line_with_its_place(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes(b"a dog\n\xff\xfe\x00\n a cat\n")
    with pytest.raises(UserError, match=r"words\.txt:2: "):
        TextLines(path)
    kept = TextLines(path, on_bad="skip")
    assert [next(iter(kept.record(row).texts.values())) for row in range(len(kept))] == [["a dog"], ["a cat"]]
    assert len(kept.faults) == 1
    path.write_bytes(b"\n \n")
    with pytest.raises(UserError, match="no text in it"):
        TextLines(path)
    with pytest.raises(UserError, match="no split 'test'"):
        TextLines(path, "test")


# ---- a run


class Mixing(toy.Toy):
    """The toy on three sources; a step of one side alone pulls it to a corner."""

    @classmethod
    def needs(cls, config):
        return Needs(sources={"pairs": 2.0, "images": 1.0, "texts": 1.0})

    def encode(self, batch, progress):
        return super().encode(batch, progress) if batch.source == "pairs" else System.encode(self, batch, progress)

    def losses(self, encoded, batch, progress):
        if batch.source == "pairs":
            return super().losses(encoded, batch, progress)
        side = encoded[batch.source].pooled
        keep = {"images": side.detach(), "texts": side.detach(), "index": batch.index}
        keep["gain"] = self.gains(batch.index)
        return Losses({"corner": (1 - side[:, 0]).mean()}, keep)


@pytest.fixture
def mixing(monkeypatch):
    before = systems.find
    monkeypatch.setattr(systems, "find", lambda name: Mixing if name == "toy" else before(name))


def config(tmp_path, **changes):
    words = tmp_path / "words.txt"
    words.write_text("".join(f"red green {k}\n" for k in range(9)))
    return toy.config(data__sources={"texts": str(words)}, **changes)


def test_a_run_mixes_sources_and_resumes_exactly(tmp_path, mixing):
    whole = train(config(tmp_path), tmp_path / "whole", corpus=toy.Memory(), quiet=True)
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    kinds = ["corner" in line["losses"] for line in logged if "losses" in line]
    mixture = Mixture({"pairs": 2.0, "images": 1.0, "texts": 1.0}, 0)
    assert kinds == [mixture.at(step)[0] != "pairs" for step in range(13)]
    assert {True, False} == set(kinds)
    told = json.loads((whole / "provenance.json").read_text())
    assert told["sources"]["texts"]["rows"] == 9
    stopped = tmp_path / "stopped"

    def stop(trained, step):
        if step == 8:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, train__eval_every=4), stopped, stop, corpus=toy.Memory(), quiet=True)
    resume(stopped, corpus=toy.Memory(), quiet=True)
    assert (stopped / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_a_changed_source_stops_the_resume(tmp_path, mixing):
    def stop(trained, step):
        if step == 8:
            raise KeyboardInterrupt
        return {}

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path, train__eval_every=4), run, stop, corpus=toy.Memory(), quiet=True)
    (tmp_path / "words.txt").write_text("".join(f"blue {k}\n" for k in range(9)))
    with pytest.raises(UserError, match=r"words\.txt has changed since the run began"):
        resume(run, corpus=toy.Memory(), quiet=True)
