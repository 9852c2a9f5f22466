"""Sentences about two pictures, each with its claim."""

from collections.abc import Callable

from tuwen.data.corpora.scenes.language import (
    CHINESE_NUMBERS,
    NUMBERS,
    Sentence,
    amount,
    chinese_amount,
    join,
    one,
)
from tuwen.data.corpora.scenes.scene import Draws, Scene
from tuwen.data.corpora.scenes.things import COLOURS, THINGS


def say_of_both(draw: Draws, first: Scene, second: Scene) -> Sentence:
    if draw.chance(0.5):
        colour = draw.choice((first.background, second.background))
        words = {
            "en": f"Both pictures have {one(colour)} background.",
            "zh": f"两张图的背景都是{COLOURS[colour][0]}的。",
        }
        return {"both": {"background": colour}}, words
    name = _candidate(draw, first, second)
    words = {"en": f"There is {one(name)} in both pictures.", "zh": f"两张图里都有{THINGS[name].chinese}。"}
    return {"both": {"count": [name, 1]}}, words


def say_of_one(draw: Draws, first: Scene, second: Scene) -> Sentence:
    name = _candidate(draw, first, second)
    words = {
        "en": f"Exactly one of the two pictures contains {one(name)}.",
        "zh": f"两张图中只有一张里有{THINGS[name].chinese}。",
    }
    return {"one": {"count": [name, 1]}}, words


def say_of_both_together(draw: Draws, first: Scene, second: Scene) -> Sentence:
    name = _candidate(draw, first, second)
    number = first.counts().get(name, 0) + second.counts().get(name, 0)
    thing = THINGS[name]
    verb, noun = ("is", f"exactly one {name}") if number == 1 else ("are", f"{NUMBERS[number]} {thing.plural}")
    words = {
        "en": f"There {verb} {noun} in the two pictures together.",
        "zh": f"两张图里一共有{CHINESE_NUMBERS[number]}{thing.measure}{thing.chinese}。",
    }
    return {"together": [name, number]}, words


def say_of_each(draw: Draws, first: Scene, second: Scene) -> Sentence:
    facts, english, chinese = [], [], []
    for scene in (first, second):
        counts = scene.counts()
        facts.append({"all": [{"count": [name, count]} for name, count in counts.items()]})
        english.append(join([amount(*item) for item in counts.items()]))
        chinese.append(join([chinese_amount(*item) for item in counts.items()], "、", "和"))
    words = {
        "en": f"The left picture shows {english[0]}, and the right picture shows {english[1]}.",
        "zh": f"左图有{chinese[0]}，右图有{chinese[1]}。",
    }
    return {"pictures": facts}, words


def _candidate(draw: Draws, first: Scene, second: Scene) -> str:
    """A thing of either scene, more often than chance of both."""
    shared = [name for name in first.counts() if name in second.counts()]
    if shared and draw.chance(0.5):
        return draw.choice(shared)
    return draw.choice([*first.counts(), *second.counts()])


PAIR_MAKERS: dict[str, Callable[[Draws, Scene, Scene], Sentence]] = {
    "both": say_of_both,
    "one": say_of_one,
    "together": say_of_both_together,
    "pictures": say_of_each,
}
