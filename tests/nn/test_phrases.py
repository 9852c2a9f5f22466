"""Phrases as further tokens, and the guard that none gives a hidden word away, one phrase at a time."""

import torch

from tuwen.data import draws
from tuwen.data.batch import Spans, Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.phrases import corrupted, with_phrases

WORDS = Vocabulary(size=40, pad=0, unknown=1, cls=2, sep=3, mask=4)
ROWS = 50
LINES = [[2, 10, 11, 12, 13, 14, 3], [2, 20, 21, 3], [2, 30, 31, 32, 33, 3]]
#        text, start, end, id, kind; the first text's [1, 3) stands twice, as two kinds
SPANS = [(0, 1, 3, 7000, 1), (0, 1, 3, 7000, 2), (0, 4, 5, 7001, 2), (0, 2, 5, -8002, 1), (2, 1, 4, 9003, 1)]


def texts(spans=SPANS) -> Texts:
    ids = torch.tensor([line + [0] * (8 - len(line)) for line in LINES])
    table = torch.tensor(spans, dtype=torch.int64).reshape(-1, 5)
    return Texts(ids, ids != 0, torch.zeros(3, dtype=torch.int64), None, Spans(*table.unbind(1)))


def rows_of(both) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(both.ids, both.mask, strict=True)]


def test_phrases_stand_before_the_end_and_one_token_has_its_own_row():
    """MVPTR card, section 11, check 1: a phrase of one token is the row of that token."""
    both = with_phrases(texts(), WORDS, 5, ROWS)
    assert rows_of(both) == [
        [2, 10, 11, 12, 13, 14, 40 + 7000 % 50, 40 + -8002 % 50, 13, 3],
        [2, 20, 21, 3],
        [2, 30, 31, 32, 33, 40 + 9003 % 50, 3],
    ]
    assert both.count.tolist() == [3, 0, 1]
    shown, real = both.phrases_in(both.ids[..., None].float(), 4)
    assert shown[..., 0][real].tolist() == [40, 88, 13, 43]
    assert real.tolist() == [[True, True, True, False], [False] * 4, [True, False, False, False]]


def test_the_first_phrases_are_kept():
    both = with_phrases(texts(), WORDS, 2, ROWS)
    assert rows_of(both)[0] == [2, 10, 11, 12, 13, 14, 40, 88, 3]
    assert rows_of(both)[2] == [2, 30, 31, 32, 33, 43, 3]
    assert rows_of(with_phrases(texts([]), WORDS, 2, ROWS)) == LINES
    assert (
        rows_of(with_phrases(Texts(*(getattr(texts(), n) for n in ("ids", "mask", "language"))), WORDS, 2, 9)) == LINES
    )


def test_a_phrase_with_a_hidden_token_is_always_masked():
    """MVPTR card, section 11, check 3: token 3 of the first text lies in the second phrase alone, token 2 in two."""
    many = 4000
    for hidden, masked in ((3, {1}), (2, {0, 1}), (4, {1, 2}), (5, set())):
        both = with_phrases(texts().select(torch.arange(3).repeat(many)), WORDS, 3, ROWS)
        labels = torch.full((3 * many, 8), -100)
        labels[::3, hidden] = 9
        drawn = draws.uniform(torch.arange(many * 3), 9, "phrases").view(3 * many, 3, 3)
        found = corrupted(both, labels, drawn, WORDS, ROWS, 0.15).ids[::3, 6:9]
        for rank in range(3):
            share = (found[:, rank] == WORDS.mask).double().mean()
            assert share == 1 if rank in masked else abs(share - 0.12) < 0.02
            if rank not in masked:
                kept = (found[:, rank] == both.ids[0, 6 + rank]).double().mean()
                assert abs(kept - (0.85 + 0.015 + 0.015 / ROWS)) < 0.02
                others = found[:, rank][(found[:, rank] != WORDS.mask) & (found[:, rank] != both.ids[0, 6 + rank])]
                assert ((others >= 40) & (others < 90)).all()
                assert len(others) > 0


def test_corruption_leaves_words_and_other_texts_alone_and_follows_the_draws():
    both = with_phrases(texts(), WORDS, 3, ROWS)
    nothing = torch.full((3, 8), -100)
    drawn = torch.ones(3, 3, 3, dtype=torch.float64) * 0.999
    assert torch.equal(corrupted(both, nothing, drawn, WORDS, ROWS, 0.15).ids, both.ids)
    drawn[2, 0] = torch.tensor([0.1, 0.85, 0.5])  # chosen, another row, the 25th
    drawn[0, 2] = torch.tensor([0.1, 0.95, 0.5])  # chosen, stays
    found = corrupted(both, nothing, drawn, WORDS, ROWS, 0.15)
    assert rows_of(found) == [rows_of(both)[0], LINES[1], [2, 30, 31, 32, 33, 40 + 25, 3]]
