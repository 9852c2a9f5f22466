"""Generation, batched and cached, against one text at a time, read anew for each word, in plain Python."""

import functools
import itertools
import math

import pytest
import torch

from tests.nn.test_attention import numbers, shaken
from tuwen.data import draws
from tuwen.data.batch import Texts
from tuwen.data.text import Vocabulary
from tuwen.nn.decoder import CausalDecoder, Speaker
from tuwen.nn.generation import Generation, generate
from tuwen.nn.sizes import CrossEncoderConfig

WORDS = Vocabulary(size=9, pad=0, unknown=1, cls=2, sep=3, mask=4)
SPECIAL = {0, 1, 2, 4}
ROWS = 5


def decoder(seed: int, length: int = 7) -> CausalDecoder:
    model = shaken(CausalDecoder(CrossEncoderConfig(8, 2, 2), 6, WORDS.size, length, 2), seed).eval()
    with torch.no_grad():
        model.bias[WORDS.sep] += 2.0  # so that many a text ends
    return model


def speaker(model: CausalDecoder, cached: bool = True, rows: list[int] | None = None) -> Speaker:
    rows = list(range(ROWS)) if rows is None else rows
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 3, 2])[:, None]
    embedded = numbers(WORDS.size, 8, seed=9)
    return Speaker(
        model, embedded, torch.tensor([0, 1, 1, 0, 1])[rows], numbers(ROWS, 3, 6, seed=5)[rows], mask[rows], cached
    )


def texts_of(said) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(said.ids, said.mask, strict=True)]


@torch.no_grad()
def next_words(model: CausalDecoder, row: int, said: list[int]) -> list[float]:
    """Log probability of every next word, from scratch."""
    return speaker(model, False, [row]).log_probabilities(torch.tensor([said]))[0].tolist()


def may_say(word: int, said: list[int]) -> bool:
    return word not in SPECIAL and (word != WORDS.sep or len(said) > 1)


def slow_greedy(model, row: int, length: int, penalty: float) -> tuple[float, list[int]]:
    said, total = [WORDS.cls], 0.0
    while len(said) < length and said[-1] != WORDS.sep:
        log_p = next_words(model, row, said)
        word = max((w for w in range(WORDS.size) if may_say(w, said)), key=lambda w: log_p[w])
        said, total = [*said, word], total + log_p[word]
    return total / (len(said) - 1) ** penalty, said


def slow_beam(model, row: int, length: int, beams: int, penalty: float) -> tuple[float, list[int]]:
    live, ended = [(0.0, [WORDS.cls])], []
    while len(ended) < beams and len(live[0][1]) < length:
        further = []
        for total, said in live:
            log_p = next_words(model, row, said)
            further += [(total + log_p[w], [*said, w]) for w in range(WORDS.size) if may_say(w, said)]
        further = sorted(further, key=lambda item: -item[0])[: 2 * beams]
        ended += [(t / (len(s) - 1) ** penalty, s) for t, s in further[:beams] if s[-1] == WORDS.sep]
        live = [item for item in further if item[1][-1] != WORDS.sep][:beams]
    if len(ended) < beams:
        ended.append((live[0][0] / (len(live[0][1]) - 1) ** penalty, live[0][1]))
    return max([*ended, slow_greedy(model, row, length, penalty)], key=lambda item: item[0])


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "how", [Generation("greedy"), Generation("beam", 3), Generation("beam", 2, 0.0), Generation("nucleus")]
)
def test_cached_is_the_uncached_loop(seed, how):
    model = decoder(seed)
    fast, slow = (generate(speaker(model, cached), WORDS, how) for cached in (True, False))
    assert texts_of(fast) == texts_of(slow)
    torch.testing.assert_close(fast.score, slow.score, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("beams", "penalty"), [(1, 1.0), (2, 1.0), (3, 0.0), (5, 2.0)])
def test_beam_search_is_that_of_one_row_at_a_time(seed, beams, penalty):
    model = decoder(seed)
    said = generate(speaker(model), WORDS, Generation("beam", beams, penalty))
    for row, text in enumerate(texts_of(said)):
        score, want = slow_beam(model, row, 7, beams, penalty) if beams > 1 else slow_greedy(model, row, 7, penalty)
        assert text == want
        assert float(said.score[row]) == pytest.approx(score, abs=1e-5)


def test_some_texts_end_and_others_are_cut():
    ends = [
        text[-1] == WORDS.sep
        for seed in range(1, 7)
        for text in texts_of(generate(speaker(decoder(seed)), WORDS, Generation()))
    ]
    assert any(ends)
    assert not all(ends)


