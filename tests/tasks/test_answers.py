"""Answers to questions: their one form, what they earn, what a training split decides; baselines that do not look."""

import math

import pytest
import torch

from tests.systems.common import build
from tuwen.tasks.answers import most_given, plain_answer, soft_targets, vqa_accuracy
from tuwen.tasks.blind import beginnings_of, by_beginning
from tuwen.tasks.heads import accuracy, binary_loss, label_loss, soft_loss
from tuwen.tasks.vqa import VQA


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ("The two dogs.", "2 dogs"),
        ("Isnt it?", "isn't it"),
        ("a", ""),
        ("black/white", "black white"),
        ("1,000 cars, red", "1000 cars red"),
        ("3.5", "3.5"),
        ("NONE", "0"),
        ("isn't", "isn t"),
        ("两 只 ", "两 只"),
    ],
)
def test_the_form_of_an_answer_is_the_official_one(said, form):
    assert plain_answer(said) == form


def official(answer: str, given: list[str]) -> float:
    """Leave one person out, ten times (the official evaluation's loop)."""
    marks = []
    for left in range(len(given)):
        others = given[:left] + given[left + 1 :]
        marks.append(min(1.0, sum(other == answer for other in others) / 3))
    return sum(marks) / len(marks)


@pytest.mark.parametrize("same", range(11))
def test_accuracy_is_the_mean_over_every_nine_of_ten(same):
    given = ["cat"] * same + [f"dog {k}" for k in range(10 - same)]
    assert vqa_accuracy("cat", given) == pytest.approx(official("cat", given))
    assert vqa_accuracy("the cat", given) == vqa_accuracy("cat", given)
    by_hand = {0: 0.0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0}
    assert vqa_accuracy("cat", given) == pytest.approx(by_hand.get(same, 1.0))


def test_of_another_number_of_answers_any_is_right():
    assert vqa_accuracy("two", ["2"]) == 1.0
    assert vqa_accuracy("table", ["chair", "a table"]) == 1.0
    assert vqa_accuracy("lamp", ["chair", "table"]) == 0.0
    assert vqa_accuracy("lamp", []) == 0.0


def test_known_answers_are_those_that_earn_most():
    rows = [["yes"] * 10, ["yes"] * 4 + ["no"] * 6, ["no"] * 2 + ["red"] * 8]
    assert soft_targets(rows[2]) == {"no": pytest.approx(0.6), "red": 1.0}
    assert most_given(rows, 10, 0.0) == ("yes", "no", "red")  # 2, 1.6, 1
    assert most_given(rows, 2, 0.0) == ("yes", "no")
    assert most_given(rows, 10, 1.5) == ("yes", "no")


def test_the_commonest_by_how_a_text_begins():
    texts = (
        ["How many cats?"] * 6 + ["How many dogs?"] * 5 + ["Is it red?"] * 8 + ["Why so?"] * 2 + ["图中有几只狗？"] * 5
    )
    classes = [2] * 6 + [3] * 5 + [0] * 5 + [1] * 3 + [4] * 2 + [5] * 5
    told = beginnings_of(texts, classes)
    assert by_beginning("how many cats are there?", told) == 2
    assert by_beginning("How many dogs are there?", told) == 3
    assert by_beginning("How many birds?", told) == 2  # six to five
    assert by_beginning("Is it blue?", told) == 0
    assert by_beginning("Why so?", told) == told[""]  # seen twice alone
    assert by_beginning("图中有几只猫？", told) == 5
    assert "how many cats" not in told  # says no more than "how many"
    assert len(told) < 8


def test_losses_of_a_choice_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.0, 0.0]])
    log_p = [x - math.log(sum(math.exp(y) for y in (2, 0, -1))) for x in (2, 0, -1)]
    assert float(soft_loss(logits, targets)) == pytest.approx(-(1.0 * log_p[0] + 0.6 * log_p[1]) / 1.6)
    assert float(soft_loss(logits[1:], targets[1:])) == 0.0
    assert float(label_loss(logits, torch.tensor([1, -1]))) == pytest.approx(-log_p[1])
    assert float(label_loss(logits, torch.tensor([-1, -1]))) == 0.0
    assert float(accuracy(logits, targets)) == pytest.approx(0.5)
    zero = torch.zeros(4, 3129)  # BridgeTower's card, check 8: whatever the targets
    assert float(binary_loss(zero, torch.rand(4, 3129))) == pytest.approx(3129 * math.log(2), rel=1e-6)
    by_hand = -(math.log(1 / (1 + math.exp(-2))) + 0.6 * math.log(0.5) + 0.4 * math.log(0.5))
    by_hand += math.log(1 + math.exp(-1)) + 3 * math.log(2)
    assert float(binary_loss(logits, targets)) == pytest.approx(by_hand / 2)


def test_the_paper_s_head_is_learnt_where_there_is_one():
    """BridgeTower tells each answer for itself, ERNIE-UniX2 has a line, CLIP the default on both vectors."""
    task = VQA(VQA.Config("vqa", answers=("yes", "no", "red")))
    kinds = {}
    for name in ("bridgetower", "ernie_unix2", "clip"):
        head = task.head(build(name), None)
        kinds[name] = type(head.layers).__name__, head.binary
    assert kinds == {
        "bridgetower": ("AnswerHead", True),
        "ernie_unix2": ("Linear", False),
        "clip": ("Sequential", False),
    }
    plain = VQA(VQA.Config("vqa", way="classes", answers=("yes", "no")))
    assert not plain.head(build("bridgetower"), None).binary
