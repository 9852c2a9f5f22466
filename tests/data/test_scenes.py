"""Scenes: claims against what is drawn, decided here by a second reading of boxes and objects, or of the pixels."""

import json
import pickle
import re
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tuwen.data.corpora.scenes import Object, Scene, Scenes, holds, holds_pair, relevance
from tuwen.data.corpora.scenes.drawings import STYLES, VISIBLE, drawing
from tuwen.data.corpora.scenes.kinds import KINDS, OPEN_NAMES
from tuwen.data.corpora.scenes.scene import make_scene, render
from tuwen.data.corpora.scenes.things import COLOURS, HELD_OUT, NAMES, OTHER_LANGUAGES, THINGS, foreign_name, held_pair
from tuwen.data.corpus import Corpus, normalise
from tuwen.errors import UserError


class Reader:
    """Decides a claim from the boxes of the drawn picture and the things' names alone."""

    def __init__(self, columns):
        self.things = [item["thing"] for item in columns["scene"]["objects"]]
        self.boxes = columns["boxes"]
        self.colour = columns["scene"]["background"]

    def true(self, claim) -> bool:
        ((kind, what),) = claim.items()
        return getattr(self, kind if kind not in ("all", "not") else kind + "_")(what)

    def all_(self, parts):
        return all(self.true(part) for part in parts)

    def not_(self, part):
        return not self.true(part)

    def count(self, what):
        return {0: self.number(what[0]) == 0, 1: self.number(what[0]) > 0}.get(what[1], self.number(what[0]) == what[1])

    def number(self, thing):
        return self.things.count(thing)

    def background(self, colour):
        return self.colour == colour

    def total(self, count):
        return len(self.boxes) == count

    def more(self, what):
        return self.number(what[0]) > self.number(what[1])

    def size(self, what):
        sides = [max(b[2] - b[0], b[3] - b[1]) for b, t in zip(self.boxes, self.things, strict=True) if t == what[0]]
        return any((side > 0.34) == (what[1] == "large") for side in sides)

    def centres(self, thing, axis):
        return [(b[axis] + b[axis + 2]) / 2 for b, t in zip(self.boxes, self.things, strict=True) if t == thing]

    def before(self, what, axis):
        return any(b - a > 0.103 for a in self.centres(what[0], axis) for b in self.centres(what[1], axis))

    def left_of(self, what):
        return self.before(what, 0)

    def right_of(self, what):
        return self.before(what[::-1], 0)

    def above(self, what):
        return self.before(what, 1)

    def below(self, what):
        return self.before(what[::-1], 1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_claims_are_true_of_the_drawn_boxes(split):
    corpus = Scenes(split, count=150)
    for row in range(150):
        record = corpus.record(row)
        read = Reader(record.columns)
        claims = record.columns["claims"]
        assert len(claims) == sum(map(len, record.texts.values()))
        assert 2 <= len(record.texts["en"]) <= 4
        assert all(read.true(claim) for claim in claims)
        assert all(holds(claim, record.columns["scene"]) for claim in claims)


def _pair(claim, first, second) -> bool:
    left, right = Reader(first), Reader(second)
    ((kind, what),) = claim.items()
    if kind == "together":
        return left.number(what[0]) + right.number(what[0]) == what[1]
    if kind == "pictures":
        return left.true(what[0]) and right.true(what[1])
    return left.true(what) + right.true(what) == {"both": 2, "one": 1}[kind]


def test_the_reading_of_claims():
    scene = Scene(
        "red",
        "plain",
        "twemoji",
        (Object("cat", 0.2, 0.2, 0.44), Object("cat", 0.8, 0.2, 0.25), Object("dog", 0.75, 0.8, 0.25)),
    )
    assert holds({"count": ["cat", 1]}, scene)  # at least one
    assert holds({"count": ["cat", 2]}, scene)
    assert not holds({"count": ["cat", 3]}, scene)
    assert holds({"count": ["owl", 0]}, scene)
    assert not holds({"not": {"count": ["dog", 1]}}, scene)
    assert holds({"all": []}, scene)
    assert holds({"size": ["cat", "large"]}, scene)
    assert holds({"size": ["cat", "small"]}, scene)
    assert not holds({"size": ["dog", "large"]}, scene)
    assert holds({"left_of": ["cat", "dog"]}, scene)
    assert not holds({"right_of": ["cat", "dog"]}, scene)  # 0.05 is within the margin
    assert holds({"below": ["dog", "cat"]}, scene)
    assert holds({"more": ["cat", "dog"]}, scene)
    assert holds({"total": 3}, scene)
    assert holds({"background": "red"}, scene)
    assert holds_pair({"one": {"background": "red"}}, scene, Scene("blue", "plain", "twemoji", ()))
    assert holds_pair({"together": ["cat", 4]}, scene, scene)
    with pytest.raises(ValueError, match="unknown claim"):
        holds({"taller": ["cat", "dog"]}, scene)
    with pytest.raises(ValueError, match="unknown claim"):
        holds_pair({"neither": {"background": "red"}}, scene, scene)


things = st.sampled_from(NAMES[:6])
claims = st.recursive(
    st.one_of(
        st.tuples(things, st.integers(0, 4)).map(lambda v: {"count": list(v)}),
        st.tuples(things, st.sampled_from(["large", "small"])).map(lambda v: {"size": list(v)}),
        st.tuples(st.sampled_from(["left_of", "right_of", "above", "below", "more"]), things, things).map(
            lambda v: {v[0]: list(v[1:])}
        ),
        st.sampled_from(list(COLOURS)).map(lambda v: {"background": v}),
        st.integers(0, 6).map(lambda v: {"total": v}),
    ),
    lambda inner: st.one_of(inner.map(lambda v: {"not": v}), st.lists(inner, max_size=3).map(lambda v: {"all": v})),
    max_leaves=4,
)
placed = st.builds(Object, things, st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.22, 0.28, 0.4, 0.48]))
drawn = st.builds(
    Scene, st.sampled_from(list(COLOURS)), st.just("plain"), st.just("twemoji"), st.lists(placed, max_size=5).map(tuple)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(drawn, max_size=4), st.lists(claims, max_size=4))
