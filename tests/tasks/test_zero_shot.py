"""Zero-shot classification of pictures of one colour by systems that know colours; prompts by hand; bad files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.tasks.stub import ready
from tuwen.cli.evaluate import print_measured
from tuwen.data.classes import classes_of
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.corpora.scenes.things import THINGS
from tuwen.data.corpus import Corpus, Record
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.nn.encoded import Encoded
from tuwen.nn.towers import unit
from tuwen.similarity.prompts import average_scores, average_vectors
from tuwen.similarity.token_wise import token_scores
from tuwen.systems.system import Scores, System
from tuwen.tasks.zero_shot import accuracies, evaluate_zero_shot

COLOURS = {
    "red": ("红", (255, 0, 0)),
    "green": ("绿", (0, 255, 0)),
    "blue": ("蓝", (0, 0, 255)),
    "black": ("黑", (5, 5, 5)),
}
SHOWN = ["red", "blue", "red", "green", "red", "blue"]


class Squares(Corpus):
    name, split, languages, fingerprint = "squares", "test", ("en", "zh"), "squares"

    def __init__(self, keys=SHOWN, chinese=True):
        self.keys, self.chinese = keys, chinese

    def __len__(self):
        return len(SHOWN)

    def record(self, row):
        texts = {"en": [SHOWN[row]], "zh": [COLOURS[SHOWN[row]][0] if self.chinese else f"图{row}"]}
        return Record(str(row), texts, row, {"cls": self.keys[row]})

    def image(self, row):
        return torch.tensor(COLOURS[SHOWN[row]][1], dtype=torch.uint8)[:, None, None].expand(3, 4, 4).contiguous()


@pytest.fixture(scope="module")
def tokenizer():
    words = [word for name, (chinese, _) in COLOURS.items() for word in (name, chinese)]
    return Tokenizer.train([*words, "a photo of the picture .", "的照片。一张图片", "not"] * 3, size=200)


class Knowing(System):
    """Vectors are colours; a text's is the mean of the colours it names."""

    def __init__(self, tokenizer):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.meaning = torch.zeros(tokenizer.vocabulary.size, 3)
        for name, (chinese, colour) in COLOURS.items():
            for word in (name, chinese):
                for i in tokenizer.ids([word])[0]:
                    self.meaning[i] += torch.tensor(colour) / 255
        self.config, self.vocabulary = SimpleNamespace(), tokenizer.vocabulary

    def encode_images(self, images):
        return Encoded(unit(images.pixels.float().mean((2, 3)) / 255))

    def encode_texts(self, texts):
        return Encoded(unit(self.meaning[texts.ids].sum(1)))


class KnowingTokens(Knowing):
    def encode_images(self, images):
        return Encoded(tokens=unit(images.pixels.float().flatten(2).mT / 255))

    def encode_texts(self, texts):
        tokens = self.meaning[texts.ids]
        return Encoded(tokens=unit(tokens), token_mask=tokens.sum(-1) > 0)

    def scores(self, images, texts):
        return Scores(*token_scores(images, texts))


def knowing(tokenizer, kind=Knowing, languages=("en", "zh")):
    return ready(kind(tokenizer), languages, tokenizer, 4, 16)


@pytest.mark.parametrize("kind", [Knowing, KnowingTokens])
def test_a_system_that_knows_is_right_in_both_languages(kind, tokenizer, capsys):
    found = evaluate_zero_shot(knowing(tokenizer, kind), Squares())
    assert found["classes"] == 3
    for language in ("en", "zh"):
        one = found["languages"][language]
        assert (one["top1"], one["top5"], one["mean_per_class"], one["prompts"]) == (100, 100, 100, 3)
        assert one["chance"] == pytest.approx(100 / 3)
    print_measured(found)
    assert "100.0" in capsys.readouterr().out


def test_accuracies_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.5, 0.5], [0.2, 0.3, 0.1], [0.0, 0.0, 1.0]])
    found = accuracies(scores, torch.tensor([1, 0, 0, 0]))  # right; right by class number; wrong; wrong
    assert found["top1"] == 50
    assert found["mean_per_class"] == pytest.approx((100 + 100 / 3) / 2)
    wide = torch.arange(10.0).expand(2, 10)
    assert accuracies(wide, torch.tensor([5, 4]))["top5"] == 50
    with pytest.raises(UserError, match="not finite"):
        accuracies(scores / 0, torch.tensor([1, 0, 0, 0]))


