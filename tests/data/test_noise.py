"""What a loader and a page make of how likely each text is wrong."""

import re

import pytest
import torch

from tests.data.test_beside import loader, noisy
from tests.training.toy import Memory
from tuwen.data.beside import laid_over
from tuwen.data.corpus import all_texts
from tuwen.data.curate.suspects import suspects_of, write_suspects
from tuwen.errors import UserError


def test_weighing_passes_a_text_over_as_often_as_it_is_likely_wrong(tmp_path):
    corpus = Memory(40)
    beside = laid_over(corpus, [noisy(tmp_path / "noise", corpus, lambda row, place: 0.6 if row < 20 else 0.0)])
    batches = loader(beside, batch=40, noise="weight")
    own = torch.zeros(40)
    for epoch in range(60):
        batch = batches[epoch]
        own[batch.entry] += batch.index == batch.entry
    assert bool((own[20:] == 60).all())  # nothing that is right is passed over
    assert (
        abs(float(own[:20].mean()) / 60 - 0.4) < 4 * (0.4 * 0.6 / 1200) ** 0.5 + 0.02
    )  # or comes as its own substitute
    assert batches.skipped == {}  # nor is it broken


def test_weighing_draws_alike_in_every_process_and_needs_the_noise(tmp_path):
    corpus = Memory(8)
    beside = laid_over(corpus, [noisy(tmp_path / "noise", corpus, lambda row, place: row / 8)])
    one, other = (loader(beside, batch=8, noise="weight") for _ in range(2))
    halves = [other.load(0, rank, 2)[0].index for rank in range(2)]
    assert torch.equal(one[0].index, torch.cat(halves))
    with pytest.raises(UserError, match="lay a table of `tuwen data noise` beside the corpus"):
        loader(corpus, noise="weight")[0]


def test_where_all_is_wrong_it_is_told(tmp_path):
    corpus = Memory(8)
    beside = laid_over(corpus, [noisy(tmp_path / "noise", corpus, lambda row, place: 1.0)])
    with pytest.raises(UserError, match="its text is likely wrong"):
        loader(beside, noise="weight")[0]
    with pytest.raises(UserError, match="every text counts as wrong"):
        laid_over(corpus, [str(tmp_path / "noise")], "drop")


def test_the_page_shows_the_most_suspect_first_and_says_how_many(tmp_path):
    corpus = Memory(6)
    beside = laid_over(corpus, [noisy(tmp_path / "noise", corpus, lambda row, place: (row + place / 2) / 6)])
    assert len(list(suspects_of(beside))) == 12
    page = write_suspects(beside, tmp_path / "page.html", count=3).read_text(encoding="utf-8")
    assert re.findall(r"row (\d)</p>", page) == ["5", "5", "4"]
    assert re.findall(r'"id">(\d\.\d+) ', page) == ["0.917", "0.833", "0.750"]
    assert page.count("data:image/jpeg") == 3
    assert list(all_texts(corpus.record(5)))[1] in page
    assert "5 of 12 texts are likelier wrong than right; 45.8% expected" in page
