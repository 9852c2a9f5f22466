"""The corpus of scenes: pictures drawn on the fly, with captions whose truth is known for every picture."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tuwen.data import draws
from tuwen.data.corpora.scenes import drawings
from tuwen.data.corpora.scenes.asked import SceneExercises
from tuwen.data.corpora.scenes.balanced import MAKERS
from tuwen.data.corpora.scenes.kinds import OPEN_NAMES
from tuwen.data.corpora.scenes.language import captions, chinese_amount, one
from tuwen.data.corpora.scenes.probes import clustered, focal, shortened, twin
from tuwen.data.corpora.scenes.scene import SPAN, SPLITS, Draws, Scene, boxes, holds_pairs, make_scene, render
from tuwen.data.corpora.scenes.things import COMMON, OTHER_LANGUAGES, THINGS, foreign_name
from tuwen.data.corpora.scenes.truth import holds, relevance
from tuwen.data.corpus import Caption, Corpus, Record, Relevance
from tuwen.errors import UserError

VERSION = 2  # raise when the same (seed, index) gives another picture or text
PLAIN = (("mentioned", 0), ("dropped", 0.0), ("clusters", 1), ("twins", False), ("groups", False))
COUNTS = {"train": 20000, "val": 500, "test": 500}
_SEPARATORS = {"ja": "、", "ar": "، ", "fa": "، "}


class Columns(Mapping):
    """A row's columns, each computed when first read."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]):
        self._makers = makers
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers


