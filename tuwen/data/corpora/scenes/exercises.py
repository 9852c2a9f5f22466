"""What fine-tuning tasks ask of a scene: questions, statements over one and two scenes, entailment."""

from tuwen.data.corpora.scenes.language import (
    CHINESE_NUMBERS,
    NUMBERS,
    RELATIONS,
    Sentence,
    amount,
    changed,
    chinese_amount,
    join,
    one,
    relations_of,
    true_and_false,
)
from tuwen.data.corpora.scenes.scene import Draws, Scene
from tuwen.data.corpora.scenes.things import COLOURS, COMMON, THINGS
from tuwen.data.corpora.scenes.truth import holds_pair

YES, NO = {"en": "yes", "zh": "是"}, {"en": "no", "zh": "否"}


def questions(draw: Draws, scene: Scene) -> list[dict]:
    """Five or six questions with the one right answer: {"kind", "question": {"en", "zh"}, "answer": {"en", "zh"}}."""
    counts = scene.counts()
    name = draw.choice(list(counts))
    items = [_how_many(name, counts[name])]
    items.append(_asked("color", "What color is the background?", "背景是什么颜色的？", *_colour(scene.background)))
    total = str(len(scene.objects))
    items.append(_asked("total", "How many things are in the picture?", "图中一共有几样东西？", total, total))
    for asked in (draw.choice(list(counts)), draw.choice([name for name in COMMON if name not in counts])):
        answer = YES if asked in counts else NO
        thing = THINGS[asked]
        words = f"Is there {one(asked)} in the picture?", f"图中有{thing.chinese}吗？"
        items.append(_asked("presence", *words, answer["en"], answer["zh"]))
    unique = _unique_places(scene)
    if unique:
        kind, a, b = draw.choice(unique)
        en, zh = RELATIONS[kind]
        words = f"What is {en} the {b}?", f"{THINGS[b].chinese}的{zh}是什么？"
        items.append(_asked("place", *words, a, THINGS[a].chinese))
    return items


def _how_many(name: str, count: int) -> dict:
    thing = THINGS[name]
    words = f"How many {thing.plural} are there?", f"图中有几{thing.measure}{thing.chinese}？"
    return _asked("count", *words, str(count), str(count))


def _colour(name: str) -> tuple[str, str]:
    return name, COLOURS[name][0]


def _asked(kind: str, en: str, zh: str, answer_en: str, answer_zh: str) -> dict:
    return {"kind": kind, "question": {"en": en, "zh": zh}, "answer": {"en": answer_en, "zh": answer_zh}}


def _unique_places(scene: Scene) -> list[tuple[str, str, str]]:
    """(relation, a, b) where b is one object and a the only kind of thing, but for b, so placed to it."""
    counts = scene.counts()
    kinds: dict[tuple[str, str], list[str]] = {}
    for kind, a, b in relations_of(scene):
        kinds.setdefault((kind, b), []).append(a)
    return [(kind, a[0], b) for (kind, b), a in kinds.items() if len(a) == 1 and counts[b] == 1]


def statements(draw: Draws, scene: Scene) -> list[dict]:
    """Two true and two false statements on one scene: {"text": {"en", "zh"}, "label": bool, "claim"}."""
    pairs = [true_and_false(draw, scene) for _ in range(2)]
    return [_labelled(sentence, label) for pair in pairs for sentence, label in zip(pair, (True, False), strict=True)]


def _labelled(sentence: Sentence, label: bool) -> dict:
    return {"text": sentence[1], "label": label, "claim": sentence[0]}


def pair_statements(draw: Draws, first: Scene, second: Scene) -> list[dict]:
    """A true and a false statement of one kind on two scenes, the first on the left.

    One kind for both, so that a kind's words alone do not tell the label.
    """
    for maker in draw.sample((_both, _one, _together, _pictures), 4):
        by_label: dict[bool, dict] = {}
        for _ in range(20):
            claim, words = maker(draw, first, second)
            label = holds_pair(claim, first, second)
            by_label.setdefault(label, {"text": words, "label": label, "claim": claim})
            if len(by_label) == 2:
                return [by_label[True], by_label[False]]
    return []


