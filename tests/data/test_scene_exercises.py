"""Exercises on scenes: right by a second reading of what is drawn, balanced for whoever does not look, and pure."""

import pickle
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from tests.data.test_scenes import Reader, _pair
from tuwen.data.corpora.asked import LABELS, kind_of
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.balanced import EACH, MAKERS, PROBES
from tuwen.data.corpora.scenes.scene import boxes
from tuwen.data.corpora.scenes.things import COLOURS, HELD_OUT, THINGS, held_pair
from tuwen.data.exercises import exercises_of
from tuwen.data.subset import MixedCorpus
from tuwen.errors import UserError

EASY = {"things": 24, "objects": 3}
TINY = {"things": 8, "objects": 2}
WHOLE = 252  # rows that are whole groups, and whole rounds of kinds, in two languages


def exercises(kind, split="train", count=WHOLE, **options):
    return exercises_of(Scenes(split, count=count, **options), kind)


def readers(corpus, row) -> list[Reader]:
    made = []
    for scene, shown in zip(corpus.scenes(row), corpus.record(row).columns["scenes"], strict=True):
        edges = [[edge / corpus.side for edge in box] for box in boxes(scene, corpus.side)]
        made.append(Reader({"scene": shown, "boxes": edges}))
    return made


@pytest.mark.parametrize("options", [{}, EASY, TINY], ids=["all", "easy", "tiny"])
@pytest.mark.parametrize("kind", MAKERS)
def test_rows_have_the_form_and_are_alike_in_both_languages(kind, options):
    corpus = exercises(kind, count=120, **options)
    assert (kind_of(corpus.record(0).columns), corpus.languages) == (kind.removeprefix("pair "), ("en", "zh"))
    for row in range(0, 120, 2):
        english, chinese = corpus.record(row), corpus.record(row + 1)
        assert (list(english.texts), list(chinese.texts)) == (["en"], ["zh"])
        assert english.image_id == chinese.image_id == corpus.image_ids()[row]
        assert english.columns["scenes"] == chinese.columns["scenes"]
        for name in ("label", "box", "kind"):
            assert english.columns.get(name) == chinese.columns.get(name)
        most = max(len(scene["objects"]) for scene in english.columns["scenes"])
        assert most <= options.get("objects", 5)
    alone = exercises(kind, count=60, languages="zh", **options)
    assert [alone.record(k).texts["zh"] for k in range(60)] == [corpus.record(2 * k + 1).texts["zh"] for k in range(60)]


def test_questions_have_their_answers():
    kinds = Counter()
    for split, options in (("train", {}), ("test", {}), ("val", EASY)):
        corpus = exercises("questions", split, **options)
        for row in range(0, WHOLE, 2):
            english, chinese = corpus.record(row).columns, corpus.record(row + 1).columns
            (answer,) = english["answers"]
            assert _answer(english["kind"], english["question"], readers(corpus, row)[0]) == answer
            assert chinese["answers"] == [TRANSLATED.get(answer, answer)]
            kinds[english["kind"]] += 1
    assert set(kinds) == {"presence", "count", "color", "size", "place", "what", "total"}


TRANSLATED = {"yes": "是", "no": "否", "large": "大", "small": "小", "left": "左边", "right": "右边"}
TRANSLATED |= {"above": "上方", "below": "下方"} | {name: thing.chinese for name, thing in THINGS.items()}
TRANSLATED |= {name: colour[0] for name, colour in COLOURS.items()}


