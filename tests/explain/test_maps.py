"""Word maps of a system whose tokens are colours, by hand; Grad-CAM against loops over what a system's parts record."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.systems.common import build
from tests.tasks.stub import ready
from tuwen.data.batch import Images
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.explain import explain, word_maps
from tuwen.nn.encoded import Encoded
from tuwen.nn.relations import recorded
from tuwen.nn.sizes import size
from tuwen.predictor import Predictor
from tuwen.similarity.token_wise import token_flow, token_scores
from tuwen.systems.system import Scores, System

COLOURS = {"red": [1.0, 0, 0], "绿色": [0, 1.0, 0], "blue": [0, 0, 1.0]}


class Colours(System):
    """Image tokens are the colours of 2 x 2 cells, a word's token its colour; other words are nothing."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.meaning = torch.zeros(tokenizer.vocabulary.size, 3)
        for word, colour in COLOURS.items():
            for i in tokenizer.ids([word])[0]:
                self.meaning[i] = torch.tensor(colour)
        self.config, self.vocabulary = SimpleNamespace(), tokenizer.vocabulary

    def encode_images(self, images):
        cells = nn.functional.adaptive_avg_pool2d(images.pixels.float() / 255, 2)
        return Encoded(tokens=cells.flatten(2).mT * self.scale)

    def encode_texts(self, texts):
        tokens = self.meaning[texts.ids]
        return Encoded(tokens=tokens, token_mask=tokens.sum(-1) > 0)

    def scores(self, images, texts):
        return Scores(*token_scores(images, texts))

    def flow(self, images, texts):
        return token_flow(images, texts)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red and a blue square of things", "红色绿色的方块"] * 3, size=200)


def model(system: System, tokenizer: Tokenizer, side: int, length: int = 16) -> Predictor:
    return ready(system.eval(), ("en", "zh"), tokenizer, side, length)


def picture() -> torch.Tensor:
    """Red and blue above; below green, and half red half blue."""
    x = torch.zeros(3, 4, 4, dtype=torch.uint8)
    x[0, :2, :2] = 255
    x[2, :2, 2:] = 255
    x[1, 2:, :2] = 255
    x[0, 2:, 2], x[2, 2:, 3] = 255, 255
    return x


def test_maps_by_hand(tokenizer):
    found = explain(model(Colours(tokenizer), tokenizer, 4), picture(), "Red, and 绿色 blue!")
    assert found.words == ["Red", "绿色", "blue"]  # "and" means nothing to this system, signs are no words
    red, green, blue = found.maps.tolist()
    assert (red, green, blue) == ([[1, 0], [0, 0.5]], [[0, 0], [1, 0]], [[0, 1], [0, 0.5]])
    assert found.score == pytest.approx(1.0)
    assert found.flow.T.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    assert found.how == "tokens"


