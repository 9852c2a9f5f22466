"""What is asked of scenes, so that neither the words alone nor, mostly, the picture alone tell the answer.

Exercises come in groups over a few scenes drawn for them. A question is asked of two scenes with different answers,
drawn evenly from the kind's answers whatever the words say. Of two statements and two pictures each is true once and
false once, so whoever sees the words alone, or the pictures alone, is right half of the time, exactly. A hypothesis
is entailed by one scene, contradicted by one, and left open by a third: a card lies over something there, or the
picture is grey. Two phrases name two objects of one picture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, islice
from typing import Any

from tuwen.data.corpora.scenes.language import RELATIONS, Sentence, changed, chinese_amount, one, sentence
from tuwen.data.corpora.scenes.pairs import PAIR_MAKERS
from tuwen.data.corpora.scenes.scene import GROUNDS, STYLES, Draws, Object, Scene, draw_places, draw_things, held_out_of
from tuwen.data.corpora.scenes.things import COLOURS, THINGS, groups, held_pair
from tuwen.data.corpora.scenes.truth import holds, holds_pair, stands

Words = Mapping[str, str]  # "en", "zh"
YES, NO = {"en": "yes", "zh": "是"}, {"en": "no", "zh": "否"}
LARGE, SMALL = {"en": "large", "zh": "大"}, {"en": "small", "zh": "小"}
_SIDES = {
    "left_of": {"en": "left", "zh": "左边"},
    "right_of": {"en": "right", "zh": "右边"},
    "above": {"en": "above", "zh": "上方"},
    "below": {"en": "below", "zh": "下方"},
}
_OPPOSITE = {"left_of": "right_of", "right_of": "left_of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class World:
    """What scenes may show: things of a split, and so many objects at most."""

    split: str
    common: tuple[str, ...]
    most: int

    def names(self, draw: Draws, count: int) -> list[str]:
        """At least `count` different things that may stand together, in random order."""
        return draw_things(draw, self.split, count, self.common)[0]

    def allows(self, scene: Scene) -> bool:
        """Whether no two things stand together that this split must not show."""
        shown = {held_pair(a, b) for a, b in combinations(scene.counts(), 2)}
        return shown <= ({""} if self.split == "train" else {"", self.split})

    def scene(self, draw: Draws) -> Scene:
        """Any scene."""
        names = self.names(draw, 1 + draw.below(min(self.most, 3)))[: self.most]
        count = max(len(names), 1 + draw.below(self.most))
        return compose(draw, [*names, *(draw.choice(names) for _ in range(count - len(names)))])


@dataclass(frozen=True)
class Exercise:
    """pictures: of the group's scenes. answer: words, 1 or 0, a label, or the number of an object. claim: if any."""

    kind: str
    pictures: tuple[int, ...]
    words: Words
    answer: Any
    claim: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Group:
    scenes: tuple[Scene, ...]
    exercises: tuple[Exercise, ...]


Maker = Callable[[Draws, World], Group | None]  # None: these draws led nowhere; draw again


def compose(draw: Draws, things: Sequence[str]) -> Scene:
    """Those things at places, on a ground, in a style."""
    objects = tuple(Object(thing, *place) for thing, place in zip(things, draw_places(draw, len(things)), strict=True))
    tint = (draw.below(11) - 5, draw.below(11) - 5, draw.below(11) - 5)
    colour, ground, style = draw.choice(tuple(COLOURS)), draw.choice(GROUNDS), draw.choice(STYLES)
    return Scene(colour, ground, style, objects, tint=tint, phase=draw.below(64))


def until(draw: Draws, things: Sequence[str], fits: Callable[[Scene], bool]) -> Scene | None:
    """A scene of those things that fits; None if forty do not."""
    scenes = (compose(draw, things) for _ in range(40))
    return next((scene for scene in scenes if fits(scene)), None)


# ---- questions


def _asked(kind: str, words: Words, scenes: Sequence[Scene | None], answers: Sequence[Words]) -> Group | None:
    if None in scenes:
        return None
    exercises = (Exercise(kind, (k,), words, answer) for k, answer in enumerate(answers))
    return Group(tuple(scene for scene in scenes if scene), tuple(exercises))


def ask_presence(draw: Draws, world: World) -> Group | None:
    asked, *rest = world.names(draw, 2 + draw.below(2))
    scenes = []
    for names in ([asked], []):
        count = 1 + draw.below(world.most)
        scenes.append(compose(draw, [*names, *(draw.choice(rest) for _ in range(count - len(names)))]))
    words = {"en": f"Is there {one(asked)} in the picture?", "zh": f"图中有{THINGS[asked].chinese}吗？"}
    return _asked("presence", words, scenes, (YES, NO))