def test_the_table_decides_as_one_scene_at_a_time(scenes, asked):
    truth = relevance(scenes, asked)
    assert truth.image_count == len(scenes)
    for number, claim in enumerate(asked):
        assert truth.images_of(number).tolist() == [k for k, scene in enumerate(scenes) if holds(claim, scene)]
        assert [holds(claim, s.as_json()) for s in scenes] == [holds(claim, s) for s in scenes]


def test_gallery_truth_equals_brute_force():
    corpus = Scenes("test", count=120, languages="zh+en+de", noise=0.2)
    gallery = corpus.gallery()
    scenes = [corpus.record(row).columns["scene"] for row in gallery.rows]
    for number, caption in enumerate(gallery.texts):
        claim = corpus.record(caption.row).columns["claims"][caption.place]
        wanted = [k for k, scene in enumerate(scenes) if holds(claim, scene)]
        assert gallery.relevance.images_of(number).tolist() == wanted
    clean = Scenes("test", count=120).gallery()
    own = Corpus.relevance(clean.corpus, clean.rows, clean.texts)  # by identity: a part of the truth
    for number in range(len(clean.texts)):
        assert set(own.images_of(number)) <= set(clean.relevance.images_of(number))
    assert len(own.images) < len(clean.relevance.images)


def test_one_text_is_one_claim():
    corpus = Scenes("train", count=2500)
    meaning: dict[tuple[str, str], list] = {}
    for row in range(2500):
        record = corpus.record(row)
        texts = [(language, normalise(text)) for language, texts in record.texts.items() for text in texts]
        for text, claim in zip(texts, record.columns["claims"], strict=True):
            assert meaning.setdefault(text, claim) == claim
    assert len(meaning) > 8000


