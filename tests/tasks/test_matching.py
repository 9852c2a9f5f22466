"""Matching: the area by hand, pairs by the corpus's own labels, drawn pairs that respect the truth."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tasks.stub import DualStub, FusionStub, Pairs, Table, ready
from tuwen import tasks
from tuwen.data.corpus import Relevance
from tuwen.errors import UserError
from tuwen.tasks.matching import Matching, _none_of, area, evaluate_matching, right_and_wrong_pairs


def test_card_check_5_area():
    scores, labels = np.array([0.9, 0.8, 0.3, 0.2]), np.array([1, 0, 1, 0])
    assert area(labels, scores) == 0.75
    assert area(labels, np.zeros(4)) == 0.5
    assert area(labels, np.exp(5 * scores) - 7) == 0.75
    above = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    assert area(labels, scores) == np.mean(above)
    with pytest.raises(UserError, match="one kind"):
        area(np.ones(3), np.arange(3.0))
    with pytest.raises(UserError, match="finite"):
        area(labels, np.array([1, 2, 3, np.nan]))


def labelled(labels):
    rows = [{"zh": [str(k)]} for k in range(len(labels))]
    return Pairs(rows, columns=[{"label": label} for label in labels])


def test_labelled_rows_are_judged_by_the_mean_probability_over_heads():
    """Log-odds of the two heads disagree: their mean would order the pairs otherwise than the mean probability."""
    log_odds = torch.zeros(4, 4, 2)
    log_odds[range(4), range(4)] = torch.tensor([[9.0, -20.0], [1.0, 1.0], [-1.0, -1.0], [-2.0, -2.0]])
    probability = log_odds[range(4), range(4)].sigmoid().mean(-1)  # 0.50, 0.73, 0.27, 0.12
    labels = [1, 0, 0, 0]
    found = evaluate_matching(ready(FusionStub(Table(None, log_odds)), ["zh"]), labelled(labels), batch_size=3)
    assert found["languages"]["zh"] == {"auc": area(np.array(labels), probability.numpy()), "pairs": 4, "right": 1}
    assert found["languages"]["zh"]["auc"] == pytest.approx(2 / 3)
    assert found["score"] == "match probability"


def test_one_area_over_the_whole_split_whatever_the_batch():
    generator = torch.Generator().manual_seed(0)
    table = Table(torch.randn(30, 30, generator=generator))
    labels = [k % 3 == 0 for k in range(30)]
    found = {
        evaluate_matching(ready(DualStub(table), ["zh"]), labelled(labels), batch_size=size)["languages"]["zh"]["auc"]
        for size in (1, 7, 30)
    }
    assert found == {area(np.array(labels), table.first.diagonal().numpy())}


def test_wrong_labels_are_named_by_row():
    with pytest.raises(UserError, match=r"row '2': label 'maybe'"):
        evaluate_matching(ready(DualStub(Table(torch.eye(3))), ["zh"]), labelled([1, 0, "maybe"]))


def test_drawn_pairs_are_half_right_by_the_truth_of_the_gallery():
    rows = [{"zh": [str(k), str(k + 100), "7"]} for k in range(10)]  # text 7 is right for every picture
    of = Pairs(rows)
    pairs = right_and_wrong_pairs(of, "zh", None)
    truth = of.gallery("zh").relevance
    position = {row: k for k, row in enumerate(of.gallery("zh").rows)}
    for row, text, label in zip(pairs.rows.tolist(), pairs.texts.tolist(), pairs.labels.tolist(), strict=True):
        assert (position[row] in truth.images_of(text)) == bool(label)
    assert pairs.labels.sum() * 2 == len(pairs.labels) == 20
    again = right_and_wrong_pairs(of, "zh", None)
    assert (again.texts == pairs.texts).all()
    assert (right_and_wrong_pairs(of, "zh", None, seed=1).texts != pairs.texts).any()
    fewer = right_and_wrong_pairs(of, "zh", 10)
    assert (fewer.texts == pairs.texts).all()


@settings(max_examples=200)
@given(st.sets(st.integers(0, 11), max_size=11), st.floats(0, 1, exclude_max=True))
def test_wrong_texts_are_drawn_evenly(right, draw):
    truth = Relevance.of(12, [sorted(right)])
    wrong = [text for text in range(12) if text not in right]
    assert _none_of(truth, 0, draw) == wrong[int(draw * len(wrong))]


def test_broken_pictures_leave_their_pairs_out():
    of = Pairs([{"zh": [str(k)]} for k in range(6)], broken={1, 2})
    found = evaluate_matching(ready(DualStub(Table(torch.eye(6))), of), of)
    assert found["languages"]["zh"] == {"auc": 1.0, "pairs": 8, "right": 4}
    assert found["broken"] == {"truncated": 2}


def test_the_registry_finds_tasks_by_exact_name():
    assert {"matching", "retrieval"} <= set(tasks.task_names())
    assert tasks.find_task("matching") is Matching
    with pytest.raises(UserError, match=r"no task called 'retreival'; there are retrieval, "):
        tasks.find_task("retreival")


def test_a_language_with_too_few_texts_leaves_the_others_measured():
    rows = [{"en": [str(k)], **({"zh": [str(k)]} if k == 0 else {})} for k in range(5)]
    found = evaluate_matching(ready(DualStub(Table(torch.eye(5))), ["en", "zh"]), Pairs(rows))
    assert found["languages"] == {"en": {"auc": 1.0, "pairs": 10, "right": 5}}  # the right text scores 1, the wrong 0
    assert found["note"] == "zh is not measured: corpus pairs, split test: no pairs in 'zh' to match"
    with pytest.raises(UserError, match="no pairs in 'zh'"):
        evaluate_matching(ready(DualStub(Table(torch.eye(5))), ["en", "zh"]), Pairs(rows), languages=["zh"])


def test_texts_in_no_told_language():
    rows = [{"und": [str(k)]} for k in range(3)]
    with pytest.raises(
        UserError, match=r"pairs is in und; the run was trained on en, ru; .* name the language, as .*ru"
    ):
        evaluate_matching(ready(DualStub(Table(torch.eye(3))), ["en", "ru"]), Pairs(rows))