def ask_count(draw: Draws, world: World) -> Group | None:
    asked, *rest = world.names(draw, 2)
    numbers = draw.sample(range(1, min(world.most, 4) + 1), 2)
    scenes = []
    for number in numbers:
        others = draw.below(world.most - number + 1)
        scenes.append(compose(draw, [asked] * number + [draw.choice(rest) for _ in range(others)]))
    thing = THINGS[asked]
    words = {"en": f"How many {thing.plural} are there?", "zh": f"图中有几{thing.measure}{thing.chinese}？"}
    return _asked("count", words, scenes, [{"en": str(n), "zh": str(n)} for n in numbers])


def ask_total(draw: Draws, world: World) -> Group | None:
    names = world.names(draw, 1 + draw.below(2))
    numbers = draw.sample(range(1, world.most + 1), 2)
    scenes = [compose(draw, [draw.choice(names) for _ in range(number)]) for number in numbers]
    words = {"en": "How many things are in the picture?", "zh": "图中一共有几样东西？"}
    return _asked("total", words, scenes, [{"en": str(n), "zh": str(n)} for n in numbers])


def ask_colour(draw: Draws, world: World) -> Group | None:
    colours = draw.sample(tuple(COLOURS), 2)
    scenes = [replace(world.scene(draw), background=name) for name in colours]
    words = {"en": "What color is the background?", "zh": "背景是什么颜色的？"}
    return _asked("color", words, scenes, [{"en": name, "zh": COLOURS[name][0]} for name in colours])


def ask_size(draw: Draws, world: World) -> Group | None:
    asked, *rest = world.names(draw, 2)
    scenes = []
    for fits in (lambda scene: scene.objects[0].large, lambda scene: not scene.objects[0].large):
        things = [asked, *(draw.choice(rest) for _ in range(draw.below(min(world.most, 4))))]
        scenes.append(until(draw, things, fits))
    words = {"en": f"Is the {asked} large or small?", "zh": f"图中的{THINGS[asked].chinese}是大还是小？"}
    return _asked("size", words, scenes, (LARGE, SMALL))


def _first_two(kind: str, scene: Scene) -> bool:
    return stands(kind, scene.objects[0], scene.objects[1])


def ask_place(draw: Draws, world: World) -> Group | None:
    asked, other, *rest = world.names(draw, 3)
    kinds = ("left_of", "right_of") if draw.chance(0.5) else ("above", "below")
    scenes = []
    for kind in kinds:
        things = [asked, other, *(draw.choice(rest) for _ in range(draw.below(world.most - 1)))]
        scenes.append(until(draw, things, partial(_first_two, kind)))
    either = "to the left or to the right of" if kinds[0] == "left_of" else "above or below"
    a, b, c, d = THINGS[asked].chinese, THINGS[other].chinese, *(_SIDES[kind]["zh"] for kind in kinds)
    words = {"en": f"Is the {asked} {either} the {other}?", "zh": f"{a}在{b}的{c}还是{d}？"}
    return _asked("place", words, scenes, [_SIDES[kind] for kind in kinds])


def ask_what(draw: Draws, world: World) -> Group | None:
    centre, first, second, *_ = world.names(draw, 3)
    kind = draw.choice(tuple(RELATIONS))
    scenes = []
    for answer, other in ((first, second), (second, first)):
        things = [centre, answer, other][: world.most]

        def fits(scene: Scene) -> bool:
            middle, right, *wrong = scene.objects
            return stands(kind, right, middle) and not any(stands(kind, item, middle) for item in wrong)

        scenes.append(until(draw, things, fits))
    en, zh = RELATIONS[kind]
    words = {"en": f"What is {en} the {centre}?", "zh": f"{THINGS[centre].chinese}的{zh}是什么？"}
    return _asked("what", words, scenes, [{"en": name, "zh": THINGS[name].chinese} for name in (first, second)])


def ask_group(draw: Draws, world: World) -> Group | None:
    """Training asks for a group by every other thing in it, val and test by the others: only who knows what belongs to
    it can answer. No caption names a group."""
    of = groups()
    members: dict[str, list[str]] = {}
    for name in world.common:
        members.setdefault(of[name].en, []).append(name)
    several = [names for names in members.values() if len(names) > 1]
    names = draw.choice(several)
    asked, group = draw.choice(names[world.split != "train" :: 2]), of[names[0]]
    rest = [name for name in world.names(draw, 4) if of.get(name) != group]
    if not rest:
        return None
    scenes = []
    for things in ([asked], []):
        count = 1 + draw.below(world.most)
        scenes.append(compose(draw, [*things, *(draw.choice(rest) for _ in range(count - len(things)))]))
    if not all(world.allows(scene) for scene in scenes):
        return None
    words = {"en": f"Is there any {group.en} in the picture?", "zh": f"图中有{group.zh}吗？"}
    return _asked("group", words, scenes, (YES, NO))