def _answer(kind: str, question: str, read: Reader) -> str:
    plural = {thing.plural: thing.name for thing in THINGS.values()}
    if kind == "count":
        return str(read.number(plural[re.fullmatch(r"How many (.+) are there\?", question)[1]]))
    if kind == "color":
        return read.colour
    if kind == "total":
        return str(len(read.boxes))
    if kind == "presence":
        return "yes" if read.number(re.fullmatch(r"Is there an? (.+) in the picture\?", question)[1]) else "no"
    if kind == "size":
        return "large" if read.size([re.fullmatch(r"Is the (.+) large or small\?", question)[1], "large"]) else "small"
    if kind == "place":
        a, b = re.fullmatch(
            r"Is the (.+) (?:to the left or to the right of|above or below) the (.+)\?", question
        ).groups()
        names = ("left_of", "right_of") if "left" in question else ("above", "below")
        (right,) = [name for name in names if read.true({name: [a, b]})]
        return right.removesuffix("_of")
    words, thing = re.fullmatch(r"What is (to the left of|to the right of|above|below) the (.+)\?", question).groups()
    relation = {"to the left of": "left_of", "to the right of": "right_of"}.get(words, words)
    (other,) = {other for other in read.things if other != thing and read.true({relation: [other, thing]})}
    return other


@pytest.mark.parametrize("kind", ["statements", "pair statements"])
def test_statements_are_true_where_they_say_so(kind):
    for split, options in (("train", {}), ("test", TINY)):
        corpus = exercises(kind, split, **options)
        for row in range(0, WHOLE, 2):
            columns = corpus.record(row).columns
            read = readers(corpus, row)
            if kind == "statements":
                assert read[0].true(columns["claim"]) == columns["label"]
            else:
                pair = [
                    {"scene": shown, "boxes": own.boxes} for shown, own in zip(columns["scenes"], read, strict=True)
                ]
                assert _pair(columns["claim"], *pair) == columns["label"]


def test_hypotheses_follow_contradict_or_are_left_open():
    """By what can be seen: the pixels under a card and the colours of a grey picture cannot."""
    corpus = exercises("entailment", "test")
    for row in range(0, WHOLE, 2):
        columns, (scene,) = corpus.record(row).columns, corpus.scenes(row)
        visible = [item.thing for k, item in enumerate(scene.objects) if k not in scene.covered]
        if columns["kind"] == "color":
            named = re.fullmatch(r"The picture has an? (.+) background\.", columns["hypothesis"])[1]
            seen = None if scene.grey else scene.background == named
        else:
            pattern = r"There is (?:no|an?) (.+) in the picture\."
            there = re.fullmatch(pattern, columns["hypothesis"])[1] in visible
            seen = True if there else None if scene.covered else False
            seen = seen if columns["kind"] == "presence" or seen is None else not seen
        assert {True: "entailment", False: "contradiction", None: "neutral"}[seen] == columns["label"]
        picture = corpus.image(row).numpy()
        grey = bool((picture[0] == picture[1]).all() and (picture[1] == picture[2]).all())
        assert grey >= scene.grey
        for k in scene.covered:
            x, y = (int(place * corpus.side) for place in (scene.objects[k].x, scene.objects[k].y))
            assert picture[:, y, x].tolist() == [40, 40, 40]


def test_phrases_name_one_object_and_its_box():
    for split, options in (("train", {}), ("val", EASY), ("test", TINY)):
        corpus = exercises("phrases", split, **options)
        for row in range(0, WHOLE, 2):
            columns, (read,) = corpus.record(row).columns, readers(corpus, row)
            named = [k for k, box in enumerate(read.boxes) if _named(columns["kind"], columns["phrase"], read, k)]
            assert [read.boxes[k] for k in named] == [columns["box"]], columns["phrase"]
            assert columns["boxes"] == [columns["box"]]


def _named(kind: str, phrase: str, read: Reader, k: int) -> bool:
    """Whether the phrase means object k, by its box and the boxes of the others."""
    words = re.fullmatch(r"the (large |small )?(.+?)(?: (on the left|on the right|at the top|at the bottom))?", phrase)
    large, name, side = words.groups()
    if kind == "relation":
        name, relation, other = re.fullmatch(
            r"(.+?) (to the left of|to the right of|above|below) the (.+)", name
        ).groups()
    if read.things[k] != name:
        return False
    box = read.boxes[k]
    middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    if kind == "size":
        return (max(box[2] - box[0], box[3] - box[1]) > 0.34) == (large == "large ")
    if kind == "side":
        axis, sign = {"on the left": (0, 1), "on the right": (0, -1), "at the top": (1, 1), "at the bottom": (1, -1)}[
            side
        ]
        (apart,) = {c for c in read.centres(name, axis) if c != middle[axis]}
        return sign * (apart - middle[axis]) > 0
    if kind == "relation":
        axis, sign = {"to the left of": (0, 1), "to the right of": (0, -1), "above": (1, 1), "below": (1, -1)}[relation]
        return sign * (read.centres(other, axis)[0] - middle[axis]) > 0.103
    return True


