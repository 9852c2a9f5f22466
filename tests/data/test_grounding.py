"""Phrases with their boxes: of scenes, of a column, of a file beside the table; faults are told with their place."""

import json

import numpy as np
import pytest

from tests.tasks.stub import Pairs
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.exercises import exercises_of
from tuwen.data.grounding import FILE, phrases_of
from tuwen.data.open import open_corpus
from tuwen.data.shards import write_shards
from tuwen.errors import UserError


def test_scenes_name_every_thing_once_with_all_its_boxes(tmp_path):
    scenes = Scenes("test", 12, side=64)
    found = phrases_of(scenes)
    for row in range(12):
        counts = scenes.scene(row).counts()
        for language in ("en", "zh"):
            mine = [phrase for phrase in found if (phrase.row, phrase.language) == (row, language)]
            assert [len(phrase.boxes) for phrase in mine] == list(counts.values())
        boxes = {tuple(box) for phrase in found if phrase.row == row for box in phrase.boxes.tolist()}
        assert boxes == {tuple(box) for box in scenes.record(row).columns["boxes"]}
    write_shards({"test": scenes}, tmp_path / "built")
    again = phrases_of(open_corpus(tmp_path / "built", "test"))
    assert [(a.row, a.text, a.boxes.tolist()) for a in again] == [(a.row, a.text, a.boxes.tolist()) for a in found]
    assert {phrase.row for phrase in phrases_of(scenes, limit=5)} == set(range(5))


def test_a_column_of_objects_and_phrases_a_language():
    objects = [
        {"phrase": "a red  cap", "box": [0, 0, 0.5, 0.5]},
        {"phrase": {"en": "a red cap", "zh": "红帽子"}, "box": [0.5, 0.5, 1, 1]},
    ]
    corpus = Pairs([{"en": ["1"]}, {"en": ["2"]}], columns=[{"objects": objects}, {}])
    found = {(phrase.language, phrase.text): phrase.boxes.tolist() for phrase in phrases_of(corpus)}
    assert found == {
        ("en", "a red cap"): [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]],
        ("zh", "红帽子"): [[0.5, 0.5, 1, 1]],
    }


def table(folder, lines: list[str], on_bad: str = "stop"):
    scenes = Scenes("test", 3, side=32)
    (folder / "images").mkdir()
    rows = []
    for k in range(3):
        from PIL import Image

        Image.fromarray(scenes.image(k).permute(1, 2, 0).numpy()).save(folder / "images" / f"{k}.png")
        rows.append({"id": f"p{k}", "image": f"images/{k}.png", "texts": {}, "split": "test"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / FILE).write_text("\n".join(lines))
    return open_corpus(folder, "test", on_bad)


def test_a_file_beside_the_table_is_joined_by_id(tmp_path):
    lines = [
        json.dumps({"id": "p2", "objects": [{"phrase": "cell", "box": [0.1, 0.2, 0.3, 0.4]}]}),
        json.dumps({"id": "elsewhere", "objects": [{"phrase": "cell", "box": [0.1, 0.2, 0.3, 0.4]}]}),
    ]
    (found,) = phrases_of(table(tmp_path, lines))
    assert (found.row, found.text, found.language) == (2, "cell", "en")
    np.testing.assert_allclose(found.boxes, [[0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "grounding.jsonl:1: not a JSON object"),
        ('{"id": "p1"}', "grounding.jsonl:1: not a JSON object"),
        ('{"id": "p1", "objects": [{"box": [0, 0, 1, 1]}]}', "grounding.jsonl:1: an object has no phrase"),
        ('{"id": "p1", "objects": [7]}', "grounding.jsonl:1: an object has no phrase"),
        ('{"id": "p1", "objects": [{"phrase": "x", "box": [0, 1]}]}', "box of 'x' is not four numbers"),
        ('{"id": "p1", "objects": [{"phrase": "x", "box": [0.5, 0, 0.5, 1]}]}', "is none"),
        ('{"id": "p1", "objects": [{"phrase": "x", "box": [0, 0, 640, 480]}]}', "is none"),
        ('{"id": "p1", "objects": [{"phrase": "x", "box": [0, 0, NaN, 1]}]}', "is none"),
        ('{"id": "p1", "objects": []}', "knows no boxes"),
    ],
)
def test_faults_are_told_with_their_place(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        phrases_of(table(tmp_path, [line]))


def test_what_is_wrong_is_left_out_and_counted_where_faults_are_skipped(tmp_path):
    """As the box without a size in each of BCCD's two splits, which refused the whole of it."""
    box, none = [0.1, 0.2, 0.3, 0.4], [0.7875, 0.7021, 0.7875, 0.7021]
    objects = [{"phrase": "cell", "box": none}, {"phrase": "cell", "box": box}, {"box": box}]
    lines = [json.dumps({"id": "p0", "objects": objects}), "{", json.dumps({"id": "p2", "objects": [objects[0]]})]
    corpus = table(tmp_path, lines, "skip")
    (phrase,) = phrases_of(corpus)
    assert (phrase.row, phrase.boxes.tolist()) == (0, [box])
    rows = exercises_of(corpus, "phrases")
    assert (len(rows), rows.record(0).columns["boxes"]) == (1, [box])
    assert rows.skipped == {"no box": 2, "no phrase": 1, "no boxes": 1}
    places = [(fault.file.name, fault.line, fault.reason) for fault in rows.faults]
    assert sorted(places) == [(FILE, 1, "no box"), (FILE, 1, "no phrase"), (FILE, 2, "no boxes"), (FILE, 3, "no box")]
    with pytest.raises(UserError, match=f"{FILE}:2: not a JSON object"):
        exercises_of(open_corpus(tmp_path, "test"), "phrases")


def test_faults_of_a_column_are_skipped_in_built_copies_too(tmp_path):
    objects = [{"phrase": "cell", "box": [0.5, 0.5, 0.5, 0.5]}, {"phrase": "cell", "box": [0, 0, 1, 1]}]
    pairs = Pairs([{"en": ["1"]}, {"en": ["2"]}], columns=[{"objects": objects}, {"objects": "none"}])
    write_shards({"test": pairs}, tmp_path / "built")
    rows = exercises_of(open_corpus(tmp_path / "built", "test", "skip"), "phrases")
    assert (len(rows), rows.skipped) == (1, {"no box": 1, "no boxes": 1})
    with pytest.raises(UserError, match="is none"):
        exercises_of(open_corpus(tmp_path / "built", "test"), "phrases")
