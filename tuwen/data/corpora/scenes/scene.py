"""Scenes: what stands where, as a pure function of (seed, index), and the picture drawn of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations

import numpy as np

from tuwen.data import draws
from tuwen.data.corpora.scenes.drawings import STYLES, sprite
from tuwen.data.corpora.scenes.things import COLOURS, COMMON, HELD_OUT, held_pair

SPLITS = ("train", "val", "test")
SPAN = 1 << 40  # scene index of row r of a split: SPAN * (position of the split) + r
SMALL, LARGE = (0.22, 0.25, 0.28), (0.40, 0.44, 0.48)  # longer side of a drawing, in sides of the picture
GROUNDS = ("plain", "down", "across", "grain", "stripes", "checks")
_SIXTH = 1 / 6


@dataclass(frozen=True)
class Object:
    """A thing in a scene: x, y its centre in 0..1 (x to the right, y down), size its longer side in 0..1."""

    thing: str
    x: float
    y: float
    size: float

    @property
    def large(self) -> bool:
        return self.size > 0.34


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Sizes are 0.22 to 0.28 (small) or 0.40 to 0.48 (large), nothing between.

    Between two objects the centres differ, along each axis, by at most 0.08 or by at least 0.126.
    held_out: "" as in training, "pair" with a pair of things training never shows, "concept" with such a thing.
    covered: objects over which a card lies. grey: whether the picture has no colours.
    """

    background: str
    ground: str
    style: str
    objects: tuple[Object, ...]
    held_out: str = ""
    tint: tuple[int, int, int] = (0, 0, 0)
    phase: int = 0
    covered: tuple[int, ...] = ()
    grey: bool = False

    def counts(self) -> dict[str, int]:
        """How many of each thing, in the order of first appearance."""
        counts: dict[str, int] = {}
        for item in self.objects:
            counts[item.thing] = counts.get(item.thing, 0) + 1
        return counts

    def as_json(self) -> dict:
        objects = [{"thing": o.thing, "x": o.x, "y": o.y, "size": o.size, "large": o.large} for o in self.objects]
        shown = {"background": self.background, "ground": self.ground, "style": self.style, "objects": objects}
        return shown | ({"covered": list(self.covered)} if self.covered else {}) | ({"grey": True} if self.grey else {})

    @classmethod
    def from_json(cls, data: Mapping) -> "Scene":
        objects = tuple(Object(o["thing"], o["x"], o["y"], o["size"]) for o in data["objects"])
        hidden = {"covered": tuple(data.get("covered", ())), "grey": data.get("grey", False)}
        return cls(data["background"], data["ground"], data["style"], objects, **hidden)