def test_boxes_are_the_visible_pixels():
    for index in range(60):
        scene = make_scene(3, index)
        side = (64, 100, 128)[index % 3]
        empty = Scene(scene.background, scene.ground, scene.style, (), "", scene.tint, scene.phase)
        base, full = render(empty, side).astype(int), render(scene, side).astype(int)
        changed = np.abs(full - base).max(axis=2) > 0
        shown = np.zeros_like(changed)
        corpus = Scenes("train", seed=3, side=side)
        for x0, y0, x1, y1 in corpus.record(index).columns["boxes"]:
            left, top, right, bottom = (round(edge * side) for edge in (x0, y0, x1, y1))
            assert 0 <= left < right <= side
            assert 0 <= top < bottom <= side
            assert not shown[top:bottom, left:right].any()  # nothing overlaps
            shown[top:bottom, left:right] = True
            inside = changed[top:bottom, left:right]
            assert inside.mean() > 0.1
            assert sum(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1])) >= 3
        assert not changed[~shown].any()


def test_layout_leaves_no_doubt():
    for index in range(1500):
        scene = make_scene(0, index)
        assert 1 <= len(scene.objects) <= 5
        for item in scene.objects:
            assert item.size <= 0.28 or item.size >= 0.4
            assert item.size / 2 <= min(item.x, item.y, 1 - item.x, 1 - item.y) + 1e-9
        for a, b in combinations(scene.objects, 2):
            assert all(d < 0.081 or d > 0.1259 for d in (abs(a.x - b.x), abs(a.y - b.y)))


def test_scene_is_a_function_of_seed_and_index():
    corpus = Scenes("train", count=50, side=64)
    backwards = {row: (corpus.image(row), corpus.record(row)) for row in reversed(range(50))}
    again = pickle.loads(pickle.dumps(Scenes("train", count=20000, side=64)))
    for row in (0, 7, 49):
        assert again.image(row).equal(backwards[row][0])
        assert again.record(row) == backwards[row][1]
    assert not Scenes("train", seed=1, side=64).image(0).equal(backwards[0][0])
    assert Scenes("val").record(0).image_id != corpus.record(0).image_id
    splits = [Scenes(split, count=150) for split in ("train", "val", "test")]
    assert len({scenes.record(row).image_id for scenes in splits for row in range(150)}) == 450
    with pytest.raises(IndexError):
        corpus.record(50)


def test_fingerprint_follows_the_content():
    plain = {"split": "test", "count": 10}
    others = [
        Scenes(**{**plain, **other}).fingerprint
        for other in (
            {},
            {"split": "val"},
            {"count": 11},
            {"seed": 1},
            {"side": 64},
            {"noise": 0.1},
            {"clicks": True},
            {"languages": "zh"},
        )
    ]
    assert len(set(others)) == len(others)
    assert Scenes(**plain).fingerprint == others[0]


def test_splits_hold_out_pairs_and_concepts():
    seen: dict[str, set] = {}
    for split in ("train", "val", "test"):
        corpus = Scenes(split, count=3000)
        scenes = [corpus.scene(row) for row in range(3000)]
        seen[split] = {pair for s in scenes for pair in combinations(sorted(s.counts()), 2)}
        for scene in scenes:
            kinds = {held_pair(a, b) for a, b in combinations(scene.counts(), 2)} - {""}
            concepts = [name for name in scene.counts() if name in HELD_OUT["val"] + HELD_OUT["test"]]
            assert kinds <= {split}
            assert (scene.held_out == "pair") == bool(kinds)
            assert (scene.held_out == "concept") == bool(concepts)
            assert set(concepts) <= set(HELD_OUT.get(split, ()))
        if split != "train":
            shares = [np.mean([s.held_out == kind for s in scenes]) for kind in ("pair", "concept")]
            np.testing.assert_allclose(shares, (0.3, 0.1), atol=0.03)
    held = {s: {p for p in seen[s] if held_pair(*p) == s} for s in ("val", "test")}
    assert not held["val"] & seen["train"]
    assert not held["test"] & seen["train"]
    assert not held["test"] & seen["val"]