@pytest.mark.parametrize("seed", range(1, 7))
def test_one_beam_is_greedy_and_more_never_score_below_it(seed):
    model = decoder(seed)
    greedy = generate(speaker(model), WORDS, Generation("greedy"))
    assert texts_of(generate(speaker(model), WORDS, Generation("beam", 1))) == texts_of(greedy)
    for beams in (2, 5):
        assert (generate(speaker(model), WORDS, Generation("beam", beams)).score >= greedy.score).all()


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_all_beams_find_the_best_of_all_texts(penalty):
    model = decoder(2, length=4)
    usual = [w for w in range(WORDS.size) if w not in SPECIAL and w != WORDS.sep]
    every = [[*begin, WORDS.sep] for n in (1, 2) for begin in itertools.product(usual, repeat=n)]
    every += [list(begin) for begin in itertools.product(usual, repeat=3)]
    said = generate(speaker(model), WORDS, Generation("beam", 200, penalty))
    for row, text in enumerate(texts_of(said)):
        after = functools.cache(lambda begin, row=row: next_words(model, row, [WORDS.cls, *begin]))
        scores = [
            sum(after(tuple(words[:place]))[word] for place, word in enumerate(words)) / len(words) ** penalty
            for words in every
        ]
        best = max(range(len(every)), key=lambda k: scores[k])
        assert text == [WORDS.cls, *every[best]]
        assert float(said.score[row]) == pytest.approx(scores[best], abs=1e-5)


def test_the_score_is_the_likelihood_of_what_was_said():
    model = decoder(3)
    asked = speaker(model)
    said = generate(asked, WORDS, Generation("beam", 3, 1.0))
    fresh = speaker(model)
    told = Texts(said.ids, said.mask, fresh.language)
    likelihood = model.likelihood(told, fresh.memory, fresh.memory_mask, fresh.words)
    torch.testing.assert_close(likelihood / (said.mask.sum(1) - 1), said.score, rtol=0, atol=1e-5)


def test_rows_beside_and_their_order_change_nothing():
    model = decoder(4)
    keys = torch.tensor([11, 12, 13, 14, 15])
    for how in (Generation("greedy"), Generation("beam", 3), Generation("nucleus", seed=2)):
        together = texts_of(generate(speaker(model), WORDS, how, keys))
        order = [3, 1, 4, 0, 2]
        assert texts_of(generate(speaker(model, rows=order), WORDS, how, keys[order])) == [together[k] for k in order]
        assert [texts_of(generate(speaker(model, rows=[k]), WORDS, how, keys[[k]]))[0] for k in range(ROWS)] == together


@pytest.mark.parametrize(("top_p", "temperature"), [(0.6, 1.0), (0.9, 0.5), (1.0, 2.0)])
def test_the_nucleus_is_that_of_one_draw_at_a_time(top_p, temperature):
    model = decoder(5)
    how = Generation("nucleus", top_p=top_p, temperature=temperature, seed=4)
    said = texts_of(generate(speaker(model), WORDS, how))
    number = draws.uniform(torch.arange(ROWS), 7, 4, "nucleus").tolist()
    for row in range(ROWS):
        text = [WORDS.cls]
        while len(text) < 7 and text[-1] != WORDS.sep:
            log_p = next_words(model, row, text)
            p = {w: math.exp(log_p[w] / temperature) for w in range(WORDS.size) if may_say(w, text)}
            total, kept, mass = sum(p.values()), [], 0.0
            for word in sorted(p, key=lambda w: -p[w]):
                kept.append(word)
                mass += p[word] / total
                if mass >= top_p:
                    break
            left = number[row][len(text) - 1] * sum(p[w] for w in kept)
            for word in kept:
                left -= p[word]
                if left < 0:
                    break
            text.append(word)
        assert said[row] == text


def test_a_small_nucleus_is_greedy_and_seeds_differ():
    model = decoder(5)
    greedy = texts_of(generate(speaker(model), WORDS, Generation("greedy")))
    assert texts_of(generate(speaker(model), WORDS, Generation("nucleus", top_p=1e-6))) == greedy
    drawn = [texts_of(generate(speaker(model), WORDS, Generation("nucleus", top_p=1.0, seed=s))) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_most_cuts_a_text_and_no_text_is_empty():
    model = decoder(6)
    with torch.no_grad():
        model.bias[WORDS.sep] = 1e3  # would end at once
    assert all(len(text) == 3 for text in texts_of(generate(speaker(model), WORDS, Generation("beam", 3))))
    with torch.no_grad():
        model.bias[WORDS.sep] = -1e3  # would never end
    for how in (Generation("greedy", most=2), Generation("beam", 3, most=2)):
        assert all(len(text) == 4 for text in texts_of(generate(speaker(model), WORDS, how)))


@pytest.mark.parametrize(
    "options", [{"method": "best"}, {"beams": 0}, {"top_p": 0.0}, {"temperature": 0.0}, {"most": 0}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="must"):
        Generation(**options)
