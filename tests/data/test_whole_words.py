"""Whole word masking: the tokens of a word are hidden together."""

import torch

from tuwen.data import draws
from tuwen.data.batch import Spans, Texts
from tuwen.data.text import Vocabulary, mask_words

WORDS = Vocabulary(size=50, pad=0, unknown=1, cls=2, sep=3, mask=4)


def spans(*places) -> Spans:
    sequence, start, end = (torch.tensor(column, dtype=torch.int64) for column in zip(*places, strict=True))
    return Spans(sequence, start, end, -torch.ones_like(start), torch.zeros_like(start))


def test_by_hand():
    texts = Texts(
        torch.tensor([[2, 7, 8, 9, 10, 3]] * 2), torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    )
    drawn = torch.full((2, 18), 0.5, dtype=torch.float64)
    drawn[0, 3] = 0.0  # whether, of the first token of the word 1..3 of the first text
    drawn[1, 3 * 3] = 0.0  # of token 3 of the second text, the middle of its word 2..4
    masked, labels = mask_words(texts, WORDS, drawn, words=spans((0, 1, 4), (1, 2, 5), (0, 5, 9)))
    assert masked.ids.tolist() == [[2, 4, 4, 4, 10, 3], [2, 7, 8, 9, 10, 3]]
    assert labels.tolist() == [[-100, 7, 8, 9, -100, -100], [-100] * 6]
    assert mask_words(texts, WORDS, drawn)[1].tolist()[1] == [-100, -100, -100, 9, -100, -100]


def test_words_are_whole_or_untouched_and_as_many_tokens_are_hidden():
    length, sequences = 62, 200
    texts = Texts(
        torch.randint(5, 50, (sequences, length)),
        torch.ones(sequences, length, dtype=torch.bool),
        torch.zeros(sequences, dtype=torch.int64),
    )
    places = [(s, start, start + 3) for s in range(sequences) for start in range(1, length - 2, 3)]
    drawn = draws.uniform(torch.arange(sequences), 3 * length, "whole words")
    _, labels = mask_words(texts, WORDS, drawn, 0.15, spans(*places))
    hidden = (labels != -100)[:, 1:61].reshape(sequences, 20, 3)
    assert (hidden.all(-1) == hidden.any(-1)).all()
    assert abs(float(hidden.double().mean()) - 0.15) < 0.02