def _candidate(draw: Draws, first: Scene, second: Scene) -> str:
    """A thing of either scene, more often than chance of both, sometimes of none."""
    shared = [name for name in first.counts() if name in second.counts()]
    if shared and draw.chance(0.5):
        return draw.choice(shared)
    return draw.choice(COMMON) if draw.chance(0.1) else draw.choice([*first.counts(), *second.counts()])


def _both(draw: Draws, first: Scene, second: Scene):
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


def _one(draw: Draws, first: Scene, second: Scene):
    name = _candidate(draw, first, second)
    words = {
        "en": f"Exactly one of the two pictures contains {one(name)}.",
        "zh": f"两张图中只有一张里有{THINGS[name].chinese}。",
    }
    return {"one": {"count": [name, 1]}}, words


def _together(draw: Draws, first: Scene, second: Scene):
    name = _candidate(draw, first, second)
    number = max(1, first.counts().get(name, 0) + second.counts().get(name, 0) + draw.choice((0, 0, -1, 1)))
    verb, noun = ("is", f"exactly one {name}") if number == 1 else ("are", f"{NUMBERS[number]} {THINGS[name].plural}")
    thing = THINGS[name]
    words = {
        "en": f"There {verb} {noun} in the two pictures together.",
        "zh": f"两张图里一共有{CHINESE_NUMBERS[number]}{thing.measure}{thing.chinese}。",
    }
    return {"together": [name, number]}, words


def _pictures(draw: Draws, first: Scene, second: Scene):
    shown = draw.choice(((first, second), (second, first), (changed(draw, first), second)))
    facts, english, chinese = [], [], []
    for scene in shown:
        counts = scene.counts()
        facts.append({"all": [{"count": [name, count]} for name, count in counts.items()]})
        english.append(join([amount(*item) for item in counts.items()]))
        chinese.append(join([chinese_amount(*item) for item in counts.items()], "、", "和"))
    words = {
        "en": f"The left picture shows {english[0]}, and the right picture shows {english[1]}.",
        "zh": f"左图有{chinese[0]}，右图有{chinese[1]}。",
    }
    return {"pictures": facts}, words


def entailment(draw: Draws, scene: Scene) -> list[dict]:
    """An entailed, a neutral and a contradicting sentence: {"text", "label", "claim"}; neutral ones claim None."""
    single = [name for name, count in scene.counts().items() if count == 1]
    subject = draw.choice(single) if single else ""
    right, wrong = true_and_false(draw, scene)
    return [
        {"text": right[1], "label": "entailed", "claim": right[0]},
        {"text": draw.choice(_unseen(subject)), "label": "neutral", "claim": None},
        {"text": wrong[1], "label": "contradicting", "claim": wrong[0]},
    ]


def _unseen(name: str) -> list[dict[str, str]]:
    """Sentences that no picture decides."""
    if not name:
        return [
            {"en": "The picture was made in the morning.", "zh": "这张图是早上画的。"},
            {"en": "The person who made the picture lives by the sea.", "zh": "画这张图的人住在海边。"},
            {"en": "The picture belongs to a teacher.", "zh": "这张图是一位老师的。"},
            {"en": "The picture took an hour to make.", "zh": "画这张图花了一个小时。"},
        ]
    thing = f"这{THINGS[name].measure}{THINGS[name].chinese}"
    return [
        {"en": f"The {name} was drawn last.", "zh": f"{thing}是最后画上去的。"},
        {"en": f"The person who made the picture likes the {name} best.", "zh": f"画这张图的人最喜欢{thing}。"},
        {"en": f"The {name} was drawn by a teacher.", "zh": f"{thing}是一位老师画的。"},
        {"en": f"A child asked for the {name}.", "zh": f"{thing}是一个孩子要求画的。"},
    ]