def test_word_maps_are_scaled_word_by_word(tokenizer):
    asked = model(Colours(tokenizer), tokenizer, 4)
    dim = (picture() // 5).to(torch.uint8)
    words, maps, part = word_maps(asked, dim, "blue red")
    assert words == ["blue", "red"]
    assert part == (0, 0, 1, 1)
    assert torch.allclose(maps[0], torch.tensor([[0, 1], [0, 0.5]]), atol=0.02)
    assert maps.amax((1, 2)).tolist() == [1, 1]
    flat = word_maps(asked, torch.full((3, 4, 4), 255, dtype=torch.uint8), "red").maps
    assert flat.tolist() == [[[0, 0], [0, 0]]]


def test_what_cannot_be_explained_is_told(tokenizer):
    asked = model(Colours(tokenizer), tokenizer, 4)
    for text in ("", " ", "!?", "。"):
        with pytest.raises(UserError, match="no word in the text"):
            explain(asked, picture(), text)
    with pytest.raises(UserError, match="takes part in its score"):
        explain(asked, picture(), "things of squares")
    with pytest.raises(UserError, match="cannot be read"):
        explain(asked, b"no picture", "red")
    with pytest.raises(UserError, match="no language 'fr'"):
        explain(asked, picture(), "red", language="fr")
    with pytest.raises(UserError, match="no explanation by 'magic'"):
        explain(asked, picture(), "red", how="magic")
    with pytest.raises(UserError, match="looks at no places"):
        explain(asked, picture(), "red", how="attention")
    clip = model(build("clip"), tokenizer, 32)
    able_by = {None: "albef, blip, r2d2", "regions": "mvptr, slan", "tokens": "bagformer, tokenflow, wukong"}
    for how, able in able_by.items():
        with pytest.raises(UserError, match=rf"clip cannot explain.*; {able} can$"):
            explain(clip, torch.zeros(3, 32, 32, dtype=torch.uint8), "red", how=how)


@pytest.mark.parametrize("name", ["albef", "r2d2"])
def test_grad_cam_is_attention_times_positive_gradient(name, tokenizer):
    system = build(name, fusion=dataclasses.replace(size("tiny").fusion, layers=3)).eval()
    asked = model(system, tokenizer, 32)
    system.encoders.text.words = nn.Embedding(tokenizer.vocabulary.size, 32)
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = explain(asked, pixels, "red square 绿色")
    assert found.words == ["red", "square", "绿色"]
    assert found.maps.shape == (3, 4, 4)
    assert (found.maps.amax((1, 2)) > 0).all()

    ids, mask = tokenizer.encode(["red square 绿色"], 16)
    with torch.no_grad():
        image = system.encoders.encode_images(Images(pixels[None])).states["last"]
        text = system.encoders.encode_texts(ids, mask).states["last"]
    with recorded(system, r".*\.cross") as relations:
        if name == "albef":
            logits = system.match_head(system.fusion(text, mask, image, None)[:, 0])
        else:
            logits = system.text_match_head(system.text_queries(text, mask, image, None)[:, 0])
    weights = [seen.attention for seen in relations.values()][:-1]  # what the last sees, the match does not read
    gradients = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), weights)
    spans = [np.flatnonzero(row) + 1 for row in word_of_token(tokenizer, "red square 绿色")]
    for word, places in enumerate(spans):
        for cell in range(16):
            shares = [
                max(0.0, float(g[0, head, place, cell + 1])) * float(w[0, head, place, cell + 1].detach())
                for w, g in zip(weights, gradients, strict=True)
                for head in range(w.shape[1])
                for place in places
            ]
            assert float(found.maps[word].flatten()[cell]) == pytest.approx(
                sum(shares) / len(shares), rel=1e-4, abs=1e-9
            )


def test_by_regions_each_phrase_is_located_by_itself(tokenizer):
    system = build("slan", seed=4).eval()
    asked = model(system, tokenizer, 32)
    system.encoders.text.words = nn.Embedding(tokenizer.vocabulary.size, 32)
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    text = "a red square and two blue things"
    found = explain(asked, pixels, text)
    assert (found.how, found.words) == ("regions", ["red square", "two blue things"])
    with torch.no_grad():
        candidates = system.locator.candidates(system.encoders.image.grid(system.encoders.image(pixels[None])))
        places = candidates.features[0, candidates.middle].view(4, 4, -1)
        for k, phrase in enumerate(found.words):
            ids, mask = tokenizer.encode([phrase], 16)
            spoken = int(mask.sum()) - 2
            words = system.locator.words(system.encoders.text(ids, mask))[0, 1 : 1 + spoken]
            heat = (places @ words.T).mean(2)
            smooth = nn.functional.interpolate(heat[None, None], scale_factor=2, mode="bilinear", align_corners=False)
            torch.testing.assert_close(found.maps[k], smooth[0, 0], rtol=0, atol=1e-5)
    assert found.boxes.shape == (2, 4)
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.flow is None
    assert len(found.located.boxes) == 1
    assert explain(asked, pixels, "of and").words == ["of", "and"]  # no noun phrase: word by word
    with pytest.raises(UserError, match="locates nothing"):
        explain(model(Colours(tokenizer), tokenizer, 4), picture(), "red", how="regions")