def test_prompts_are_averaged_before_or_after():
    a, b = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.0, 1], [0, 1]])
    half = 2**-0.5
    assert torch.allclose(average_vectors(torch.stack([a, b])), torch.tensor([[half, half], [0, 1]]))
    with pytest.raises(ValueError, match="tokens"):
        average_vectors(torch.zeros(2, 3, 4, 5))
    scores = torch.tensor([[[0.0, np.log(3)]], [[0.0, 0.0]]])
    assert torch.allclose(average_scores(scores), torch.tensor([[0.375, 0.625]]))
    once = torch.randn(1, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(average_scores(once.repeat(4, 1, 1)).argsort(1), once[0].argsort(1))


def test_class_names_from_a_file(tokenizer, tmp_path):
    file = tmp_path / "zeroshot.json"
    names = {"en": list(COLOURS), "zh": [chinese for chinese, _ in COLOURS.values()]}
    file.write_text(json.dumps({"classnames": names, "templates": {"en": ["{c}", "a photo of {}."]}}))
    for keys in (
        SHOWN,
        [COLOURS[name][0] for name in SHOWN],
        [list(COLOURS).index(name) for name in SHOWN],
        ["0", 2, 0, 1, 0, 2],
    ):
        known = classes_of(Squares(keys), file)
        assert known.labels.tolist() == [0, 2, 0, 1, 0, 2]
    assert known.texts("en") == [list(COLOURS), [f"a photo of {name}." for name in COLOURS]]
    found = evaluate_zero_shot(knowing(tokenizer), Squares(), classes=file, languages=["en"], limit=4)
    assert (found["images"], found["classes"], list(found["languages"])) == (4, 4, ["en"])
    assert found["languages"]["en"]["prompts"] == 2
    bad = {
        "no json": "is not",
        '{"names": []}': "is not",
        '{"classnames": {"en": []}}': "classnames must be lists",
        '{"classnames": {"en": ["a"], "zh": ["b", "c"]}}': "as many names",
        '{"classnames": {"en": ["a"]}, "templates": {"en": ["photo"]}}': "has no {c}",
        '{"classnames": {"en": ["a"]}}': "none of its 1 classes",
    }
    for text, why in bad.items():
        file.write_text(text)
        with pytest.raises(UserError, match=why):
            classes_of(Squares(), file)
    with pytest.raises(UserError, match="cannot be read"):
        classes_of(Squares(), tmp_path / "none.json")


def test_names_that_rows_do_not_share_are_no_names():
    assert list(classes_of(Squares()).names) == ["en", "zh"]
    known = classes_of(Squares(chinese=False))
    assert list(known.names) == ["en"]
    assert known.names["en"] == ["blue", "green", "red"]
    assert known.labels.tolist() == [2, 0, 2, 1, 2, 0]


def test_refusals(tokenizer):
    with pytest.raises(UserError, match="no class names in 'fr'"):
        evaluate_zero_shot(knowing(tokenizer), Squares(), languages=["fr"])
    with pytest.raises(UserError, match="knows no language 'zh'"):
        evaluate_zero_shot(knowing(tokenizer, languages=["en"]), Squares(), languages=["zh"])
    with pytest.raises(UserError, match="was trained on ja"):
        evaluate_zero_shot(knowing(tokenizer, languages=["ja"]), Squares())


def test_scenes_of_one_thing_are_classified_by_it():
    scenes = Scenes("test", count=60, side=32, things=24, objects=3)
    known = classes_of(scenes)
    alone = [row for row in range(60) if len(scenes.scene(row).counts()) == 1]
    assert np.flatnonzero(known.labels >= 0).tolist() == alone
    for row in alone:
        thing = next(iter(scenes.scene(row).counts()))
        assert known.names["en"][known.labels[row]] == THINGS[thing].name
        assert known.names["zh"][known.labels[row]] == THINGS[thing].chinese


def test_what_a_reader_must_know_is_noted(tokenizer, tmp_path, capsys):
    file = tmp_path / "zeroshot.json"
    file.write_text(json.dumps({"classnames": {"en": ["red", "green", "blue", "red"], "zh": ["红", "绿", "蓝", "橙"]}}))
    keys = [0, 2, 3, 1, None, 2]
    found = evaluate_zero_shot(knowing(tokenizer), Squares(keys), classes=file)
    assert found["images"] == 5
    assert found["languages"]["en"]["top1"] == 80.0  # the picture of class 3 is red, and goes to class 0
    assert found["note"].splitlines() == [
        "left out: 1 pictures without one class",
        "in en several classes have one name, and the first is always taken: red (0, 3)",
    ]
    print_measured(found)
    assert capsys.readouterr().out.endswith(found["note"] + "\n")
    assert evaluate_zero_shot(knowing(tokenizer), Squares())["note"] == ""
