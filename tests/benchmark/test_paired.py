"""Paired differences against scipy, by hand, and in simulations whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from tuwen.benchmark import paired
from tuwen.benchmark.paired import by_picture, holm, paired_difference, seeds_interval, swapped_p
from tuwen.data import draws


def singles(gain):
    """Gains of queries that are each a picture of its own."""
    return [(np.asarray(gain, dtype=float), np.arange(len(gain)))]


def test_gains_are_summed_by_picture_whatever_the_order():
    gains = [(np.array([1.0, 2, 4]), np.array([5, 3, 5])), (np.array([10.0]), np.array([7]))]
    sums, counts = by_picture(gains)
    assert sums.tolist() == [[2, 0], [5, 0], [0, 10]]
    assert counts.tolist() == [[1, 0], [2, 0], [0, 1]]
    assert paired_difference(gains)["difference"] == pytest.approx((7 / 3 + 10) / 2)


@pytest.mark.parametrize(("won", "lost"), [(5, 1), (6, 6), (0, 3), (1, 0), (10, 2)])
def test_few_wins_and_losses_have_the_p_of_the_exact_sign_test(won, lost):
    gain = np.array([100.0] * won + [-100.0] * lost + [0.0] * 9)
    assert swapped_p(gain) == pytest.approx(stats.binomtest(won, won + lost).pvalue)


def test_unequal_gains_have_the_p_of_scipys_permutation_test():
    gain = draws.generator("few gains").normal(0.4, 1, 10)
    exact = stats.permutation_test((gain,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert swapped_p(gain) == pytest.approx(exact.pvalue)


def test_many_wins_and_losses_come_near_the_sign_test():
    gain = np.array([1.0] * 130 + [-1.0] * 100)
    exact = stats.binomtest(130, 230).pvalue
    assert swapped_p(gain) == pytest.approx(exact, abs=4 * (exact / paired.SWAPS) ** 0.5)
    assert swapped_p(-gain) == pytest.approx(exact, abs=4 * (exact / paired.SWAPS) ** 0.5)
    assert swapped_p(np.zeros(50)) == 1


def test_the_interval_is_scipys_bootstrap_within_its_chance():
    gain = draws.generator("gains").choice([-100.0, 0, 100], 300, p=[0.1, 0.6, 0.3])
    ours = paired_difference(singles(gain))
    theirs = stats.bootstrap((gain,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(0))
    interval = theirs.confidence_interval
    assert ours["interval"] == pytest.approx([interval.low, interval.high], abs=0.6)  # its error here is 3.8
    assert ours["detectable"] == pytest.approx((1.960 + 0.842) * theirs.standard_error, rel=0.06)
    swapped = paired_difference(singles(-gain))
    assert swapped["interval"] == pytest.approx([-ours["interval"][1], -ours["interval"][0]])
    assert swapped["p"] == ours["p"]
    assert paired_difference(singles(gain)) == ours  # nothing is drawn otherwise the second time


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_seeds_are_scipys_t_test_and_fewer_than_three_have_no_interval():
    values = [1.0, 2.5, 0.5, 3.0]
    test = stats.ttest_1samp(values, 0)
    ours = seeds_interval(values)
    assert ours["p"] == pytest.approx(test.pvalue)
    assert ours["interval"] == pytest.approx([*test.confidence_interval()])
    assert seeds_interval(values[:2]) == {"interval": None, "p": None}
    assert seeds_interval([0.0] * 3) == {"interval": [0, 0], "p": 1}


def simulated(study, pictures, texts, effect):
    """Gains of queries, `texts` a picture, whose difficulty is the picture's in good part; their mean is `effect`."""
    random = draws.generator("study", study)
    shared = random.choice([-50.0, 0, 50], pictures, p=[0.2, 0.6, 0.2])
    own = random.choice([-50.0, 0, 50], (pictures, texts), p=[0.2, 0.6, 0.2])
    return [((effect + shared[:, None] + own).ravel(), np.repeat(np.arange(pictures), texts))]


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    """Of 400 studies of 100 pictures with 5 texts; the binomial error of such a share is 1.1 points."""
    monkeypatch.setattr(paired, "RESAMPLES", 500)
    monkeypatch.setattr(paired, "SWAPS", 1)
    by_pictures, by_texts = [], []
    for study in range(400):
        gains = simulated(study, 100, 5, effect=8.0)
        low, high = paired_difference(gains)["interval"]
        by_pictures.append(low <= 8 <= high)
        if study < 60:
            low, high = paired_difference(singles(gains[0][0]))["interval"]
            by_texts.append(low <= 8 <= high)
    assert 0.92 <= np.mean(by_pictures) <= 0.975
    assert np.mean(by_texts) < 0.88  # as if texts of one picture knew nothing of each other: too narrow


@pytest.mark.slow  # half a minute
def test_false_differences_after_holm_are_one_family_in_twenty_at_most(monkeypatch):
    """Of 60 families of six comparisons without any difference; without Holm a quarter would have one."""
    monkeypatch.setattr(paired, "SWAPS", 399)
    families = [
        [swapped_p(by_picture(simulated(6 * family + k, 60, 1, 0.0))[0].sum(1)) for k in range(6)]
        for family in range(60)
    ]
    raw = np.mean([min(family) < 0.05 for family in families])
    corrected = np.mean([min(holm(family)) < 0.05 for family in families])
    assert corrected <= 0.05 + 2 * (0.05 * 0.95 / 60) ** 0.5
    assert raw > 0.1