def word_of_token(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """[words, tokens] bool, from the tokens' places among the characters; words lie between white space."""
    places = tokenizer.places([text])[0]
    starts = [0, 4, 11]
    return np.array(
        [[start <= place[0] < start + 6 and (start != 0 or place[0] < 4) for place in places] for start in starts]
    )


def test_one_fusion_layer_has_no_attention_to_show(tokenizer):
    system = build("albef").eval()
    system.encoders.text.words = nn.Embedding(tokenizer.vocabulary.size, 32)
    with pytest.raises(UserError, match="two layers or more"):
        explain(model(system, tokenizer, 32), torch.zeros(3, 32, 32, dtype=torch.uint8), "red")


@pytest.mark.parametrize("name", ["r2d2", "bridgetower"])
def test_grad_cam_where_a_text_has_as_many_tokens_as_the_picture(name, tokenizer):
    """Both streams attend to each other, 16 to 16: what the picture looks at in the text is no map of the picture."""
    tiny = size("tiny")
    image, fusion = dataclasses.replace(tiny.image, pool="max"), dataclasses.replace(tiny.fusion, layers=2)
    system = build(name, image=image, fusion=fusion).eval()
    asked = model(system, tokenizer, 32, 32)
    system.encoders.text.words = nn.Embedding(tokenizer.vocabulary.size, 32)
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    text = "a a a a a a a"
    assert asked.tokens([text]).ids.shape[1] == 16

    def matched():
        with recorded(system) as relations:
            pair = system.encode_images(Images(pixels[None])), system.encode_texts(asked.tokens([text]))
            logits = system.match(*pair)
        return logits, {layer: seen.attention for layer, seen in relations.items() if layer.endswith("0.cross")}

    logits, crossed = matched()  # of the first layer: the last adds nothing, it is read at one place
    assert [attention.shape[2:] for attention in crossed.values()] == [(16, 16)] * 2
    (looks,) = (attention for layer, attention in crossed.items() if "text" in layer)
    (gradient,) = torch.autograd.grad(logits.sum(), [looks])
    shares = (looks * gradient.clamp(min=0))[0].mean(0).view(16, 4, 4)
    for word, cells in enumerate(explain(asked, pixels, text).maps):
        assert cells.amax() > 0
        torch.testing.assert_close(
            cells / cells.amax(), shares[1 + word] / shares[1 + word].amax(), rtol=1e-4, atol=1e-6
        )


def test_maps_and_boxes_of_a_tower_that_reads_the_middle(tokenizer):
    """A picture twice as wide as high: maps are of its middle half, which is said; boxes are of the whole picture."""
    middle = picture()
    wide = torch.cat([torch.zeros(3, 4, 2, dtype=torch.uint8), middle, torch.zeros(3, 4, 2, dtype=torch.uint8)], 2)
    asked = ready(Colours(tokenizer).eval(), ("en", "zh"), tokenizer, 4, 16, shorter_side=4)
    found, whole = (explain(asked, image, "red") for image in (wide, middle))
    assert (found.part, whole.part) == ((0.25, 0, 0.75, 1), (0, 0, 1, 1))
    assert torch.equal(found.maps, whole.maps)
    assert torch.equal(found.picture, wide)
    assert word_maps(asked, wide, "red").part == (0.25, 0, 0.75, 1)

    system = build("slan", seed=4).eval()
    system.encoders.text.words = nn.Embedding(tokenizer.vocabulary.size, 32)
    middle = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([middle[:, :, :16], middle, middle[:, :, 16:]], 2)
    asked = ready(system, ("en", "zh"), tokenizer, 32, 16, shorter_side=32)
    found, whole = (explain(asked, image, "a red square") for image in (wide, middle))
    for box, same in ((found.boxes, whole.boxes), (found.located.boxes[0], whole.located.boxes[0])):
        torch.testing.assert_close(box[:, [1, 3]], same[:, [1, 3]])
        torch.testing.assert_close(box[:, [0, 2]], 0.25 + 0.5 * same[:, [0, 2]])
