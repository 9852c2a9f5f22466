"""The predictor against slow ways of the same: tokens by place, half precision of large states, what is kept."""

from pathlib import Path

import pytest
import torch

import tuwen
from tests.tasks.stub import DualStub, FusionStub, Numbers, Table, ready
from tuwen import predictor as predictors
from tuwen.data.batch import Images
from tuwen.data.spans import find_spans
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.systems.system import Reads

TOKENIZER = Tokenizer.train(["two red apples a dog 很大的猫和一条狗", *(f"a {k}" for k in range(200))] * 2, size=300)


class Phrases(DualStub):
    @classmethod
    def reads(cls, config):
        return Reads(spans=("phrase",))


def test_texts_come_once_each_with_their_place_and_little_padding():
    predictor = ready(DualStub(Table(None)), ("zh", "en"), TOKENIZER, length=32)
    captions = [f"{'a ' * (k * 7 % 11)}{k}" for k in range(200)]
    languages = ["en" if k % 2 else "zh" for k in range(200)]
    placed, padding = {}, 0
    for positions, texts in predictor.token_batches(captions, languages, batch_size=3):
        assert len(positions) == len(texts) <= 3
        padding += int((~texts.mask).sum())
        for k, position in enumerate(positions.tolist()):
            assert texts.language[k] == position % 2
            placed[position] = texts.ids[k][texts.mask[k]].tolist()
    assert sorted(placed) == list(range(200))
    for position, ids in placed.items():
        expected, mask = TOKENIZER.encode([captions[position]], 32)
        assert ids == expected[mask].tolist()
    assert padding < 200 * 4


def test_spans_are_those_of_the_batch_s_own_texts():
    predictor = ready(Phrases(Table(None)), ("en", "zh"), TOKENIZER, length=16)
    texts = ["two red apples", "很大的猫和一条狗", "a dog"]
    for places, batch in predictor.token_batches(texts, ["en", "zh", "en"], 2):
        expected = find_spans([texts[k] for k in places], TOKENIZER, 16, ("phrase",))
        assert torch.equal(batch.spans.id, expected.id)
        assert torch.equal(batch.spans.sequence, expected.sequence)


def test_languages_are_told_given_or_refused():
    predictor = ready(DualStub(Table(None)), ("en", "zh"), Numbers())
    assert predictor.tokens(["猫 1", "cat 2"]).language.tolist() == [1, 0]
    assert predictor.tokens(["猫 1", "cat 2"], "en").language.tolist() == [0, 0]
    assert predictor.tokens(["1", "2"], ["zh", "en"]).language.tolist() == [1, 0]
    with pytest.raises(UserError, match="no language 'fr' in this run; it has en, zh"):
        predictor.tokens(["1", "2"], ["en", "fr"])
    with pytest.raises(UserError, match=r"texts\[1\] is int"):
        predictor.tokens(["1", 2])
    with pytest.raises(UserError, match="this run has no languages"):
        ready(DualStub(Table(None)), (), Numbers()).tokens(["cat 1"])


class Huge(FusionStub):
    """Large states, of which one has numbers that half precision cannot hold."""

    def encode_images(self, images):
        rows = len(images.pixels)
        states = {"last": torch.rand(rows, 3), "huge": torch.full((rows, 3), 1e6)}
        return Encoded(torch.rand(rows, 3), states=states)


def test_large_states_are_kept_in_half_precision_and_matched_in_full(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Huge, "match", lambda self, images, texts: (seen.append(images), torch.zeros(len(images), 1))[1]
    )
    predictor = ready(Huge(Table(None)), ["en"])
    read = [Images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))]
    assert predictor.pictures(read, total=100).states["last"].dtype == torch.float32
    monkeypatch.setattr(predictors, "STATES_IN_FULL", 2400 - 1)  # two states of 3 numbers in 4 bytes, 100 rows
    assert predictor.pictures(read, total=99).states["last"].dtype == torch.float32
    kept = predictor.pictures(read, total=100)
    assert kept.states["last"].dtype == torch.float16
    assert kept.pooled.dtype == kept.states["huge"].dtype == torch.float32
    predictor.match(kept, Encoded(torch.zeros(2, 1)))
    assert {state.dtype for state in seen[0].states.values()} == {torch.float32}


def test_what_is_kept_is_named_and_no_rows_have_the_widths_of_some():
    read = [Images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))]
    assert not ready(DualStub(Table(None)), ["en"]).pictures(read).states  # no use where nothing matches
    predictor = ready(Huge(Table(None)), ["en"])
    assert list(predictor.pictures(read).states) == ["last", "huge"]
    assert list(predictor.pictures(read, ("states.huge",)).states) == ["huge"]
    assert predictor.pictures(read, ("states.huge",)).pooled is None
    none = predictor.pictures([])
    assert none.pooled.shape == none.states["last"].shape == (0, 3)


def test_no_one_else_brings_pictures_to_the_tower_s_square():
    """Outside data and training; an index compares its run's fit with its own before any model is loaded."""
    root = Path(tuwen.__file__).parent
    sources = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.py")}
    served = {name: text for name, text in sources.items() if not name.startswith(("data/", "training/"))}
    assert [name for name, text in served.items() if "resize(" in text] == []
    assert sorted(name for name, text in served.items() if "image.fit" in text) == ["predictor.py", "search/index.py"]
    callers = [name for name, text in served.items() if ".rerank(" in text and not name.startswith("systems/")]
    assert callers == ["predictor.py"]