class Draws:
    """Uniform numbers in order, from the generator of (parts)."""

    def __init__(self, *parts: int | str):
        self._generator = draws.generator(*parts)
        self._numbers: list[float] = []

    def number(self) -> float:
        if not self._numbers:
            self._numbers = self._generator.random(64).tolist()
        return self._numbers.pop()

    def below(self, count: int) -> int:
        return int(self.number() * count)

    def choice(self, items):
        return items[self.below(len(items))]

    def chance(self, share: float) -> bool:
        return self.number() < share

    def sample(self, items, count: int) -> list:
        """`count` different items in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


def make_scene(seed: int, index: int, kinds: int = len(COMMON), most: int = 5) -> Scene:
    """Scene `index` of `seed`; the split is the index's range (SPAN).

    kinds: how many of the common things are drawn from, evenly over their list; most: objects a scene at most.
    """
    split = SPLITS[index // SPAN]
    draw = Draws("scene", seed, index)
    counts = [n for n in (1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5) if n <= most]
    count = draw.choice(counts)
    things, held_out = draw_things(draw, split, 1 + draw.below(min(count, 3)), common_of(kinds))
    count = max(count, len(things))
    everything = things + [draw.choice(things) for _ in range(count - len(things))]
    places = draw_places(draw, count)
    objects = tuple(Object(thing, *place) for thing, place in zip(everything, places, strict=True))
    tint = (draw.below(11) - 5, draw.below(11) - 5, draw.below(11) - 5)
    return Scene(
        draw.choice(tuple(COLOURS)), draw.choice(GROUNDS), draw.choice(STYLES), objects, held_out, tint, draw.below(64)
    )


def held_out_of(scene: Scene, split: str) -> str:
    """What a scene of a split shows that training never does: "concept", "pair" or ""."""
    if set(scene.counts()) & set(HELD_OUT.get(split, ())):
        return "concept"
    return "pair" if any(held_pair(a, b) == split for a, b in combinations(scene.counts(), 2)) else ""


@cache
def holds_pairs(split: str, kinds: int) -> bool:
    """Whether among so many kinds of things there are two that only this split may show together."""
    common = common_of(kinds)
    return any(held_pair(a, b) == split for k, a in enumerate(common) for b in common[:k])


def common_of(kinds: int) -> tuple[str, ...]:
    """So many of the common things, evenly over their list."""
    return tuple(COMMON[k * len(COMMON) // kinds] for k in range(kinds))


def draw_things(draw: Draws, split: str, count: int, common: Sequence[str]) -> tuple[list[str], str]:
    """Different things that may stand together in this split, and what is held out among them.

    Draws until some fit: where `holds_pairs` is false for val or test, none ever would.
    """
    share = draw.number() if split != "train" else 1.0
    held_out = "concept" if share < 0.1 else "pair" if share < 0.4 else ""
    if held_out == "pair":
        count = max(count, 2)
    while True:
        things = draw.sample(common, count)
        if held_out == "concept":
            things[0] = draw.choice(HELD_OUT[split])
        kinds = {held_pair(a, b) for k, a in enumerate(things) for b in things[:k]} - {""}
        if held_out == "pair" and kinds == {split}:
            return draw.sample(things, count), held_out
        if held_out != "pair" and not kinds:
            return draw.sample(things, count), held_out


def draw_places(draw: Draws, count: int) -> list[tuple[float, float, float]]:
    """(x, y, size) for each object: on a grid with little jitter, so that nothing overlaps and relations are clear."""
    if count == 1:
        size = draw.choice(SMALL + LARGE)
        return [(_inside(draw, size), _inside(draw, size), size)]
    if count < 5 and draw.chance(0.5):
        cells = draw.sample([(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], count)
        sizes = [draw.choice(LARGE if draw.chance(0.5) else SMALL) for _ in cells]
        return [
            (_jitter(draw, x, min(0.04, 0.25 - s / 2)), _jitter(draw, y, min(0.04, 0.25 - s / 2)), s)
            for (x, y), s in zip(cells, sizes, strict=True)
        ]
    free = [(x, y) for x in (0, 1, 2) for y in (0, 1, 2)]
    placed: list[tuple[float, float, float]] = []
    if draw.chance(0.6):  # one large object over two by two of the three by three cells
        left, top = draw.below(2), draw.below(2)
        free = [(x, y) for x, y in free if x not in (left, left + 1) or y not in (top, top + 1)]
        placed.append((_jitter(draw, (left + 1) / 3, 0.02), _jitter(draw, (top + 1) / 3, 0.02), draw.choice(LARGE)))
    for x, y in draw.sample(free, count - len(placed)):
        size = draw.choice(SMALL)
        placed.append((_jitter(draw, (2 * x + 1) * _SIXTH, 0.02), _jitter(draw, (2 * y + 1) * _SIXTH, 0.02), size))
    return draw.sample(placed, count)


def _inside(draw: Draws, size: float) -> float:
    return size / 2 + draw.number() * (1 - size)


def _jitter(draw: Draws, centre: float, reach: float) -> float:
    return centre + (2 * draw.number() - 1) * reach


def boxes(scene: Scene, side: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) in pixels of each object's visible drawing, in a picture of `side` pixels."""
    edges = []
    for item in scene.objects:
        height, width = sprite(item.thing, scene.style, round(item.size * side))[0].shape[:2]
        left = min(max(round(item.x * side - width / 2), 0), side - width)
        top = min(max(round(item.y * side - height / 2), 0), side - height)
        edges.append((left, top, left + width, top + height))
    return edges


def render(scene: Scene, side: int) -> np.ndarray:
    """[side, side, 3] uint8 RGB."""
    colour = np.array(COLOURS[scene.background][1:], dtype=np.int16) + np.array(scene.tint, dtype=np.int16)
    canvas = (_shade(scene.ground, side, scene.phase)[:, :, None] + colour).astype(np.uint8)
    for item, (left, top, right, bottom) in zip(scene.objects, boxes(scene, side), strict=True):
        colours, clear = sprite(item.thing, scene.style, round(item.size * side))
        under = canvas[top:bottom, left:right]
        canvas[top:bottom, left:right] = colours + (under * clear + 127) // 255
    for item in (scene.objects[k] for k in scene.covered):
        _lay_card(canvas, item)
    if scene.grey:
        canvas[:] = np.round(canvas @ np.array([0.299, 0.587, 0.114]))[:, :, None]
    return canvas


def _lay_card(canvas: np.ndarray, item: Object) -> None:
    """A dark card with a light edge over all of an object."""
    side = len(canvas)
    left, top, right, bottom = (
        min(max(round(side * edge), 0), side)
        for edge in (item.x - item.size / 2, item.y - item.size / 2, item.x + item.size / 2, item.y + item.size / 2)
    )
    edge = max(side // 64, 1)
    canvas[top:bottom, left:right] = 235
    canvas[top + edge : bottom - edge, left + edge : right - edge] = 40


@lru_cache(maxsize=512)
def _shade(ground: str, side: int, phase: int) -> np.ndarray:
    """[side, side] int16 in -18..18: how much lighter or darker the ground is at each place."""
    line = np.arange(side) / side
    if ground in ("down", "across"):
        ramp = np.round(36 * line - 18).astype(np.int16) * (1 if phase % 2 else -1)
        return np.broadcast_to(ramp[:, None] if ground == "down" else ramp, (side, side))
    if ground == "grain":
        return draws.generator("grain", side, phase).integers(-12, 13, (side, side)).astype(np.int16)
    if ground == "plain":
        return np.zeros((side, side), dtype=np.int16)
    period = 6 + phase % 8
    wave = np.where((line * period) % 1 < 0.5, 8, -8).astype(np.int16)
    return (
        np.broadcast_to(wave if phase < 32 else wave[:, None], (side, side))
        if ground == "stripes"
        else (wave[:, None] * wave // 8)
    )
