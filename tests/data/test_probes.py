"""Scenes for probing a claim: what they share, what they leave out, and that all else stays as it was."""

from collections import Counter

import pytest

from tuwen.data.corpora.scenes import Scenes, holds
from tuwen.data.corpora.scenes.things import groups
from tuwen.errors import UserError

PLAIN = {"count": 40, "side": 32}


def things(corpus, row):
    return Counter(item.thing for item in corpus.scene(row).objects)


def test_probes_that_are_off_change_no_fingerprint_and_each_that_is_on_does():
    plain = Scenes(**PLAIN).fingerprint
    off = {"mentioned": 0, "dropped": 0.0, "clusters": 1, "twins": False, "groups": False}
    assert Scenes(**PLAIN, **off).fingerprint == plain
    on = ({"mentioned": 1}, {"dropped": 0.2}, {"clusters": 4}, {"twins": True}, {"dropped": 0.3}, {"groups": True})
    assert len({plain, *(Scenes(**PLAIN, **probe).fingerprint for probe in on)}) == 7


def test_a_cluster_shows_the_same_things_in_other_places_and_its_captions_are_true():
    corpus = Scenes("test", clusters=4, **PLAIN)
    plain = Scenes("test", **PLAIN)
    for first in range(0, 40, 4):
        assert all(things(corpus, row) == things(plain, first) for row in range(first, first + 4))
    places = {tuple((item.x, item.y) for item in corpus.scene(row).objects) for row in range(40)}
    assert len(places) == 40
    for row in range(40):
        record = corpus.record(row)
        assert all(holds(claim, corpus.scene(row)) for claim in record.columns["claims"])


def test_twins_share_their_things_and_what_is_said_of_place_and_ground_is_false_of_the_other():
    corpus = Scenes("val", twins=True, **PLAIN)
    for row in range(0, 40, 2):
        assert things(corpus, row) == things(corpus, row + 1)
        assert corpus.scene(row).background != corpus.scene(row + 1).background
        for claim in corpus.record(row + 1).columns["claims"]:
            assert holds(claim, corpus.scene(row + 1))
            ground = any("background" in fact for fact in claim["all"])
            assert not (ground and holds(claim, corpus.scene(row)))
    several = [row for row in range(0, 40, 2) if len(corpus.scene(row).counts()) == 2]
    moved = [corpus.scene(row).objects[0].x != corpus.scene(row + 1).objects[0].x for row in several]
    assert len(moved) > 3
    assert all(moved)


def test_groups_are_asked_for_by_other_things_than_in_training_and_no_caption_names_one():
    asked: dict[str, set] = {}
    for split in ("train", "test"):
        corpus = Scenes(split, count=200, side=32, things=32, objects=3, groups=True)
        questions = corpus.exercises("questions")
        of = groups()
        by_name = {group.en: group for group in of.values()}
        asked[split] = set()
        for row in range(0, 200, 4):  # en, zh of one picture, en, zh of the other
            yes, no = questions.record(row), questions.record(row + 2)
            (words,) = yes.texts["en"]
            group = by_name[words.removeprefix("Is there any ").removesuffix(" in the picture?")]
            assert questions.record(row + 1).texts["zh"] == [f"图中有{group.zh}吗？"]
            assert (yes.columns["answers"], no.columns["answers"]) == (["yes"], ["no"])
            shown, absent = (set(questions.scenes(place)[0].counts()) for place in (row, row + 2))
            assert not any(of[name] == group for name in absent)
            (thing,) = [name for name in shown if of[name] == group]
            asked[split].add(thing)
        for row in range(50):
            texts = " ".join(corpus.record(row).texts["en"])
            assert not any(f" {group}" in texts for group in by_name)
    assert len(asked["train"]) > 5
    assert len(asked["test"]) > 5
    assert not asked["train"] & asked["test"]
    with pytest.raises(UserError, match="too few for groups"):
        Scenes(things=8, groups=True)


def test_focal_captions_tell_of_one_kind_of_thing_and_are_true():
    corpus = Scenes(mentioned=1, whole=True, noise=0.3, **PLAIN)
    for row in range(40):
        record = corpus.record(row)
        for claim in record.columns["claims"]:
            assert len({fact["count"][0] for fact in claim["all"] if "count" in fact}) == 1
            assert holds(claim, corpus.scene(row)) != record.columns["noisy"]
    assert any(len(things(corpus, row)) > 1 for row in range(40))


def test_dropped_words_are_missing_in_order_and_one_word_stays():
    whole, short = Scenes(**PLAIN), Scenes(dropped=0.4, **PLAIN)
    lost = total = 0
    for row in range(40):
        for language, texts in whole.record(row).texts.items():
            for text, left in zip(texts, short.record(row).texts[language], strict=True):
                split = list if language == "zh" else str.split
                words, remaining = split(text), split(left)
                position = iter(words)
                assert all(word in position for word in remaining)  # a subsequence
                assert remaining
                lost, total = lost + len(words) - len(remaining), total + len(words)
    assert lost / total == pytest.approx(0.4, abs=0.03)
    assert short.record(3).columns["claims"] == whole.record(3).columns["claims"]


@pytest.mark.parametrize("wrong", [{"mentioned": 6}, {"dropped": 1.0}, {"clusters": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="scenes: mentioned="):
        Scenes(**PLAIN, **wrong)
