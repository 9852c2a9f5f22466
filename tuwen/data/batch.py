"""What flows through everything: pictures, texts, and the batch that holds both with their identities.

Shape legend: B rows of the batch, P pictures, S sequences (texts), L tokens of the longest text, N spans.
All classes are frozen; `to` and `select` return new ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from tuwen.data.gather import gather

SOFTENING = 0.5  # NLIP's lambda (card, section 4.2)


def _map(value, function: Callable[[Tensor], Tensor]):
    """A value with the function applied to every tensor in it: a mapping or one of the classes below holds further."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if isinstance(value, (Images, Spans, Texts, Batch)):
        return replace(value, **{f.name: _map(getattr(value, f.name), function) for f in fields(value)})
    return value


def _move(value, device):
    return _map(value, lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class Images:
    """Pictures of a batch, uint8 until the device: their pixels, what was computed of them before, or both.

    pixels: [P, 3, H, W] uint8, or float already normalised; None where features stand for them.
    owner: [P] int64, row of the batch each picture belongs to; None: one a row, in order.
    views: further views a system asked for, by name, each [P, 3, h, w] in the same order.
    features: [P, N, W] float, tokens that a locked tower gave before, or regions that a detector found.
    boxes: [P, N, 4] x0, y0, x1, y1 in 0..1, where those regions are.
    feature_mask: [P, N] bool, True on real features, False on padding; None: all are real.
    seen: [P, 4] x0, y0, x1, y1 in 0..1, what the pixels show of the whole picture; None: all of it, or unknown.
    """

    pixels: Tensor | None = None
    owner: Tensor | None = None
    views: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    boxes: Tensor | None = None
    feature_mask: Tensor | None = None
    seen: Tensor | None = None

    def __len__(self) -> int:
        tensor = self.pixels if self.pixels is not None else self.features
        assert tensor is not None, "pictures without pixels and features"
        return tensor.shape[0]

    @property
    def device(self) -> torch.device:
        tensor = self.pixels if self.pixels is not None else self.features
        assert tensor is not None, "pictures without pixels and features"
        return tensor.device

    def to(self, device) -> "Images":
        return _move(self, device)

    def select(self, rows: Tensor) -> "Images":
        """The pictures of the given rows (int64 [R]), renumbered so that rows[k] becomes row k."""
        items, owner = (rows, None) if self.owner is None else _owned(self.owner, rows)
        return self._items(items, owner)

    def part(self, k: int) -> "Images":
        """The k-th picture of every row, in the rows' order; every row has as many pictures as any other."""
        if self.owner is None:
            assert k == 0, f"picture {k} of rows that have one"
            return self
        return self._items(places_of(self.owner)[:, k], None)

    def view(self, name: str) -> "Images":
        """A further view in the place of the pixels; features are not of it."""
        return Images(self.views[name], self.owner)

    def _items(self, items: Tensor, owner: Tensor | None) -> "Images":
        return replace(_map(replace(self, owner=None), lambda tensor: tensor[items]), owner=owner)


def places_of(owner: Tensor) -> Tensor:
    """[R, F] int64: where the pictures of each row stand, in their order, from the row each belongs to (int64 [P]).

    Every row has as many pictures as any other.
    """
    rows = int(owner.max()) + 1
    order = owner.sort(stable=True).indices
    counts = torch.bincount(owner, minlength=rows)
    assert bool((counts == counts[0]).all()), "rows of a batch differ in how many pictures they have"
    return order.view(rows, -1)


@dataclass(frozen=True)
class Spans:
    """Pieces of texts: words, phrases, entities, mentions. They may overlap.

    sequence: [N] int64, which sequence of `Texts` the span lies in.
    start, end: [N] int64, tokens start..end-1.
    id: [N] int64, identity of what it says (`tuwen.data.spans.span_id`): equal words, equal id.
    kind: [N] int64, index into `tuwen.data.spans.KINDS` (word, phrase, entity).
    """

    sequence: Tensor
    start: Tensor
    end: Tensor
    id: Tensor
    kind: Tensor

    def to(self, device) -> "Spans":
        return _move(self, device)

    def select(self, sequences: Tensor) -> "Spans":
        items, owner = _owned(self.sequence, sequences)
        return Spans(owner, self.start[items], self.end[items], self.id[items], self.kind[items])

    def of(self, kind: int) -> "Spans":
        """Those of one kind."""
        chosen = self.kind == kind
        return _map(self, lambda tensor: tensor[chosen])


@dataclass(frozen=True)
class Texts:
    """Token sequences of a batch.

    ids: [S, L] int64.
    mask: [S, L] bool, True on real tokens (special ones included), False on padding.
    language: [S] int64, index into the run's table of languages.
    owner: [S] int64, row of the batch each sequence belongs to; None: one a row, in order.
    spans: pieces of the sequences, where a system asked for them.
    """

    ids: Tensor
    mask: Tensor
    language: Tensor
    owner: Tensor | None = None
    spans: Spans | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device) -> "Texts":
        return _move(self, device)

    def select(self, rows: Tensor) -> "Texts":
        """The sequences of the given rows (int64 [R]), renumbered so that rows[k] becomes row k."""
        items, owner = (rows, None) if self.owner is None else _owned(self.owner, rows)
        spans = None if self.spans is None else self.spans.select(items)
        return Texts(self.ids[items], self.mask[items], self.language[items], owner, spans)


