"""Scores of made texts against coco-caption's own scorers, sacrebleu called by itself, and values done by hand."""

import math
import random

import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from tuwen.tasks.text_metrics import bleu, caption_scores, caption_words, cider_d, rouge_l, translation_scores

ENGLISH = caption_words("a dog two cats on the red blue background with an apple, and there is one under it")
CHINESE = caption_words("红色背景上有一只猫和两条狗图中大")


def made(seed: int, words: list[str], pictures: int = 9) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Candidates near their references, of uneven lengths and numbers, one empty and one without a word in common."""
    draw = random.Random(seed)
    candidates, references = [], []
    for _ in range(pictures):
        several = [[draw.choice(words) for _ in range(draw.randint(1, 12))] for _ in range(draw.randint(1, 5))]
        candidate = [w if draw.random() < 0.7 else draw.choice(words) for w in draw.choice(several)]
        candidates.append(candidate[: draw.randint(1, 12)])
        references.append(several)
    candidates[0], candidates[1] = ["nothing"], candidates[1] * 3
    return candidates, references


@pytest.mark.parametrize("words", [ENGLISH, CHINESE], ids=["en", "zh"])
@pytest.mark.parametrize("seed", range(5))
def test_scores_are_coco_captions(seed, words):
    candidates, references = made(seed, words)
    theirs = {k: [" ".join(one)] for k, one in enumerate(candidates)}
    truth = {k: [" ".join(one) for one in several] for k, several in enumerate(references)}
    assert bleu(candidates, references) == pytest.approx(Bleu(4).compute_score(truth, theirs, verbose=0)[0], abs=1e-12)
    assert rouge_l(candidates, references) == pytest.approx(Rouge().compute_score(truth, theirs)[0], abs=1e-12)
    assert cider_d(candidates, references) == pytest.approx(Cider().compute_score(truth, theirs)[0], abs=1e-10)


def test_bleu_by_hand():
    """Precisions 5/6 and 3/5; the reference of closest length has 6 words, so no brevity."""
    candidate = ["a", "cat", "is", "on", "the", "mat"]
    references = [
        ["a", "cat", "sat", "on", "the", "mat"],
        ["there", "is", "a", "cat", "on", "the", "big", "red", "mat"],
    ]
    one, two = bleu([candidate], [references], 2)
    assert one == pytest.approx(6 / 6)  # "is" stands in the second reference
    assert two == pytest.approx(math.sqrt(1 * 3 / 5), rel=1e-6)  # a cat, on the, the mat
    (short,) = bleu([["a", "cat"]], [[["a", "cat", "sat"]]], 1)
    assert short == pytest.approx(math.exp(1 - 3 / 2), rel=1e-6)


def test_rouge_by_hand():
    """Common subsequence "a on the mat", of 6 and 5 words: precision 4/6, recall 4/5."""
    score = rouge_l([["a", "cat", "is", "on", "the", "mat"]], [[["a", "dog", "on", "the", "mat"]]])
    p, r, b = 4 / 6, 4 / 5, 1.2**2
    assert score == pytest.approx((1 + b) * p * r / (r + b * p))
    assert rouge_l([[]], [[["a"]]]) == 0


def test_cider_by_hand():
    """Two pictures; every word of one reference alone weighs log 2, so equal texts score 10, and a word of both 0."""
    references = [[["a", "b", "c", "d"]], [["e", "f", "g", "h"]]]
    assert cider_d([r[0] for r in references], references) == pytest.approx(10)
    assert cider_d([["e", "f", "g", "h"], ["a", "b", "c", "d"]], references) == 0
    # "a b" against "a b c d": cosines sqrt(2/4), sqrt(1/3), 0, 0; lengths differ by two
    half = (math.sqrt(2 / 4) + math.sqrt(1 / 3)) / 4 * math.exp(-4 / 72) * 10
    assert cider_d([["a", "b"], ["x"]], references) == pytest.approx(half / 2)
    common = [[["a"]], [["a"]]]
    assert cider_d([["a"], ["a"]], common) == 0


def test_words_in_both_scripts():
    assert caption_words("A man's T-shirt, red & (blue).") == ["a", "man's", "t-shirt", "red", "blue"]
    assert caption_words("한국어 문장") == ["한국어", "문장"]
    assert caption_words("图中有2只Ｃat，一只dog。") == ["图", "中", "有", "2", "只", "cat", "一", "只", "dog"]
    assert caption_words("café über naïve") == ["café", "über", "naïve"]
    assert caption_words(" … ") == []


def test_equal_captions_have_the_greatest_scores_and_case_and_punctuation_do_not_count():
    texts = ["一只黑色的狗在草地上跑。", "两个孩子在玩红色的球。", "a man rides a wave"]
    found = caption_scores([texts[0], texts[1].rstrip("。"), "A man, rides a wave!"], [[text] for text in texts])
    assert found == pytest.approx({"cider_d": 10, **{f"bleu_{k}": 1 for k in (1, 2, 3, 4)}, "rouge_l": 1}, rel=1e-6)


@pytest.mark.parametrize(
    ("language", "cut", "made", "reference"),
    [
        ("zh", "zh", "图中有一只猫", "图中有两只猫。"),
        ("zh-Hans", "zh", "图中有一只猫", "图中有两只猫。"),
        ("en", "13a", "a Dog, and two cats", "A dog and two cats."),
        ("de", "13a", "ein Hund und zwei Katzen", "Ein Hund und zwei große Katzen"),
        ("ja", "char", "猫が二匹います", "猫が三匹います"),
    ],
)
def test_translations_are_scored_by_sacrebleu(language, cut, made, reference):
    found = translation_scores([made], [reference], language)
    want = sacrebleu.corpus_bleu([made], [[reference]], lowercase=True, tokenize=cut).score
    assert found["bleu"] == want > 0
    assert found["chrf"] == sacrebleu.corpus_chrf([made.lower()], [[reference.lower()]]).score > 0
    assert f"tok:{cut}" in str(found["bleu_signature"])
    assert "case:lc" in str(found["bleu_signature"])
