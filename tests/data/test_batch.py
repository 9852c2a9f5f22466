"""Batches select, split, move and keep their identities."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuwen.data.batch import Batch, Images, Spans, Texts


def spans(*rows) -> Spans:
    """Spans of (sequence, start, end, id, kind)."""
    return Spans(*torch.tensor(rows).reshape(-1, 5).T)


def texts(count: int, owner=None, held: Spans | None = None) -> Texts:
    """Sequence k is filled with k."""
    ids = torch.arange(count)[:, None].expand(count, 3).clone()
    owner = None if owner is None else torch.tensor(owner)
    return Texts(ids, torch.ones(count, 3, dtype=torch.bool), torch.arange(count) % 2, owner, held)


def batch(owner=(0, 0, 1, 2, 2, 2, 3), pictures=(0, 1, 1, 2, 3)) -> Batch:
    pixels = torch.arange(len(pictures), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).clone()
    number = torch.arange(len(pictures))[:, None, None]
    images = Images(
        pixels,
        torch.tensor(pictures),
        {"second": pixels + 100},
        features=number.expand(-1, 2, 3) + 0.5,
        boxes=number.expand(-1, 2, 4) + 0.25,
        feature_mask=number[:, 0] >= torch.tensor([0, 2]),
    )
    held = texts(len(owner), owner, spans((0, 0, 1, 7, 0), (3, 0, 2, 8, 1), (3, 1, 3, 9, 1)))
    rows = torch.arange(4)
    columns = {"noise": rows / 10, "parallel": texts(4)}
    pieces = texts(len(owner), owner)
    return Batch(images, held, 100 + rows, 200 + rows, 300 + rows, columns, "x", pieces, 400 + rows)


def slow_owned(owner, rows):
    """(item, place in rows) by loops."""
    return [(item, place) for place, row in enumerate(rows) for item, o in enumerate(owner) if o == row]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_select_takes_everything_its_rows_own(rows):
    whole = batch()
    part = whole.select(torch.tensor(rows))
    assert part.index.tolist() == [300 + r for r in rows]
    assert part.entry.tolist() == [400 + r for r in rows]
    assert part.image_id.tolist() == [100 + r for r in rows]
    assert part.text_id.tolist() == [200 + r for r in rows]
    assert part.columns["noise"].tolist() == whole.columns["noise"][rows].tolist()
    assert part.columns["parallel"].ids[:, 0].tolist() == rows
    assert part.source == "x"
    expected = slow_owned(whole.texts.owner.tolist(), rows)
    for found in (part.texts, part.sentences):
        assert found.ids[:, 0].tolist() == [item for item, _ in expected]
        assert found.owner.tolist() == [place for _, place in expected]
        assert found.language.tolist() == [item % 2 for item, _ in expected]
    pictures = slow_owned(whole.images.owner.tolist(), rows)
    assert part.images.pixels[:, 0, 0, 0].tolist() == [item for item, _ in pictures]
    assert part.images.views["second"][:, 0, 0, 0].tolist() == [item + 100 for item, _ in pictures]
    assert part.images.owner.tolist() == [place for _, place in pictures]
    assert part.images.features[:, 0, 0].tolist() == [item + 0.5 for item, _ in pictures]
    assert part.images.boxes[:, 1, 3].tolist() == [item + 0.25 for item, _ in pictures]
    assert part.images.feature_mask.tolist() == [[True, item >= 2] for item, _ in pictures]
    held = [(0, 0, 1, 7, 0), (3, 0, 2, 8, 1), (3, 1, 3, 9, 1)]
    again = [(s, *span[1:]) for s, (item, _) in enumerate(expected) for span in held if span[0] == item]
    fields = [getattr(part.texts.spans, f.name).tolist() for f in dataclasses.fields(Spans)]
    assert list(zip(*fields, strict=True)) == again


def test_select_of_one_a_row_keeps_owner_unset():
    part = texts(4, held=spans((2, 0, 1, 5, 0))).select(torch.tensor([2, 0, 2]))
    assert part.owner is None
    assert part.ids[:, 0].tolist() == [2, 0, 2]
    assert part.spans.sequence.tolist() == [0, 2]
    images = Images(torch.arange(4)[:, None, None, None], views={"v": torch.arange(4)[:, None]})
    assert images.select(torch.tensor([3, 1])).views["v"].flatten().tolist() == [3, 1]


def test_split_is_select_of_consecutive_rows():
    whole = batch()
    parts = whole.split(2)
    assert [p.index.tolist() for p in parts] == [[300, 301], [302, 303]]
    assert [p.texts.ids[:, 0].tolist() for p in parts] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [p.texts.owner.tolist() for p in parts] == [[0, 0, 1], [0, 0, 0, 1]]
    with pytest.raises(AssertionError, match="4 rows do not split into 3"):
        whole.split(3)


def test_one_modality_alone():
    rows = torch.arange(2)
    alone = Batch(None, texts(2), rows, rows, rows)
    assert alone.select(torch.tensor([1])).images is None
    assert alone.to("cpu").images is None
    assert Batch(Images(torch.zeros(2, 3, 1, 1)), None, rows, rows, rows).split(2)[1].texts is None
    assert alone.entry.tolist() == [0, 1]  # the rows themselves, where nothing else is said


def test_to_moves_every_tensor():
    """The meta device holds no values, so a tensor left behind shows."""

    def places(value):
        if isinstance(value, torch.Tensor):
            return [value.device.type]
        if dataclasses.is_dataclass(value):
            value = vars(value)
        return [p for item in value.values() for p in places(item)] if isinstance(value, dict) else []

    whole = batch()
    moved = whole.to("meta")
    assert places(whole) == ["cpu"] * len(places(moved))
    assert places(moved) == ["meta"] * 27
    assert moved.source == "x"
    assert moved.device.type == "meta"


def test_a_view_takes_the_place_of_the_pixels():
    second = batch().images.view("second")
    assert second.pixels[:, 0, 0, 0].tolist() == [100, 101, 102, 103, 104]
    assert second.owner.tolist() == [0, 1, 1, 2, 3]
    assert not second.views
    assert second.features is None, "features are of the picture itself"


def test_features_without_pixels():
    images = Images(features=torch.arange(3.0)[:, None, None], owner=torch.tensor([1, 0, 1]))
    assert len(images) == 3
    assert images.select(torch.tensor([1])).features.flatten().tolist() == [0, 2]
    assert images.device.type == "cpu"
    with pytest.raises(AssertionError, match="without pixels and features"):
        len(Images())


def test_the_k_th_picture_of_every_row():
    pixels = torch.arange(6)[:, None, None, None]
    images = Images(pixels, torch.tensor([1, 0, 2, 0, 1, 2]), {"plain": pixels + 10})
    for k, expected in ((0, [1, 0, 2]), (1, [3, 4, 5])):
        assert images.part(k).pixels.flatten().tolist() == expected
        assert images.part(k).views["plain"].flatten().tolist() == [e + 10 for e in expected]
        assert images.part(k).owner is None
    alone = Images(pixels)
    assert alone.part(0) is alone
    with pytest.raises(AssertionError, match="picture 1 of rows that have one"):
        alone.part(1)
    with pytest.raises(AssertionError, match="differ in how many"):
        Images(pixels[:3], torch.tensor([0, 0, 1])).part(0)


def test_same_is_one_picture_or_one_text():
    """Two texts of a picture, and a text of two pictures: each other's positives, both ways."""
    rows = torch.arange(4)
    four = Batch(None, None, torch.tensor([7, 8, 7, 9]), torch.tensor([1, 2, 3, 2]), rows)
    right = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert four.same().int().tolist() == right
    assert four.same_here().int().tolist() == right
