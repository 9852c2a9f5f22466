"""How evenly a cross encoder looks: by hand, against loops over its attention, and what says nothing."""

import json
import math

import numpy as np
import pytest
import torch

from tests.systems.common import build
from tests.tasks.stub import ready
from tuwen.cli import main
from tuwen.data.batch import Images
from tuwen.data.corpora.scenes import Scenes
from tuwen.data.grounding import Phrase
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.explain import focus
from tuwen.explain.focus import looks, measure_focus, mentions, patches_in
from tuwen.nn.relations import recorded
from tuwen.training import loop
from tuwen.training.config import RunConfig

SCENES = Scenes(count=9, side=32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        [text for row in range(9) for told in SCENES.record(row).texts.values() for text in told], size=300
    )


def predictor(tokenizer: Tokenizer, name: str = "albef", **changes):
    system = build(name, vocabulary=tokenizer.vocabulary, **changes).eval()
    return ready(system, ("en", "zh"), tokenizer, 32, 32)


@pytest.mark.parametrize(
    ("caption", "phrase", "named"),
    [
        ("an apple and two cats", "a cat", True),
        ("an apple and two cats", "An Apple", True),
        ("three foxes, ten cherries", "a fox", True),
        ("three foxes, ten cherries", "a cherry", True),
        ("a carrot", "a car", False),
        ("the scar", "a car", False),
        ("红色背景上有两只猫", "一只猫", True),
        ("红色背景上有两只猫", "一只狗", False),
        ("一", "一", True),
    ],
)
def test_what_a_caption_names(caption, phrase, named):
    assert mentions(caption, phrase) == named


def test_patches_whose_middle_lies_in_a_box():
    inside = patches_in([np.array([0.0, 0.0, 0.5, 0.3]), np.array([0.9, 0.9, 1.0, 1.0])], 4)
    assert inside.nonzero()[:, 0].tolist() == [0, 1]  # the second box holds no middle
    assert patches_in([np.array([0.6, 0.1, 0.9, 0.9])], 2).nonzero()[:, 0].tolist() == [1, 3]
    assert not patches_in([], 4).any()


def test_figures_of_a_picture_by_hand():
    """Four patches with shares 0.4, 0.3, 0.2, 0.1: above 1/4 are the first two, above 1.4/4 the first alone."""
    mass = torch.tensor([0.4, 0.3, 0.2, 0.1])
    cat = Phrase(0, "a cat", "en", np.array([[0.0, 0, 0.5, 1]]))  # the left column: patches 0 and 2
    dog = Phrase(0, "a dog", "en", np.array([[0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]]))  # patches 1 and 3
    figures = dict(focus._of_picture(mass, "a cat", [cat, dog], 1.0))
    entropy = -sum(x * math.log(x) for x in mass.tolist()) / math.log(4)
    assert figures == pytest.approx({"coverage": 0.5, "described": 0.5, "undescribed": 0.5, "entropy": entropy})
    figures = dict(focus._of_picture(mass, "a cat", [cat, dog], 1.4))
    assert (figures["described"], figures["undescribed"]) == (0.5, 0.0)
    assert "undescribed" not in dict(focus._of_picture(mass, "a cat", [cat], 1.0))


@torch.no_grad()
@pytest.mark.parametrize("name", ["albef", "vlmae", "blip"])
def test_where_texts_look_is_the_mean_of_heads_words_and_layers(name, tokenizer):
    asked = predictor(tokenizer, name)
    pixels = torch.stack([SCENES.image(row) for row in range(3)])
    captions = ["a cat", "an apple and a red house on a green ground", "红色背景上有两只猫"]
    mass = looks(asked, asked.encode(Images(pixels)), asked.tokens(captions))
    for row in range(3):
        images, texts = asked.encode(Images(pixels[row : row + 1])), asked.tokens(captions[row : row + 1])
        sentence = asked.encode(texts)
        with recorded(asked.system) as relations:
            asked.system.fuse([images], sentence)
        want, words = torch.zeros(16), int(texts.mask.sum())
        layers = [of.attention[0] for layer, of in relations.items() if layer.endswith("cross")]
        for attention in layers:
            for head in attention:
                for word in range(words):
                    share = head[word, 1:]  # without the class token
                    want += share / share.sum() / (len(layers) * len(attention) * words)
        torch.testing.assert_close(mass[row], want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mass.sum(1), torch.ones(3))


def test_a_corpus_is_measured_picture_by_picture(tokenizer):
    asked = predictor(tokenizer, "vlmae")
    figures = measure_focus(asked, SCENES, limit=6)
    assert set(figures["languages"]) == {"en", "zh"}
    for language, of in figures["languages"].items():
        assert of["pictures"] == 6
        shares = []
        for row in range(6):
            record = SCENES.record(row)
            encoded = asked.encode(Images(SCENES.image(row)[None]))
            (mass,) = looks(asked, encoded, asked.tokens([record.texts[language][0]], language))
            inside = patches_in([np.array(item["box"]) for item in record.columns["objects"]], 4)
            if inside.any():
                shares.append(float((mass[inside] > 1 / 16).float().mean()))
        assert of["coverage"] == pytest.approx(100 * np.mean(shares)), language
        assert 0.5 < of["entropy"] <= 1
        if of["bias"] is not None:
            assert of["bias"] == pytest.approx(of["described"] - of["undescribed"])


def test_a_model_that_looks_at_nothing_has_entropy_one_and_no_bias(tokenizer):
    asked = predictor(tokenizer)
    for block in asked.system.fusion.stack.blocks:
        with torch.no_grad():
            block.cross.key_value.weight.zero_()
            block.cross.key_value.bias.zero_()
    for of in measure_focus(asked, SCENES)["languages"].values():
        assert of["entropy"] == pytest.approx(1)
        assert (of["coverage"], of["bias"]) == (0, 0)


@pytest.mark.parametrize(
    ("name", "why"), [("clip", "no cross encoder"), ("flava", "no attention from words to places")]
)
def test_systems_that_cannot_are_told(name, why, tokenizer):
    with pytest.raises(UserError, match=why):
        measure_focus(predictor(tokenizer, name), SCENES)


def test_from_the_shell(tmp_path, capsys):
    changes = {"train.steps": 1, "train.batch_size": 8, "data.workers": 0, "train.threads": 1}
    run = loop.train(
        RunConfig.of("vlmae", "tiny", "scenes:count=16,side=32", changes=changes), tmp_path / "run", quiet=True
    )
    asked = ["explain", str(run), "--focus", "scenes:count=16,side=32", "--limit", "5"]
    assert main([*asked, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["languages"]["zh"]["pictures"] == 5
    assert main(asked) == 0
    assert "undescribed" in capsys.readouterr().out
    for wrong in ([*asked, "--out", "x.png"], ["explain", str(run)], ["explain", str(run), "a.png", "red"]):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2
