"""What captions claim, as small JSON values, and whether it is true of a scene.

A claim is one of
- {"all": [claim, ...]}            every one of them
- {"not": claim}
- {"count": [thing, n]}            "a cat" (n = 1): at least one; "two cats" (n > 1): exactly so many; "no cat" (n = 0)
- {"size": [thing, "large"]}       at least one such thing is large ("small": small)
- {"left_of": [a, b]}              some a stands left of some b: their centres differ by MARGIN or more across
- {"right_of"/"above"/"below": [a, b]}
- {"background": colour}
- {"total": n}                     exactly n things in all
- {"more": [a, b]}                 more of a than of b
A claim says nothing of what it leaves out: "a cat" is true of a cat beside a dog.

Claims over two scenes: {"both": claim}, {"one": claim} (exactly one of the two), {"together": [thing, n]} (exactly n
in the two), {"pictures": [claim, claim]} (the first of the first scene, the second of the second).
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from tuwen.data.corpora.scenes.scene import Object, Scene
from tuwen.data.corpora.scenes.things import COLOURS, INDEX
from tuwen.data.corpus import Relevance

MARGIN = 0.1  # of the picture's side; scenes leave differences between 0.08 and 0.126 out
Claim = Mapping
_AXIS = {"left_of": (0, -1), "right_of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, sign of (a - b)


def holds(claim: Claim, scene: Scene | Mapping) -> bool:
    """Whether the claim is true of the scene (a `Scene` or its JSON form), under the reading above.

    `Table` decides the same for many scenes at once.

    Raises:
        ValueError: the claim is of no known kind.
    """
    scene = scene if isinstance(scene, Scene) else Scene.from_json(scene)
    ((kind, what),) = claim.items()
    if kind == "all":
        return all(holds(part, scene) for part in what)
    if kind == "not":
        return not holds(what, scene)
    if kind == "count":
        count = scene.counts().get(what[0], 0)
        return count >= 1 if what[1] == 1 else count == what[1]
    if kind == "size":
        return any(item.thing == what[0] and item.large == (what[1] == "large") for item in scene.objects)
    if kind == "background":
        return scene.background == what
    if kind == "total":
        return len(scene.objects) == what
    if kind == "more":
        return scene.counts().get(what[0], 0) > scene.counts().get(what[1], 0)
    if kind in _AXIS:
        return any(stands(kind, a, b) for a in scene.objects for b in scene.objects if [a.thing, b.thing] == [*what])
    raise ValueError(f"unknown claim {kind!r}")


def stands(kind: str, a: Object, b: Object) -> bool:
    """Whether object a stands so to b: "left_of", "right_of", "above", "below"."""
    axis, sign = _AXIS[kind]
    return sign * ((a.x, a.y)[axis] - (b.x, b.y)[axis]) >= MARGIN


def holds_pair(claim: Claim, first: Scene | Mapping, second: Scene | Mapping) -> bool:
    """Whether a claim over two scenes is true of them, in this order."""
    ((kind, what),) = claim.items()
    if kind == "both":
        return holds(what, first) and holds(what, second)
    if kind == "one":
        return holds(what, first) != holds(what, second)
    if kind == "pictures":
        return holds(what[0], first) and holds(what[1], second)
    if kind == "together":
        scenes = [scene if isinstance(scene, Scene) else Scene.from_json(scene) for scene in (first, second)]
        return sum(scene.counts().get(what[0], 0) for scene in scenes) == what[1]
    raise ValueError(f"unknown claim over two scenes {kind!r}")


class Table:
    """What R scenes hold, as arrays, to decide a claim for all of them at once, as `holds` does for one."""

    def __init__(self, scenes: Sequence[Scene]):
        most = max((len(scene.objects) for scene in scenes), default=1)
        self.thing = np.full((len(scenes), most), -1, dtype=np.int16)  # -1: no object
        self.large = np.zeros((len(scenes), most), dtype=bool)
        self.centre = np.zeros((len(scenes), most, 2))
        self.colour = np.array([list(COLOURS).index(scene.background) for scene in scenes], dtype=np.int8)
        for row, scene in enumerate(scenes):
            for place, item in enumerate(scene.objects):
                self.thing[row, place] = INDEX[item.thing]
                self.large[row, place] = item.large
                self.centre[row, place] = item.x, item.y
        self.count = (self.thing[:, :, None] == np.arange(len(INDEX))).sum(axis=1, dtype=np.int8)
        self._known: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.thing)

    def holds(self, claim: Claim) -> np.ndarray:
        """[R] bool: of which scenes the claim is true. Parts shared by several claims are decided once."""
        key = json.dumps(claim)
        if key not in self._known:
            ((kind, what),) = claim.items()
            if kind == "all":
                parts = [self.holds(part) for part in what]
                return np.logical_and.reduce(parts) if parts else np.ones(len(self), dtype=bool)
            self._known[key] = self._decide(kind, what)
        return self._known[key]

    def _decide(self, kind: str, what) -> np.ndarray:
        if kind == "not":
            return ~self.holds(what)
        if kind == "count":
            count = self.count[:, INDEX[what[0]]]
            return count >= 1 if what[1] == 1 else count == what[1]
        if kind == "size":
            return ((self.thing == INDEX[what[0]]) & (self.large == (what[1] == "large"))).any(axis=1)
        if kind == "background":
            return self.colour == list(COLOURS).index(what)
        if kind == "total":
            return (self.thing >= 0).sum(axis=1) == what
        if kind == "more":
            return self.count[:, INDEX[what[0]]] > self.count[:, INDEX[what[1]]]
        if kind in _AXIS:
            return self._relation(what[0], what[1], *_AXIS[kind])
        raise ValueError(f"unknown claim {kind!r}")

    def _relation(self, a: str, b: str, axis: int, sign: int) -> np.ndarray:
        true = np.zeros(len(self), dtype=bool)
        rows = np.flatnonzero((self.count[:, INDEX[a]] > 0) & (self.count[:, INDEX[b]] > 0))
        place = self.centre[rows, :, axis]
        apart = sign * (place[:, :, None] - place[:, None, :]) >= MARGIN
        both = (self.thing[rows] == INDEX[a])[:, :, None] & (self.thing[rows] == INDEX[b])[:, None, :]
        true[rows] = (apart & both).any(axis=(1, 2))
        return true


def relevance(scenes: Sequence[Scene], claims: Sequence[Claim]) -> Relevance:
    """Of which scenes each claim is true, as a gallery's truth; equal claims are decided once."""
    table = Table(scenes)
    scenes_of: dict[str, np.ndarray] = {}
    for claim in claims:
        key = json.dumps(claim)
        if key not in scenes_of:
            scenes_of[key] = np.flatnonzero(table.holds(claim))
    images = [scenes_of[json.dumps(claim)] for claim in claims]
    start = np.cumsum([0, *(len(rows) for rows in images)], dtype=np.int64)
    return Relevance(len(scenes), start, np.concatenate([np.empty(0, dtype=np.int64), *images]))
