"""Clips in which a drawing moves, grows, shrinks, appears or is gone; the caption says which.

Every movement has its mirror image in time (left and right, growing and shrinking, appearing and disappearing), drawn
from the same places and sizes: a system that does not know the order of the frames cannot tell the two apart.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpora.scenes import drawings
from tuwen.data.corpora.scenes.language import chinese_amount, one
from tuwen.data.corpora.scenes.scene import GROUNDS, SPAN, SPLITS, Draws, Object, Scene, common_of, render
from tuwen.data.corpora.scenes.things import COLOURS, COMMON
from tuwen.data.corpus import Caption, Corpus, Record, Relevance
from tuwen.errors import UserError

VERSION = 1
COUNTS = {"train": 5000, "val": 200, "test": 200}
MOVEMENTS = {  # what is said in English, and in Chinese after the thing
    "left": ("moves to the left", "向左移动"),
    "right": ("moves to the right", "向右移动"),
    "up": ("moves up", "向上移动"),
    "down": ("moves down", "向下移动"),
    "growing": ("is growing", "越来越大"),
    "shrinking": ("is getting smaller", "越来越小"),
    "appearing": ("appears", "出现了"),
    "disappearing": ("disappears", "消失了"),
}


@dataclass(frozen=True)
class Movement:
    """One thing and how it moves: from `start` to `end` (x, y, size; None: not there)."""

    thing: str
    kind: str
    background: str
    ground: str
    style: str
    start: tuple[float, float, float] | None
    end: tuple[float, float, float] | None
    at: float  # share of the clip after which a thing appears or is gone

    def scene(self, time: float) -> Scene:
        """What is there at a time in 0..1."""
        if self.start is None or self.end is None:
            there = self.end if time >= self.at else self.start
        else:
            there = tuple(a + (b - a) * time for a, b in zip(self.start, self.end, strict=True))  # type: ignore[assignment]
        objects = () if there is None else (Object(self.thing, *there),)
        return Scene(self.background, self.ground, self.style, objects)


def make_movement(seed: int, index: int, things: Sequence[str]) -> Movement:
    """Clip `index` of `seed`."""
    draw = Draws("moving", seed, index)
    thing, kind = draw.choice(things), draw.choice(tuple(MOVEMENTS))
    background, ground, style = draw.choice(tuple(COLOURS)), draw.choice(GROUNDS), draw.choice(drawings.STYLES)
    size, large, path = 0.3, 0.55, 0.5
    near, far = 0.15 + draw.number() * (0.7 - path), 0.2 + draw.number() * 0.6  # along the way, across it
    low, high = (near, near + path)
    along: dict[str, tuple] = {
        "right": ((low, far, size), (high, far, size)),
        "down": ((far, low, size), (far, high, size)),
        "growing": ((0.3 + far / 2, 0.3 + low / 2, 0.2), (0.3 + far / 2, 0.3 + low / 2, large)),
        "appearing": (None, (0.15 + 0.7 * far, 0.15 + low, size)),
    }
    back = {"left": "right", "up": "down", "shrinking": "growing", "disappearing": "appearing"}
    start, end = along[kind] if kind in along else along[back[kind]][::-1]
    return Movement(thing, kind, background, ground, style, start, end, 0.3 + 0.4 * draw.number())


class Moving(Corpus):
    """Clip `row` is a pure function of (seed, split, row); an English and a Chinese caption each, with the ground.

    split: "train", "val" or "test". count: rows, by default 5000, 200 and 200. side: pixels. frames: pictures a clip.
    things: how many kinds of things there are.

    Columns: "movement", "thing", "background".

    Raises:
        UserError: an unknown split, or a number out of range.
    """

    name = "moving"
    notice = drawings.NOTICE
    languages = ("en", "zh")

    def __init__(
        self,
        split: str = "train",
        count: int | None = None,
        seed: int = 0,
        side: int = 64,
        frames: int = 6,
        things: int = 12,
    ):
        if split not in SPLITS:
            raise UserError(f"moving has no split {split!r}; it has {', '.join(SPLITS)}")
        self.split, self.seed, self.side, self.frames = split, seed, side, frames
        self.count = COUNTS[split] if count is None else count
        if not 0 <= self.count < SPAN or not 16 <= side <= 1024 or not 2 <= frames <= 64:
            raise UserError(
                f"moving: count={count}, side={side}, frames={frames}; "
                "count must be 0 or more, side 16 to 1024, frames 2 to 64"
            )
        if not 2 <= things <= len(COMMON):
            raise UserError(f"moving: things={things}; things: 2 to {len(COMMON)}")
        self.things = common_of(things)
        parts = (VERSION, drawings.versions(), seed, self.count, side, frames, split, things)
        self.fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self.count

    def movement(self, row: int) -> Movement:
        if not 0 <= row < self.count:
            raise IndexError(f"row {row} of {self.count}")
        return _made(self.seed, SPAN * SPLITS.index(self.split) + row, self.things)

    def record(self, row: int) -> Record:
        movement = self.movement(row)
        english, chinese = MOVEMENTS[movement.kind]
        colour = COLOURS[movement.background][0]
        texts = {
            "en": [f"{one(movement.thing)} {english} on {one(movement.background)} background"],
            "zh": [f"{colour}背景上，{chinese_amount(movement.thing, 1)}{chinese}"],
        }
        columns = {"movement": movement.kind, "thing": movement.thing, "background": movement.background}
        identity = draws.key("moving", self.seed, self.split, row)
        return Record(f"moving-{self.seed}-{self.split}-{row}", texts, identity, columns)

    def image(self, row: int) -> Tensor:
        """The picture in the middle of the clip."""
        return _picture(self.movement(row).scene(0.5), self.side)

    def clip(self, row: int) -> Tensor:
        moment = (np.arange(self.frames) + 0.5) / self.frames
        return torch.stack([_picture(self.movement(row).scene(float(time)), self.side) for time in moment])

    def relevance(self, rows: Sequence[int], texts: Sequence[Caption]) -> Relevance:
        """A caption belongs to every clip of the same thing that moves alike on the same ground."""
        movements = [self._key(row) for row in rows]
        places: dict[tuple[str, str, str], list[int]] = {}
        for position, what in enumerate(movements):
            places.setdefault(what, []).append(position)
        return Relevance.of(len(rows), [places.get(self._key(text.row), []) for text in texts])

    def _key(self, row: int) -> tuple[str, str, str]:
        movement = self.movement(row)
        return movement.thing, movement.kind, movement.background


def _picture(scene: Scene, side: int) -> Tensor:
    return torch.from_numpy(render(scene, side)).permute(2, 0, 1).contiguous()


@lru_cache(maxsize=4096)
def _made(seed: int, index: int, things: tuple[str, ...]) -> Movement:
    return make_movement(seed, index, things)