@pytest.mark.parametrize("kind", MAKERS)
def test_words(kind):
    corpus = exercises(kind, count=240)
    plurals = "|".join(thing.plural for thing in THINGS.values())
    for row in range(0, 240, 2):
        english, chinese = corpus.record(row).texts["en"][0], corpus.record(row + 1).texts["zh"][0]
        assert not re.search(r"\ba (?:[aeio]|(?!unicorn)u)|\ban (?:[^aeiou]|unicorn)", english), english
        assert not re.search(rf"\b(?:two|three|four|five) (?!(?:{plurals}|things|pictures)\b)", english), english
        for _, measure in re.findall(
            r"([一两三四五六七八九十])(.)(?!张图|样)", re.sub("两张图|其中一张|一张里|一共|只有一张", "", chinese)
        ):
            assert measure in {thing.measure for thing in THINGS.values()} | {"样"}, chinese
        assert not re.search(r"[!-~]", re.sub(r"T恤|\d", "", chinese)), chinese


# ---- whoever does not look


def columns_of(kind, split, count, **options):
    corpus = exercises(kind, split, count=count, languages="en", **options)
    return [corpus.record(row).columns for row in range(count)]


CHANCE = {
    "presence": 2,
    "size": 2,
    "place": 2,
    "color": 8,
}  # answers a kind; of numbers and things as many as there are


@pytest.mark.parametrize("options", [{}, EASY, TINY], ids=["all", "easy", "tiny"])
def test_majority_by_kind_and_by_question_is_at_chance(options):
    """Learnt on train, held against test: 1,400 questions each, 200 a kind."""
    train, test = (columns_of("questions", split, 1400, **options) for split in ("train", "test"))
    most = options.get("objects", 5)
    answers = CHANCE | {"count": min(most, 4), "total": most, "what": options.get("things", 111)}
    by_kind, by_question = defaultdict(Counter), defaultdict(Counter)
    for row in train:
        by_kind[row["kind"]][row["answers"][0]] += 1
        by_question[row["question"]][row["answers"][0]] += 1
    for kind, number in answers.items():
        own = [row for row in test if row["kind"] == kind]
        commonest = by_kind[kind].most_common(1)[0][0]
        asked = [(by_question[row["question"]].most_common(1) or [(commonest, 0)])[0][0] for row in own]
        bound = 1 / number + 3 * (1 / number * (1 - 1 / number) / len(own)) ** 0.5
        bound = 0.5 if number == 2 else bound + (0.05 if kind == "what" else 0)  # which things may stand together
        assert np.mean([row["answers"][0] == commonest for row in own]) <= bound, kind
        assert np.mean([row["answers"][0] == a for row, a in zip(own, asked, strict=True)]) <= bound, kind


