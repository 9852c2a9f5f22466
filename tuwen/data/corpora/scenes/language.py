"""Sentences about scenes in English and Chinese, each with the claim it makes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tuwen.data.corpora.scenes.scene import LARGE, SMALL, Draws, Object, Scene
from tuwen.data.corpora.scenes.things import COLOURS, COMMON, THINGS, Thing
from tuwen.data.corpora.scenes.truth import MARGIN, Claim, holds

Names = Mapping[str, Thing]  # what each thing is called
Sentence = tuple[Claim, dict[str, str]]  # what is claimed, and its words by language ("en", "zh")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CHINESE_NUMBERS = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十")
RELATIONS = {
    "left_of": ("to the left of", "左边"),
    "right_of": ("to the right of", "右边"),
    "above": ("above", "上方"),
    "below": ("below", "下方"),
}
_SIZES = {"large": "很大的", "small": "很小的"}
# words of a list of things {what}, of its verb {is}, and of the ground's colour {colour}
_EN = ("{what}", "a picture of {what}", "There {is} {what}.", "The picture shows {what}.")
_EN_GROUND = (
    "{what} on {colour} background",
    "{what}, on {colour} background",
    "a picture of {what} on {colour} background",
    "There {is} {what} on {colour} background.",
)
_ZH = ("{what}", "图中有{what}", "画面里有{what}。", "这张图上有{what}。")
_ZH_GROUND = (
    "{colour}背景上有{what}",
    "{colour}背景上的{what}",
    "图中有{what}，背景是{colour}的。",
    "在{colour}的背景上，有{what}。",
)


def one(name: str) -> str:
    """The thing or phrase with its indefinite article."""
    return ("an " if name[0] in "aeiou" and not name.startswith("unicorn") else "a ") + name


def amount(name: str, count: int, names: Names = THINGS) -> str:
    """ "a cat", "two cats"."""
    return one(names[name].name) if count == 1 else f"{NUMBERS[count]} {names[name].plural}"


def chinese_amount(name: str, count: int, size: str = "", names: Names = THINGS) -> str:
    """ "一只猫", "两只猫", "一只很大的猫"."""
    thing = names[name]
    return CHINESE_NUMBERS[count] + thing.measure + _SIZES.get(size, "") + thing.chinese


def join(parts: Sequence[str], comma: str = ", ", last: str = " and ") -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else comma.join(parts[:-1]) + last + parts[-1]


def frame(draw: Draws, english: str, chinese: str, plural: bool, colour: str = "") -> dict[str, str]:
    """A list of things put into one of the sentence patterns of each language."""
    en = draw.choice(_EN_GROUND if colour else _EN)
    zh = draw.choice(_ZH_GROUND if colour else _ZH)
    ground = {"en": one(colour) if colour else "", "zh": COLOURS[colour][0] if colour else ""}
    words = en.format(what=english, colour=ground["en"], **{"is": "are" if plural else "is"})
    return {"en": words, "zh": zh.format(what=chinese, colour=ground["zh"])}


def listing(draw: Draws, scene: Scene, ground: bool, whole: bool = False, called: Names = THINGS) -> Sentence:
    """Things and how many: all of them, or (unless `whole`) some with the ground's colour."""
    counts = scene.counts()
    names = draw.sample(list(counts), len(counts))
    if ground and len(names) > 1 and not whole and draw.chance(0.3):
        names = names[:-1]
    facts = [{"count": [name, counts[name]]} for name in names] + [{"background": scene.background}] * ground
    english = join([amount(name, counts[name], called) for name in names])
    chinese = join([chinese_amount(name, counts[name], names=called) for name in names], "、", "和")
    words = frame(draw, english, chinese, counts[names[0]] > 1, scene.background if ground else "")
    return {"all": facts}, words


def sizes(draw: Draws, scene: Scene, ground: bool, called: Names = THINGS) -> Sentence:
    """One or two things with their size."""
    seen: dict[str, str] = {}
    for item in draw.sample(scene.objects, len(scene.objects)):
        seen.setdefault(item.thing, "large" if item.large else "small")
    chosen = list(seen.items())[: 1 + draw.below(2)]
    ground = ground or len(chosen) == 1
    facts = [{"size": [name, size]} for name, size in chosen] + [{"background": scene.background}] * ground
    english = join([one(f"{size} {called[name].name}") for name, size in chosen])
    chinese = join([chinese_amount(name, 1, size, called) for name, size in chosen], "、", "和")
    return {"all": facts}, frame(draw, english, chinese, False, scene.background if ground else "")


def relations_of(scene: Scene) -> list[tuple[str, str, str]]:
    """(relation, a, b) of every two objects of different things, such as ("left_of", "cat", "dog")."""
    relations = []
    for a in scene.objects:
        for b in scene.objects:
            if a.thing != b.thing:
                if b.x - a.x >= MARGIN:
                    relations += [("left_of", a.thing, b.thing), ("right_of", b.thing, a.thing)]
                if b.y - a.y >= MARGIN:
                    relations += [("above", a.thing, b.thing), ("below", b.thing, a.thing)]
    return sorted(set(relations))


