"""Classes of rows: what a column "cls" may say, what it may not, and what they are called."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.tasks.stub import Pairs
from tuwen.data.classes import SETS, classes_of
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.open import open_corpus
from tuwen.data.shards import write_shards
from tuwen.errors import UserError


def of(*keys, texts=None) -> Pairs:
    rows = texts or [{"en": [f"thing {key}"]} for key in keys]
    return Pairs(rows, columns=[{} if key == "none" else {"cls": key} for key in keys])


def test_rows_without_a_class_are_left_out():
    nan = float("nan")
    assert classes_of(of(1, None, 0, "", nan, "none", 1.0)).labels.tolist() == [1, -1, 0, -1, -1, -1, 1]


@pytest.mark.parametrize("key", [[1], {}, {"en": None}, {"en": ["a"]}, True, 1.5, float("inf"), {"a": {"b": "c"}}])
def test_what_is_no_class_is_a_line_with_the_row(key):
    with pytest.raises(UserError, match=r'column "cls" of row .1. is .*; write the class') as caught:
        classes_of(of(0, key))
    assert len(str(caught.value)) < 400


def test_a_corpus_without_classes():
    with pytest.raises(UserError, match='no column "cls"'):
        classes_of(of(None, "none"))


def test_names_by_language_in_the_column():
    dog, cat = {"en": "dog", "zh": "狗"}, {"en": "cat", "zh": "猫"}
    known = classes_of(of(dog, cat, None, dog))
    assert known.names == {"en": ["cat", "dog"], "zh": ["猫", "狗"]}
    assert known.labels.tolist() == [1, 0, -1, 1]


def test_names_of_several_classes(tmp_path):
    file = tmp_path / "z.json"
    file.write_text(json.dumps({"classnames": {"en": ["crane", "dog", "crane"], "zh": ["鹤", "狗", "吊车"]}}))
    known = classes_of(of(0, 1, 2), file)
    assert known.shared_names("en") == {"crane": [0, 2]}
    assert known.shared_names("zh") == {}


@pytest.mark.parametrize("key", [3, -1, "9" * 5000, "zebra", "²"])
def test_a_class_that_is_none_of_the_file(key, tmp_path):
    file = tmp_path / "z.json"
    file.write_text(json.dumps({"classnames": {"en": ["crane", "dog", "cat"]}}))
    with pytest.raises(UserError, match="none of its 3 classes") as caught:
        classes_of(of(0, key), file)
    assert len(str(caught.value)) < 500


def test_scenes_built_before_they_named_their_class_and_objects(tmp_path, monkeypatch):
    scenes = Scenes("test", count=20, side=32, languages="en+zh+de")
    known = classes_of(scenes)
    assert set(known.names) == {"en", "zh", "de"}
    columns = Scenes._columns
    told = ("objects", "cls")
    monkeypatch.setattr(Scenes, "_columns", lambda *args: {k: v for k, v in columns(*args).items() if k not in told})
    write_shards({"test": scenes}, tmp_path / "old", progress=False)
    monkeypatch.undo()
    old = open_corpus(tmp_path / "old", "test")
    assert [old.record(row).columns["objects"] for row in range(20)] == [
        scenes.record(row).columns["objects"] for row in range(20)
    ]
    again = classes_of(old)
    assert again.names == known.names
    np.testing.assert_array_equal(again.labels, known.labels)


def test_imagenets_names_and_prompts_are_built_in():
    """CLIP's and Wukong's lists: classes by number, by name in either language, by WordNet id."""
    known = classes_of(of(0, "n01443537", "金鱼", "toilet paper", 999), "imagenet")
    assert known.labels.tolist() == [0, 1, 1, 999, 999]
    assert {language: len(names) for language, names in known.names.items()} == {"en": 1000, "zh": 1000}
    assert (known.names["en"][0], known.names["zh"][0], known.names["zh"][-1]) == ("tench", "丁鲷", "卫生纸")
    english, chinese = known.texts("en"), known.texts("zh")
    assert (len(english), len(chinese)) == (80, 80)
    assert (english[0][0], chinese[0][0]) == ("a bad photo of a tench.", "丁鲷的照片。")
    assert known.shared_names("en") == {"missile": [657, 744], "sunglasses": [836, 837]}  # published so
    assert known.shared_names("zh") == {"太阳镜": [836, 837]}
    content = json.loads((SETS / "imagenet.json").read_text("utf-8"))
    assert content["folders"] == sorted(set(content["folders"]))
    assert all(licence in " ".join(content["source"].values()) for licence in ("MIT", "Apache-2.0"))


def test_folders_of_a_part_of_imagenet_are_its_classes(tmp_path):
    """Numbered by the folders that are there, a part of ImageNet would be classes 0, 1, 2."""
    for folder in ("n01440764", "n01443537", "n15075141"):
        (tmp_path / "val" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / folder / f"{folder}_1.JPEG")
    assert classes_of(open_corpus(f"imagenet:{tmp_path}", "val"), "imagenet").labels.tolist() == [0, 1, 999]
    (tmp_path / "val" / "n01443537").rename(tmp_path / "val" / "n99999999")
    with pytest.raises(UserError, match="class 'n99999999' of the corpus is none of its 1000 classes"):
        classes_of(open_corpus(f"imagenet:{tmp_path}", "val"), "imagenet")


def test_a_set_that_is_none_and_folders_that_fit_no_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'imagenett': neither a file of classes nor a set of imagenet"):
        classes_of(of(0), "imagenett")
    names = {"classnames": {"en": ["crane", "dog"]}, "folders": ["a"]}
    (tmp_path / "imagenet").write_text(json.dumps(names))  # a file of one's own goes first
    with pytest.raises(UserError, match="imagenet: folders must be a list of 2 names"):
        classes_of(of(0), "imagenet")