@pytest.mark.parametrize("options", [{}, TINY], ids=["all", "tiny"])
@pytest.mark.parametrize("kind", ["statements", "pair statements"])
def test_statements_are_half_true_for_the_blind_and_for_the_deaf(kind, options):
    """Of any statement, and of any picture or pair, exactly half of its rows are true."""
    corpus = exercises(kind, "test", count=200, languages="en", **options)
    rows = [(k // 4, corpus.record(k)) for k in range(200)]
    for key in (lambda group, row: (group, row.columns["sentence"]), lambda group, row: row.image_id):
        labels = defaultdict(list)
        for group, row in rows:
            labels[key(group, row)].append(row.columns["label"])
        assert len(labels) == 100
        assert all(sorted(own) == [0, 1] for own in labels.values())


def test_hypotheses_have_each_label_once():
    rows = columns_of("entailment", "train", 300)
    groups = [rows[k : k + 3] for k in range(0, 300, 3)]
    assert all(sorted(row["label"] for row in group) == sorted(LABELS) for group in groups)
    assert all(len({row["hypothesis"] for row in group}) == 1 for group in groups)


def test_boxes_cannot_be_told_from_the_words_alone():
    """The mean box of a kind of phrase overlaps the right one by half for few."""
    rows = {split: columns_of("phrases", split, 480) for split in ("train", "test")}
    for kind in ("name", "size", "side", "relation"):
        train, test = (np.array([row["box"] for row in own if row["kind"] == kind]) for own in rows.values())
        mean = train.mean(0)
        shared = np.clip(np.minimum(mean[2:], test[:, 2:]) - np.maximum(mean[:2], test[:, :2]), 0, None).prod(1)
        area = (test[:, 2:] - test[:, :2]).prod(1)
        overlap = shared / (area + (mean[2:] - mean[:2]).prod() - shared)
        assert (overlap >= 0.5).mean() < 0.1, kind


# ---- splits, identity, wrappers


@pytest.mark.parametrize("kind", MAKERS)
def test_splits_hold_out_things_and_pairs(kind):
    shares = {}
    for split in ("train", "val", "test"):
        corpus = exercises(kind, split, count=240, languages="en")
        held_out = Counter()
        for row in range(240):
            for scene in corpus.scenes(row):
                things = set(scene.counts())
                assert not things & {name for own, names in HELD_OUT.items() if own != split for name in names}
                together = {held_pair(a, b) for a in things for b in things if a < b}
                assert together <= {"", split}
                expected = "concept" if things & set(HELD_OUT.get(split, ())) else "pair" if split in together else ""
                assert scene.held_out == expected
            held_out[corpus.record(row).columns["held_out"]] += 1
        shares[split] = {name: number / 240 for name, number in held_out.items()}
    assert shares["train"] == {"": 1}
    for split in ("val", "test"):
        assert shares[split]["pair"] > 0.1
        assert shares[split]["concept"] > 0.04


@pytest.mark.parametrize("kind", MAKERS)
def test_a_row_is_a_function_of_seed_and_number(kind):
    small, large = exercises(kind, count=12), exercises(kind, count=120)
    other, val = exercises(kind, count=12, seed=1), exercises(kind, "val", count=12)
    again = pickle.loads(pickle.dumps(small))
    for row in reversed(range(12)):
        record = small.record(row)
        for same in (large, again):
            assert same.record(row).columns["scenes"] == record.columns["scenes"]
            assert same.record(row).texts == record.texts
            assert (same.image(row) == small.image(row)).all()
    scenes = [str([corpus.record(row).columns["scenes"] for row in range(12)]) for corpus in (small, other, val)]
    assert len(set(scenes)) == 3
    prints = {corpus.fingerprint for corpus in (small, large, other, val, exercises(kind, count=12, languages="zh"))}
    assert len(prints) == 5
    with pytest.raises(IndexError):
        small.record(12)


def test_statements_on_two_pictures_show_both():
    corpus = exercises("pair statements", count=16)
    assert corpus.pictures == 2
    for row in range(16):
        left, right = corpus.shown(row)
        assert (corpus.image(row) == left).all()
        assert left.shape == right.shape == (3, 128, 128)
        assert not (left == right).all()


def test_mixtures_and_languages():
    scenes = Scenes("train", count=24)
    mixed = exercises_of(MixedCorpus([scenes, Scenes("train", count=12, seed=1)], [2, 1]), "questions")
    assert (len(mixed), mixed.weights) == (36, (2, 1))
    with pytest.raises(UserError, match="exercises are in en and zh, not in ja"):
        exercises_of(Scenes("train", count=4, languages="ja"), "questions")
    kinds = EACH.keys() - PROBES.keys()
    assert {kind: len(exercises_of(scenes, kind)) for kind in kinds} == dict.fromkeys(kinds, 24)
