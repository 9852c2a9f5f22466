"""The pace of hard negatives: by hand, inside its bounds, and the same after a stop."""

from itertools import pairwise

import torch

from tuwen.teachers.pace import AVERAGE, BAND, BOUND, Pace


def paced(gains, pace=None):
    pace = pace or Pace()
    path = []
    for gain in gains:
        pace.update(torch.full((4,), gain))
        path.append(float(pace.hardness))
    return path, pace


def test_a_head_that_learns_nothing_keeps_random_negatives():
    path, pace = paced([0.0, -0.2, 0.01] * 50)
    assert set(path) == {0.0}
    assert float(pace.average) < BAND[0]


def test_by_hand():
    """The average of constant gain 1 after n steps is 1 - 0.95^n: the band ends at 0.35 after 8.4 of them."""
    path, _ = paced([1.0] * 12)
    assert path[:8] == [0.0] * 8
    average = 1 - (1 - AVERAGE) ** 9
    assert abs(path[8] - 0.1 * (average - BAND[1])) < 1e-6
    assert all(after > before for before, after in pairwise(path[8:]))


def test_no_step_is_longer_than_its_bound_and_none_leaves_0_to_1():
    path, pace = paced([1.0] * 300)
    assert path[-1] == 1.0
    down, _ = paced([-3.0] * 300, pace)
    assert down[-1] == 0.0
    whole = [0.0, *path, *down]
    assert max(abs(b - a) for a, b in pairwise(whole)) <= BOUND + 1e-7


def test_within_the_band_nothing_moves():
    _, pace = paced([1.0] * 60)
    pace.average.fill_(0.3)
    before = float(pace.hardness)
    path, _ = paced([0.25, 0.3] * 20, pace)
    assert set(path) == {before}


def test_a_stop_in_the_middle_changes_nothing_and_a_fixed_hardness_stays():
    gains = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    whole, _ = paced(gains)
    _, half = paced(gains[:17])
    again = Pace()
    again.load_state_dict(half.state_dict())
    assert paced(gains[17:], again)[0] == whole[17:]
    assert set(paced(gains, Pace(fixed=1.0))[0]) == {1.0}
    assert whole[-1] > 0