def test_noisy_captions_are_false_and_clicks_tell():
    corpus = Scenes("train", count=600, noise=0.3, clicks=True, languages="all")
    clean = Scenes("train", count=600, languages="all")
    rates = {True: [], False: []}
    noisy = 0
    for row in range(600):
        record = corpus.record(row)
        read = Reader(record.columns)
        wrong = record.columns["noisy"]
        noisy += wrong
        assert all(read.true(claim) != wrong for claim in record.columns["claims"])
        assert wrong or record.texts == clean.record(row).texts
        for impressions, clicks in record.columns["clicks"]:
            assert 15 <= impressions <= 25
            rates[not wrong].append(clicks / impressions)
    assert abs(noisy / 600 - 0.3) < 0.06  # 3 standard deviations
    assert abs(np.mean(rates[True]) - 0.6) < 0.01
    assert abs(np.mean(rates[False]) - 0.1) < 0.01


def test_words():
    corpus = Scenes("train", count=1500)
    names = "|".join(sorted(NAMES, key=len, reverse=True))
    plurals = "|".join(t.plural for t in THINGS.values())
    for row in range(1500):
        record = corpus.record(row)
        for text in record.texts["en"]:
            assert not re.search(r"\ba (?:[aeio]|(?!unicorn)u)|\ban (?:[^aeiou]|unicorn)", text), text
            assert not re.search(rf"\b(?:two|three|four|five) (?!(?:{plurals})\b)", text), text
            assert re.search(r"There (?:is an?|are (?:two|three|four|five)) ", text) or "There" not in text, text
            assert re.search(rf"\b(?:{names}|{plurals})\b", text)
        for text in record.texts["zh"]:
            for _, measure in re.findall(r"([一两三四五])(.)(?!张图|样)", text):
                assert measure in {t.measure for t in THINGS.values()}, text
            assert "二" not in text
            assert not re.search(r"[!-~]", text.replace("T恤", "")), text
    assert len({t.chinese for t in THINGS.values()}) == len(THINGS) == len({t.plural for t in THINGS.values()})
    assert not {t.plural for t in THINGS.values()} & set(NAMES) - {"deer", "sheep"}


def test_every_thing_has_both_drawings_and_all_names():
    for name in NAMES:
        for style in STYLES:
            picture = drawing(name, style)
            assert min(picture.size) >= 16
            alpha = np.asarray(picture.getchannel("a")) >= VISIBLE
            assert all(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))
        for language in OTHER_LANGUAGES:
            assert foreign_name(name, language).strip()
    for language in OTHER_LANGUAGES:
        assert len({foreign_name(name, language) for name in NAMES}) == len(NAMES), language