class Scenes(Corpus):
    """Emoji drawings on coloured grounds; scene `row` is a pure function of (seed, split, row), whatever the count.

    split: "train", "val" or "test". The latter two hold some pairs of things, and a few things, that training never
        shows (column "held_out": "", "pair" or "concept").
    count: rows; by default 20000, 500 and 500.
    side: pixels of the square pictures.
    noise: share of rows whose captions are all wrong, taken from another scene (column "noisy").
    clicks: whether to simulate a search log (column "clicks": [impressions, clicks] a text; about 20 impressions,
        clicks Binomial with probability 0.6 for true captions and 0.1 for wrong ones).
    languages: "en" and "zh" have sentences; OTHER_LANGUAGES have a list of the things' names. A sequence, or one
        string joined by "+", or "all".
    things: how many kinds of things training shows; fewer are learnt sooner.
    objects: at most so many a scene.
    whole: captions name all that is there, so that hardly one is true of another scene of a batch.
    ambiguous: a column "ambiguous" too, the texts with words that leave open which thing is meant ("a bird", 鸟), as a
        translator is given them: the picture alone decides.
    mentioned: kinds of things that captions tell of, the rest of the picture going unmentioned; 0: as they come.
    dropped: share of the words (in Chinese, characters) that every text has lost.
    clusters: rows that show the same things, one after the other, in other places on other ground.
    twins: every second row is the one before with its things' places passed round, on another ground.
    groups: questions are of groups of things (is there any mammal?), which no caption names: in training by every other
        thing of a group, in val and test by the rest.

    Columns: "boxes" [x0, y0, x1, y1] in 0..1 of each object's visible pixels; "objects", each's phrase and box; "cls",
        names by language of the one kind of thing shown, null where there are several; "scene"; "tags", names by
        language;
        "claims", one a text in the texts' order over languages; "parallel", aligned sentences; "noisy"; "held_out".
    What is asked of scenes has pictures of its own: `exercises`.

    Raises:
        UserError: an unknown split or language, or a number out of range.
    """

    name = "scenes"
    truth = "scenes"  # which rule `relevance` follows, for built copies
    notice = drawings.NOTICE

    def __init__(
        self,
        split: str = "train",
        count: int | None = None,
        seed: int = 0,
        side: int = 128,
        noise: float = 0.0,
        clicks: bool = False,
        languages: str | Sequence[str] = ("en", "zh"),
        things: int = len(COMMON),
        objects: int = 5,
        whole: bool = False,
        ambiguous: bool = False,
        mentioned: int = 0,
        dropped: float = 0.0,
        clusters: int = 1,
        twins: bool = False,
        groups: bool = False,
    ):
        if split not in SPLITS:
            raise UserError(f"scenes has no split {split!r}; it has {', '.join(SPLITS)}")
        self.split, self.seed, self.side, self.noise, self.clicks = split, seed, side, noise, clicks
        self.count = COUNTS[split] if count is None else count
        if not 0 <= self.count < SPAN or not 16 <= side <= 2048 or not 0 <= noise <= 1:
            raise UserError(
                f"scenes: count={count}, side={side}, noise={noise}; "
                "count must be 0 or more, side 16 to 2048, noise 0 to 1"
            )
        if not 8 <= things <= len(COMMON) or not 2 <= objects <= 5:
            raise UserError(f"scenes: things={things}, objects={objects}; things: 8 to {len(COMMON)}, objects: 2 to 5")
        if split != "train" and not holds_pairs(split, things):
            raise UserError(f"scenes: things={things} leave no two for {split} alone; give another number of things")
        if ambiguous and noise:
            raise UserError("scenes: ambiguous texts of wrong captions make no sense; leave out noise or ambiguous")
        _check_probes(mentioned, dropped, clusters, groups, things)
        self.things, self.objects, self.whole, self.ambiguous = things, objects, whole, ambiguous
        self.mentioned, self.dropped, self.clusters, self.twins = mentioned, dropped, clusters, twins
        self.groups = groups
        probes = {"mentioned": mentioned, "dropped": dropped, "clusters": clusters, "twins": twins, "groups": groups}
        self.languages = _languages(languages)
        parts = (
            VERSION,
            drawings.versions(),
            seed,
            self.count,
            side,
            noise,
            split,
            clicks,
            self.languages,
            things,
            objects,
            whole,
            *(["ambiguous"] if ambiguous else []),
            *(probe for probe in probes.items() if probe not in PLAIN),
        )
        self.fingerprint = hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self.count

    def scene(self, row: int) -> Scene:
        """What row's picture shows."""
        index = self._index(row)
        if self.twins and row % 2:
            return twin(self._single(index - 1), self.seed, index)
        return self._single(index)

    def _single(self, index: int) -> Scene:
        if self.clusters > 1:
            return clustered(self.seed, index, self.clusters, self.things, self.objects)
        return _scene(self.seed, index, self.things, self.objects)

    def _told(self, index: int, scene: Scene) -> Scene:
        """What captions tell of."""
        return focal(scene, self.mentioned, self.seed, index) if self.mentioned else scene

    def image(self, row: int) -> Tensor:
        picture = torch.from_numpy(render(self.scene(row), self.side))
        return picture.permute(2, 0, 1).contiguous()

    def record(self, row: int) -> Record:
        index = self._index(row)
        scene = self.scene(row)
        noisy = self.noise > 0 and Draws("noise", self.seed, index).chance(self.noise)
        sentences = captions(Draws("captions", self.seed, index), self._told(index, scene), self.whole)
        sentences = self._wrong(index, scene) if noisy else sentences
        texts: dict[str, list[str]] = {}
        claims = []
        for language in self.languages:
            if language in ("en", "zh"):
                texts[language] = [words[language] for _, words in sentences]
                claims += [claim for claim, _ in sentences]
            else:
                shown = self._told(index, self._scene_of_names(index, scene) if noisy else scene)
                names = list(shown.counts())
                texts[language] = [_SEPARATORS.get(language, ", ").join(foreign_name(n, language) for n in names)]
                claims.append({"all": [{"count": [n, 1]} for n in names]})
        if self.dropped:
            texts = {
                language: [
                    shortened(text, language, self.dropped, self.seed, index, language, place)
                    for place, text in enumerate(own)
                ]
                for language, own in texts.items()
            }
        columns = self._columns(row, scene)
        columns["claims"] = lambda: claims
        columns["parallel"] = lambda: [words for _, words in sentences]
        columns["noisy"] = lambda: noisy
        if self.ambiguous:
            columns["ambiguous"] = lambda: self._ambiguous(index, scene, texts)
        if self.clicks:
            columns["clicks"] = lambda: self._clicks(index, [holds(claim, scene) for claim in claims])
        return Record(
            f"scenes-{self.seed}-{self.split}-{row}", texts, draws.key("scenes", self.seed, index), Columns(columns)
        )

    def exercises(self, kind: str) -> Corpus | None:
        if kind not in MAKERS:
            return None
        options = (self.split, self.count, self.seed, self.side, self.languages, self.things, self.objects)
        return SceneExercises("groups" if self.groups and kind == "questions" else kind, *options)

    def relevance(self, rows: Sequence[int], texts: Sequence[Caption]) -> Relevance:
        """A text belongs to every scene of which what it says is true."""
        claims: dict[int, list] = {}
        for text in texts:
            if text.row not in claims:
                claims[text.row] = self.record(text.row).columns["claims"]
        return relevance([self.scene(row) for row in rows], [claims[text.row][text.place] for text in texts])

    def _index(self, row: int) -> int:
        if not 0 <= row < self.count:
            raise IndexError(f"row {row} of {self.count}")
        return SPAN * SPLITS.index(self.split) + row

    def _columns(self, row: int, scene: Scene) -> dict[str, Callable[[], Any]]:
        return {
            "boxes": lambda: self._edges(scene),
            "objects": lambda: objects_of([item.thing for item in scene.objects], self._edges(scene)),
            "cls": lambda: class_of([item.thing for item in scene.objects], self.languages),
            "scene": scene.as_json,
            "tags": lambda: _tags(scene, self.languages),
            "held_out": lambda: scene.held_out,
        }

    def _edges(self, scene: Scene) -> list[list[float]]:
        return [[edge / self.side for edge in box] for box in boxes(scene, self.side)]

    def _ambiguous(self, index: int, scene: Scene, texts: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """The same texts with names that leave open which thing is meant; lists of names stay as they are."""
        sentences = captions(Draws("captions", self.seed, index), self._told(index, scene), self.whole, OPEN_NAMES)
        return {k: [words[k] for _, words in sentences] if k in ("en", "zh") else list(v) for k, v in texts.items()}

    def _wrong(self, index: int, scene: Scene):
        """Captions of the first other scene, in a drawn order, that are all false of this one."""
        draw = Draws("wrong captions", self.seed, index)
        while True:
            sentences = captions(draw, self._told(index, self._other(draw, index)), self.whole)
            if not any(holds(claim, scene) for claim, _ in sentences):
                return sentences

    def _scene_of_names(self, index: int, scene: Scene) -> Scene:
        draw = Draws("wrong names", self.seed, index)
        while True:
            other = self._other(draw, index)
            if set(other.counts()) - set(scene.counts()):
                return other

    def _other(self, draw: Draws, index: int) -> Scene:
        start = index - index % SPAN
        return make_scene(self.seed, start + draw.below(1 << 30), self.things, self.objects)

    def _clicks(self, index: int, true: Sequence[bool]) -> list[list[int]]:
        draw = Draws("clicks", self.seed, index)
        clicks = []
        for right in true:
            impressions = 15 + draw.below(11)
            clicks.append([impressions, sum(draw.chance(0.6 if right else 0.1) for _ in range(impressions))])
        return clicks


def _check_probes(mentioned: int, dropped: float, clusters: int, groups: bool, things: int) -> None:
    if not 0 <= mentioned <= 5 or not 0 <= dropped < 1 or not 1 <= clusters < SPAN:
        raise UserError(
            f"scenes: mentioned={mentioned}, dropped={dropped}, clusters={clusters}; mentioned must be 0 to 5, "
            "dropped 0 to 1 (1 excluded), clusters 1 or more"
        )
    if groups and things < 16:
        raise UserError(f"scenes: things={things} are too few for groups of several; give 16 or more with groups")


@lru_cache(maxsize=4096)
def _scene(seed: int, index: int, things: int, objects: int) -> Scene:
    return make_scene(seed, index, things, objects)


def objects_of(things: Sequence[str], edges: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """What `tuwen.data.grounding` reads: the phrase of each thing, by language, and its box."""
    phrases = ({"en": one(name), "zh": chinese_amount(name, 1)} for name in things)
    return [{"phrase": phrase, "box": list(box)} for phrase, box in zip(phrases, edges, strict=True)]


def class_of(things: Sequence[str], languages: Sequence[str]) -> dict[str, str] | None:
    """What `tuwen.data.classes` reads: the one kind of thing shown, as it is called in each language."""
    if len(set(things)) != 1:
        return None
    name = things[0]
    foreign = {language: foreign_name(name, language) for language in languages if language in OTHER_LANGUAGES}
    return {"en": THINGS[name].name, "zh": THINGS[name].chinese} | foreign


def older(columns: Mapping[str, Any], languages: Sequence[str]) -> dict[str, Any]:
    """The columns of a row, with those that copies built before there were "objects" and "cls" lack."""
    things = [item["thing"] for item in columns["scene"]["objects"]]
    return {"objects": objects_of(things, columns["boxes"]), "cls": class_of(things, languages), **columns}


def _tags(scene: Scene, languages: Sequence[str]) -> dict[str, list[str]]:
    """The names of the things of a scene, each once, by language."""
    names = list(scene.counts())
    own = {"en": names, "zh": [THINGS[name].chinese for name in names]}
    return {language: own.get(language) or [foreign_name(n, language) for n in names] for language in languages}


def _languages(names: str | Sequence[str]) -> tuple[str, ...]:
    known = ("en", "zh", *OTHER_LANGUAGES)
    chosen = known if names == "all" else tuple(names.split("+") if isinstance(names, str) else names)
    for language in chosen:
        if language not in known:
            raise UserError(f"scenes has no language {language!r}; it has {', '.join(known)}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"scenes: languages={names!r} must name each language once")
    return chosen
