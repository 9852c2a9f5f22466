"""Frames of a row become one row: by hand, whatever the order frames lie in, and the order told where it is asked."""

import pytest
import torch

from tests.systems.common import units
from tuwen.data.batch import places_of
from tuwen.nn.clips import FrameOrder, merged
from tuwen.nn.encoded import Encoded


def frames() -> tuple[Encoded, torch.Tensor]:
    """Three frames each of two rows, mixed."""
    return Encoded(units(6, 4, 1), units(12, 4, 2).view(6, 2, 4)), torch.tensor([1, 0, 0, 1, 0, 1])


def test_places_keep_the_order_of_each_rows_frames():
    assert places_of(torch.tensor([1, 0, 0, 1, 0, 1])).tolist() == [[1, 2, 4], [0, 3, 5]]
    with pytest.raises(AssertionError, match="differ in how many"):
        places_of(torch.tensor([0, 0, 1]))


def test_by_hand():
    held, owner = frames()
    one = merged(held, owner)
    mean = held.pooled[[1, 2, 4]].mean(0)
    torch.testing.assert_close(one.pooled[0], mean / mean.norm())
    torch.testing.assert_close(one.tokens[1], held.pooled[[0, 3, 5]])
    all_ = merged(held, owner, "patches")
    torch.testing.assert_close(all_.tokens[0], held.tokens[[1, 2, 4]].flatten(0, 1))
    assert merged(held, None) is held


def test_one_frame_a_row_is_a_picture():
    held, _ = frames()
    one = merged(held, torch.arange(6), "patches")
    torch.testing.assert_close(one.pooled, held.pooled)
    torch.testing.assert_close(one.tokens, held.tokens)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    held, owner = frames()
    order = FrameOrder(4, 2, 1).double()
    for tokens in ("frame", "patches"):
        both = merged(held, owner, tokens, order)
        alone = merged(held.select(torch.tensor([0, 3, 5])), torch.zeros(3, dtype=torch.int64), tokens, order)
        torch.testing.assert_close(alone.pooled[0], both.pooled[1])
        torch.testing.assert_close(alone.tokens[0], both.tokens[1])


def test_the_order_of_frames_counts_where_layers_read_it_and_else_not():
    held, owner = frames()
    back = held.select(torch.arange(5, -1, -1)), owner.flip(0)
    torch.testing.assert_close(merged(held, owner).pooled, merged(*back).pooled)
    order = FrameOrder(4, 2, 1).double()
    apart = merged(held, owner, order=order).pooled - merged(*back, order=order).pooled
    assert apart.abs().max() > 1e-3


def test_frames_places_and_what_they_gain_weigh_alike():
    order, vectors = FrameOrder(4, 2, 1).double(), units(6, 4, 1).view(2, 3, 4)
    seen = []
    order.stack.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    gained = order(vectors) - vectors
    torch.testing.assert_close(gained.norm(dim=2), torch.ones(2, 3).double(), rtol=0, atol=1e-4)
    places = seen[0] / 2 - vectors  # sqrt(D) is 2
    torch.testing.assert_close(places.norm(dim=2), torch.ones(2, 3).double())
    torch.testing.assert_close(places[0], places[1])