def same_pair(image_id: Tensor, text_id: Tensor, column_image_id: Tensor, column_text_id: Tensor) -> Tensor:
    """[B, N] bool: row and column show one picture or say one text; from identities [B] of rows and [N] of columns."""
    return (image_id[:, None] == column_image_id) | (text_id[:, None] == column_text_id)


def _owned(owner: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Items owned by `rows`, in the rows' order, and the place in `rows` of each one's owner."""
    place, item = torch.nonzero(rows[:, None] == owner[None, :], as_tuple=True)
    return item, place


@dataclass(frozen=True)
class Batch:
    """Rows of a corpus ready for a system. Identities travel with the data.

    images: None in a batch of texts alone; texts: None in a batch of pictures alone.
    image_id: [B] int64; equal ids are one picture, never each other's negative.
    text_id: [B] int64; equal ids are one text.
    index: [B] int64, row in the corpus that is shown, for noise estimates and reports of bad samples.
    columns: what a system asked the corpus for (noise, labels, parallel texts); tensors have B rows.
    source: what the whole batch was drawn from: "pairs", or "images" or "texts" alone, whose other identity is 0.
    sentences: those of each row's text, by `owner`, where a system asked for them.
    entry: [B] int64, what the order named, whatever row was shown in its place: a row of the corpus, or, where every
        text is an entry, a (picture, text). None: the rows themselves.
    """

    images: Images | None
    texts: Texts | None
    image_id: Tensor
    text_id: Tensor
    index: Tensor
    columns: Mapping[str, Tensor | Texts] = field(default_factory=dict)
    source: str = "pairs"
    sentences: Texts | None = None
    entry: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self):
        if self.entry is None:
            object.__setattr__(self, "entry", self.index)

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        return self.index.device

    def same(self) -> Tensor:
        """[B, N] bool: a row and one of all processes' rows show one picture or say one text.

        They are then never each other's negative. Works both ways: picture to text and text to picture.
        """
        return same_pair(self.image_id, self.text_id, gather(self.image_id), gather(self.text_id))

    def softening(self) -> Tensor | None:
        """[B] the share of a row's target in a contrast that is spread over all columns, half of how likely its text is
        wrong, where the run softens what is noisy (`data.noise`); else None."""
        noise = self.columns.get("noise")
        return SOFTENING * noise if isinstance(noise, Tensor) else None

    def same_here(self) -> Tensor:
        """[B, B] bool: `same` among this process's rows alone."""
        return same_pair(self.image_id, self.text_id, self.image_id, self.text_id)

    def to(self, device) -> "Batch":
        return _move(self, device)

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from which copies to a GPU run beside its work."""
        return _map(self, lambda tensor: tensor.pin_memory())

    def select(self, rows: Tensor) -> "Batch":
        """The given rows (int64 [R]) as a batch of their own."""
        return replace(self, **{f.name: _selected(getattr(self, f.name), rows) for f in fields(self)})

    def split(self, parts: int) -> list["Batch"]:
        """`parts` consecutive micro-batches of equal size (the batch must divide by `parts`)."""
        assert len(self) % parts == 0, f"{len(self)} rows do not split into {parts} equal micro-batches"
        return [self.select(rows) for rows in torch.arange(len(self), device=self.device).chunk(parts)]


def _selected(value, rows: Tensor):
    """What belongs to the given rows of a part of a batch."""
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Mapping):
        return {name: _selected(item, rows) for name, item in value.items()}
    return value.select(rows) if isinstance(value, (Images, Texts)) else value


def blank_images(side: int) -> Images:
    """One black picture of that side: what a system makes of it tells its shapes."""
    return Images(torch.zeros(1, 3, side, side, dtype=torch.uint8))


def blank_texts(token: int, length: int) -> Texts:
    """One text that says a token so many times, without spans."""
    ids, none = torch.full((1, length), token), torch.zeros(0, dtype=torch.int64)
    spans = Spans(none, none, none, none, none)
    return Texts(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), spans=spans)