# ---- statements


def _crossed(
    kind: str, pictures: Sequence[tuple[int, ...]], chosen: Sequence[tuple[Mapping[str, Any], Words]]
) -> list[Exercise]:
    """Each of two statements on each of two (pairs of) pictures; the first is true of the first alone."""
    return [
        Exercise(kind, shown, words, int(k == n), claim)
        for n, (claim, words) in enumerate(chosen)
        for k, shown in enumerate(pictures)
    ]


def make_statements(draw: Draws, world: World) -> Group | None:
    first = world.scene(draw)
    second = changed(draw, first, world.common) if draw.chance(0.7) else world.scene(draw)
    if not world.allows(second) or len(second.objects) > world.most:
        return None
    chosen: list[Sentence] = []
    for true, false in ((first, second), (second, first)):
        sentences = (sentence(draw, true, false) for _ in range(12))
        chosen += islice((s for s in sentences if holds(s[0], true) and not holds(s[0], false)), 1)
    if len(chosen) < 2:
        return None
    kinds = [_kind_of(claim) for claim, _ in chosen]
    exercises = _crossed("", ((0,), (1,)), chosen)
    return Group((first, second), tuple(replace(e, kind=kinds[k // 2]) for k, e in enumerate(exercises)))


def _kind_of(claim: Mapping[str, Any]) -> str:
    """What a claim is mostly about."""
    kinds = {kind for fact in claim.get("all", [claim]) for kind in fact}
    known = (("place", set(RELATIONS)), ("size", {"size"}), ("more", {"more"}), ("total", {"total"}))
    return next((name for name, own in known if kinds & own), "things")


def make_pair_statements(draw: Draws, world: World) -> Group | None:
    """Pictures 0 and 1 are the first pair, 2 and 3 the second, which differs from it in one of the two, or in order."""
    left, right = world.scene(draw), world.scene(draw)
    others = ((changed(draw, left, world.common), right), (left, changed(draw, right, world.common)), (right, left))
    pairs = ((left, right), draw.choice(others) if draw.chance(0.7) else (world.scene(draw), world.scene(draw)))
    if not all(world.allows(scene) and len(scene.objects) <= world.most for scene in pairs[1]):
        return None
    kind, maker = draw.choice(tuple(PAIR_MAKERS.items()))
    chosen: list[Sentence] = []
    for true, false in (pairs, pairs[::-1]):
        made = (maker(draw, *true) for _ in range(12))
        chosen += islice((s for s in made if holds_pair(s[0], *true) and not holds_pair(s[0], *false)), 1)
    if len(chosen) < 2:
        return None
    return Group((*pairs[0], *pairs[1]), tuple(_crossed(kind, ((0, 1), (2, 3)), chosen)))


# ---- entailment


def make_hypotheses(draw: Draws, world: World) -> Group | None:
    """Something may lie under a card, or the picture be grey, in the others too, where it does not matter."""
    kind = draw.choice(("presence", "absence", "color"))
    if kind == "color":
        colours = draw.sample(tuple(COLOURS), 2)
        scenes = [_veiled(draw, replace(world.scene(draw), background=c)) for c in (*colours, draw.choice(colours))]
        scenes[2] = replace(scenes[2], grey=True)
        words = {
            "en": f"The picture has {one(colours[0])} background.",
            "zh": f"图片的背景是{COLOURS[colours[0]][0]}的。",
        }
        return _hypothesis(kind, words, scenes, ("entailment", "contradiction", "neutral"))
    asked, *rest = world.names(draw, 2 + draw.below(2))
    shown, absent, covered = (
        [*first, *(draw.choice(rest) for _ in range(1 + draw.below(world.most - 1)))]
        for first in ([asked], [], [draw.choice((asked, rest[0]))])
    )
    scenes = [compose(draw, things) for things in (shown, absent, covered)]
    scenes[0] = replace(scenes[0], covered=(1,) if draw.chance(0.5) else ())
    scenes[2] = replace(scenes[2], covered=(0,))
    scenes = [replace(scene, grey=draw.chance(1 / 3)) for scene in scenes]
    thing = THINGS[asked]
    if kind == "presence":
        words = {"en": f"There is {one(asked)} in the picture.", "zh": f"图中有{chinese_amount(asked, 1)}。"}
        return _hypothesis(kind, words, scenes, ("entailment", "contradiction", "neutral"))
    words = {"en": f"There is no {asked} in the picture.", "zh": f"图中没有{thing.chinese}。"}
    return _hypothesis(kind, words, scenes, ("contradiction", "entailment", "neutral"))


def _veiled(draw: Draws, scene: Scene) -> Scene:
    """Perhaps with a card over an object."""
    return replace(scene, covered=(draw.below(len(scene.objects)),)) if draw.chance(0.5) else scene


def _hypothesis(kind: str, words: Words, scenes: Sequence[Scene], labels: Sequence[str]) -> Group:
    return Group(tuple(scenes), tuple(Exercise(kind, (k,), words, label) for k, label in enumerate(labels)))


# ---- phrases


def _named(kind: str, scene: Scene | None, phrases: Sequence[Words]) -> Group | None:
    """The phrases name the first objects in turn."""
    if scene is None:
        return None
    return Group((scene,), tuple(Exercise(kind, (0,), words, k) for k, words in enumerate(phrases)))


def by_name(draw: Draws, world: World) -> Group | None:
    first, second, *rest = world.names(draw, 3)
    things = [first, second, *(draw.choice(rest) for _ in range(draw.below(world.most - 1)))]
    phrases = [{"en": f"the {name}", "zh": f"那{THINGS[name].measure}{THINGS[name].chinese}"} for name in things[:2]]
    return _named("name", compose(draw, things), phrases)


def by_size(draw: Draws, world: World) -> Group | None:
    name, *rest = world.names(draw, 2)
    things = [name, name, *(draw.choice(rest) for _ in range(draw.below(min(world.most, 4) - 1)))]
    scene = until(draw, things, lambda scene: scene.objects[0].large and not scene.objects[1].large)
    thing = THINGS[name]
    phrases = [
        {"en": f"the {s['en']} {name}", "zh": f"{s['zh']}的那{thing.measure}{thing.chinese}"} for s in (LARGE, SMALL)
    ]
    return _named("size", scene, phrases)


def by_side(draw: Draws, world: World) -> Group | None:
    name, *rest = world.names(draw, 2)
    things = [name, name, *(draw.choice(rest) for _ in range(draw.below(world.most - 1)))]
    kind = draw.choice(("left_of", "above"))
    scene = until(draw, things, partial(_first_two, kind))
    thing = THINGS[name]
    sides = (("on the left", "左边"), ("on the right", "右边"))
    sides = sides if kind == "left_of" else (("at the top", "上面"), ("at the bottom", "下面"))
    phrases = [{"en": f"the {name} {en}", "zh": f"{zh}的那{thing.measure}{thing.chinese}"} for en, zh in sides]
    return _named("side", scene, phrases)


def by_relation(draw: Draws, world: World) -> Group | None:
    """Two of a kind on either side of another thing."""
    name, other, *_ = world.names(draw, 2)
    kind = draw.choice(("left_of", "above"))

    def fits(scene: Scene) -> bool:
        first, second, middle = scene.objects
        return stands(kind, first, middle) and stands(kind, middle, second)

    scene = until(draw, [name, name, other], fits)
    thing, around = THINGS[name], THINGS[other]
    phrases = [
        {"en": f"the {name} {en} the {other}", "zh": f"{around.chinese}{zh}的那{thing.measure}{thing.chinese}"}
        for en, zh in (RELATIONS[kind], RELATIONS[_OPPOSITE[kind]])
    ]
    return _named("relation", scene, phrases)


# ---- all of them

_PHRASES: tuple[Maker, ...] = (by_name, by_size, by_side, by_relation)
MAKERS: dict[str, tuple[Maker, ...]] = {
    "questions": (ask_presence, ask_count, ask_colour, ask_size, ask_place, ask_what, ask_total),
    "statements": (make_statements,),
    "pair statements": (make_pair_statements,),
    "entailment": (make_hypotheses,),
    "phrases": _PHRASES,
}
PROBES: dict[str, tuple[Maker, ...]] = {"groups": (ask_group,)}  # questions in place of the usual ones
# exercises a group
EACH = {"questions": 2, "groups": 2, "statements": 4, "pair statements": 4, "entailment": 3, "phrases": 2}


def make_group(kind: str, seed: int, world: World, number: int) -> Group:
    """Group `number` of a split: a pure function of its arguments. Kinds of questions and phrases take turns."""
    draw = Draws("exercises", kind, seed, world.split, number)
    makers = [maker for maker in (MAKERS | PROBES)[kind] if maker is not by_relation or world.most > 2]
    while True:
        group = makers[number % len(makers)](draw, world)
        if group is not None:
            return replace(group, scenes=tuple(replace(s, held_out=held_out_of(s, world.split)) for s in group.scenes))