def relation(draw: Draws, scene: Scene, ground: bool, called: Names = THINGS) -> Sentence:
    """Where one thing stands to another."""
    kind, a, b = draw.choice(relations_of(scene))
    facts = [{kind: [a, b]}] + [{"background": scene.background}] * ground
    en, zh = RELATIONS[kind]
    first, second = chinese_amount(a, 1, names=called), chinese_amount(b, 1, names=called)
    chinese = draw.choice((f"{first}在{second}的{zh}", f"{second}的{zh}有{first}"))
    colour = COLOURS[scene.background][0]
    if ground:
        chinese = draw.choice((f"{colour}背景上，{chinese}", f"{chinese}，背景是{colour}的。"))
    else:
        chinese = draw.choice((chinese, f"图中{chinese}。"))
    patterns = _EN_GROUND[1:2] + _EN_GROUND[3:] if ground else _EN
    words = f"{one(called[a].name)} {en} {one(called[b].name)}"
    english = draw.choice(patterns).format(what=words, colour=one(scene.background), **{"is": "is"})
    return {"all": facts}, {"en": english, "zh": chinese}


def captions(draw: Draws, scene: Scene, whole: bool = False, called: Names = THINGS) -> list[Sentence]:
    """Two to four true captions with different claims; the first names every thing or the ground's colour.

    whole: two wordings instead that both name every thing, how many, and the ground, true of hardly another scene.
    called: what the things are called; equal draws give the same captions with other names.
    """
    if whole:
        return [listing(draw, scene, True, True, called) for _ in range(2)]
    number = 2 + draw.below(3)
    sentences: dict[str, Sentence] = {}
    makers = [listing, listing, sizes, *([relation] * 2 if relations_of(scene) else [])]
    sentence = listing(draw, scene, draw.chance(0.5) or len(scene.objects) == 1, called=called)
    tries = 0
    while len(sentences) < 2 or (len(sentences) < number and tries < 12):
        sentences.setdefault(str(sorted(map(str, sentence[0]["all"]))), sentence)
        tries += 1
        maker = draw.choice(makers)
        sentence = maker(draw, scene, len(scene.counts()) == 1 or draw.chance(0.5), called=called)
    return list(sentences.values())


def counting(draw: Draws, scene: Scene, near: Scene) -> Sentence:
    """How many things in all, which of two there is more of, or what (perhaps in `near`) there is none of."""
    counts = scene.counts()
    unequal = [(a, b) for a in counts for b in counts if counts[a] > counts[b]]
    kind = draw.below(3)
    if kind == 0 and unequal:
        a, b = draw.choice(unequal)
        first, second = THINGS[a], THINGS[b]
        english = f"There are more {first.plural} than {second.plural}."
        return {"more": [a, b]}, {"en": english, "zh": f"{first.chinese}比{second.chinese}多。"}
    if kind == 1:
        total = len(scene.objects)
        number = "is exactly one thing" if total == 1 else f"are {NUMBERS[total]} things"
        words = {"en": f"There {number} in the picture.", "zh": f"图中一共有{CHINESE_NUMBERS[total]}样东西。"}
        return {"total": total}, words
    gone = [name for name in near.counts() if name not in counts]
    absent = draw.choice(gone or [name for name in COMMON if name not in counts])
    words = {"en": f"There is no {absent} in the picture.", "zh": f"图中没有{THINGS[absent].chinese}。"}
    return {"count": [absent, 0]}, words


def sentence(draw: Draws, scene: Scene, near: Scene | None = None) -> Sentence:
    """One true sentence of any kind."""
    if draw.chance(0.25):
        return counting(draw, scene, near or scene)
    maker = draw.choice([listing, sizes, *([relation] * 2 if relations_of(scene) else [])])
    return maker(draw, scene, draw.chance(0.4))


def true_and_false(draw: Draws, scene: Scene) -> tuple[Sentence, Sentence]:
    """A true sentence and a false one of the same kind, so that the kind does not tell; the false one is true of a
    scene that differs little."""
    while True:
        right = sentence(draw, scene)
        for _ in range(16):
            wrong = sentence(draw, changed(draw, scene), scene)
            if _kinds(wrong[0]) == _kinds(right[0]) and not holds(wrong[0], scene):
                return right, wrong


def _kinds(claim: Claim) -> set[str]:
    """What kinds of facts a claim states; "no" is a kind of its own."""
    if claim.get("count", [None, 1])[1] == 0:
        return {"no"}
    return {kind for fact in claim.get("all", [claim]) for kind in fact}


def changed(draw: Draws, scene: Scene, names: Sequence[str] = COMMON) -> Scene:
    """The scene with another ground, another thing (of `names`), two swapped, a size changed, or an object gone."""
    kind = draw.below(5)
    items = list(scene.objects)
    place = draw.below(len(items))
    item = items[place]
    if kind == 0:
        return replace(scene, background=draw.choice([c for c in COLOURS if c != scene.background]))
    if kind == 1:
        items[place] = replace(item, thing=draw.choice([name for name in names if name not in scene.counts()]))
    elif kind == 2:
        other = draw.below(len(items))
        items[place], items[other] = (
            replace(item, thing=items[other].thing),
            replace(items[other], thing=item.thing),
        )
    elif kind == 3:
        items[place] = replace(item, size=draw.choice(SMALL if item.large else LARGE))
    elif len(items) > 1:
        del items[place]
    else:
        items.append(Object(item.thing, 1 - item.x, 1 - item.y, item.size))
    return replace(scene, objects=tuple(items))