def test_records_are_json():
    record = Scenes("test", languages="all", clicks=True, noise=0.5).record(4)
    assert json.loads(json.dumps(dict(record.columns))) == record.columns
    assert len(record.texts) == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "no split 'dev'"),
        ({"noise": 1.5}, "noise"),
        ({"side": 4}, "side"),
        ({"count": -1}, "count"),
        ({"languages": "en+xx"}, "no language 'xx'"),
        ({"languages": ()}, "languages"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        Scenes(**options)


def test_fewer_things_and_objects_and_captions_of_the_whole():
    corpus = Scenes("train", things=8, objects=2, whole=True, side=32)
    seen = set()
    for row in range(300):
        record, scene = corpus.record(row), corpus.scene(row)
        seen |= set(scene.counts())
        assert len(scene.objects) <= 2
        for claim in record.columns["claims"]:
            counted = {fact["count"][0]: fact["count"][1] for fact in claim["all"] if "count" in fact}
            assert counted == scene.counts()
            assert {"background": scene.background} in claim["all"]
            assert holds(claim, scene)
    assert len(seen) == 8
    other = Scenes("train", things=8, objects=2, side=32)
    assert other.fingerprint != corpus.fingerprint
    assert torch.equal(other.image(5), corpus.image(5))


def test_ambiguous_texts_say_the_same_with_words_that_leave_open_which_thing_is_meant():
    """Nothing differs but names, articles and measure words, which are the kind's."""
    corpus, plain = (Scenes("test", count=150, languages="en+zh+de", ambiguous=a) for a in (True, False))
    changed = set()
    for row in range(len(corpus)):
        record = corpus.record(row)
        assert record.texts == plain.record(row).texts
        assert "ambiguous" not in plain.record(row).columns
        given = record.columns["ambiguous"]
        assert given["de"] == record.texts["de"]
        for language, vaguely in (("en", vague_english), ("zh", vague_chinese)):
            assert given[language] == [vaguely(text) for text in record.texts[language]]
            changed.update(set(given[language]) - set(record.texts[language]))
    assert len(changed) > 300
    assert corpus.fingerprint != plain.fingerprint


def longest_first(names):
    return "|".join(sorted(names, key=len, reverse=True))


def vague_english(text):
    by_word = {word: name for name in NAMES for word in (THINGS[name].plural, name)}

    def replaced(found):
        kind = OPEN_NAMES[by_word[found[3]]]
        if not found[1]:
            return (found[2] or "") + kind.plural
        following = (found[2] or "") + kind.name
        return ("an " if following[0] in "aeiou" and following[:7] != "unicorn" else "a ") + following

    return re.sub(rf"\b(an? )?((?:large|small) )?({longest_first(by_word)})\b", replaced, text)


def vague_chinese(text):
    by_word = {THINGS[name].chinese: name for name in NAMES}
    measures = longest_first({thing.measure for thing in THINGS.values()})

    def replaced(found):
        kind = OPEN_NAMES[by_word[found[3]]]
        return found[1] + kind.measure + (found[2] or "") + kind.chinese

    return re.sub(rf"([一两三四五])(?:{measures})(很[大小]的)?({longest_first(by_word)})", replaced, text)


def test_tags_name_what_is_there_in_every_language():
    corpus = Scenes(count=30, languages="en+zh+ja")
    for row in range(30):
        names = list(corpus.scene(row).counts())
        want = {"en": names, "zh": [THINGS[n].chinese for n in names], "ja": [foreign_name(n, "ja") for n in names]}
        assert corpus.record(row).columns["tags"] == want


def test_every_open_name_is_of_things_there_are():
    members = [name for names in KINDS.values() for name in names]
    assert len(members) == len(set(members)) > 90
    assert set(members) <= set(NAMES)
    assert not set(KINDS) & set(NAMES)
    assert all(OPEN_NAMES[name] is THINGS[name] for name in NAMES if name not in members)


def test_ambiguous_texts_of_wrong_captions_are_refused():
    with pytest.raises(UserError, match="leave out noise or ambiguous"):
        Scenes(ambiguous=True, noise=0.1)


def test_a_split_without_a_pair_of_its_own_is_refused_and_does_not_hang():
    """Found by hand: of 8 things spread over the list no two are held out for val, of 9 some are."""
    with pytest.raises(UserError, match="things=8 leave no two for val"):
        Scenes("val", things=8)
    for split, things in (("train", 8), ("test", 8), ("val", 9)):
        scenes = Scenes(split, count=40, side=16, things=things)
        held_out = {scenes.record(row).columns["held_out"] for row in range(40)}
        assert held_out == ({""} if split == "train" else {"", "pair", "concept"})
