"""A linear probe: the fit against scikit-learn's own and by gradient, the search, what each split is for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from tests.systems.common import build
from tests.systems.test_survey import spanned
from tests.tasks.stub import Pairs, ready
from tuwen import systems
from tuwen.errors import UserError
from tuwen.systems.system import System
from tuwen.tasks.encoding import picture_features
from tuwen.tasks.linear_probe import best_strength, evaluate_linear_probe, fit_probe


def blobs(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    return np.eye(classes)[labels] + generator.normal(0, 0.5, (count, classes)), labels


@pytest.mark.parametrize("strength", [1e-2, 1.0, 100.0])
def test_the_fit_is_the_least_of_its_objective(strength):
    """Its gradient vanishes: the sum of cross entropies + strength / 2 |w|^2, by torch."""
    x, y = blobs(60, 0)
    model = LogisticRegression(C=1 / strength, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(fit_probe(x, y, strength, 3)(x), model.decision_function(x))
    w, b = torch.tensor(model.coef_, requires_grad=True), torch.tensor(model.intercept_, requires_grad=True)
    loss = (
        F.cross_entropy(torch.tensor(x) @ w.T + b, torch.tensor(y), reduction="sum") + strength / 2 * w.square().sum()
    )
    loss.backward()
    assert float(w.grad.abs().max()) < 2e-2
    assert float(b.grad.abs().max()) < 2e-2


def test_classes_without_an_example_are_never_said():
    x, y = blobs(40, 1, 2)
    scores = fit_probe(x, np.where(y == 0, 1, 4), 1.0, 6)(x)
    assert set(scores.argmax(1)) == {1, 4}
    right = np.mean(scores.argmax(1) == np.where(y == 0, 1, 4))
    assert right > 0.8
    assert set(fit_probe(x, np.full(40, 3), 1.0, 6)(x).argmax(1)) == {3}


@pytest.mark.parametrize("peak", [-5.875, -2.0, 0.0, 0.125, 3.375, 6.0])
def test_the_search_finds_a_single_peak_in_fifteen(peak):
    tried = []

    def score(strength: float) -> float:
        tried.append(strength)
        return -abs(np.log10(strength) - peak)

    assert np.log10(best_strength(score)) == pytest.approx(peak)
    assert len(tried) <= 15
    assert min(tried) >= 0.99e-6
    assert max(tried) <= 1.01e6
    assert best_strength(lambda strength: 0.0) == pytest.approx(1e6)  # of equals the strongest


class Reads(System):
    """Picture k has the features `table[k]`."""

    config = None

    def __init__(self, table):
        super().__init__()
        self.table = table

    def encode_images(self, images):
        raise AssertionError("a probe reads the tower's features")

    encode_texts = encode_images

    @property
    def encoders(self):
        return SimpleNamespace(image=self)

    def tokens(self, images):
        numbers = (images.pixels[:, :, 0, 0].long() * torch.tensor([65536, 256, 1])).sum(1)
        return self.table[numbers][:, None]

    def pooled(self, tokens):
        return tokens[:, 0]


def part(labels, split, ids=None) -> Pairs:
    corpus = Pairs([{"en": ["x 1"]}] * len(labels), ids, columns=[{"cls": label} for label in labels])
    corpus.split = split
    return corpus


def test_features_that_tell_the_classes_and_those_that_do_not():
    """40 pictures, class by parity in the features; colours say next to nothing of it."""
    table = torch.tensor([[float(k % 2), 1.0] for k in range(40)])
    train = part(["odd" if k % 2 else "even" for k in range(40)], "train")
    test = part(["odd" if k % 2 else "even" for k in range(20)] + ["other", None], "test")
    found = evaluate_linear_probe(ready(Reads(table), ["en"]), test, train=train)
    assert found["probe"]["top1"] == 100
    assert found["probe"]["mean_per_class"] == 100
    assert found["majority"]["top1"] == 50
    assert (found["images"], found["classes"], found["fitted_on"]) == (20, 2, 40)
    assert "1 pictures of classes that training does not show" in found["note"]
    assert found["colours"]["top1"] < 100


def test_the_penalty_is_chosen_on_validation_alone():
    """On validation the second feature tells, in training the first does, by much: only a weak penalty learns both."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(60, 2, generator=generator) * 0.01
    labels = ["b" if k % 3 == 0 else "a" for k in range(60)]
    table[:, 1] += torch.tensor([1.0 if label == "b" else 0.0 for label in labels])
    predictor = ready(Reads(table), ["en"])
    val = part(labels[:30], "val")
    found = evaluate_linear_probe(predictor, part(labels[30:][:15], "test"), train=part(labels, "train"), val=val)
    assert found["fitted_on"] == 90
    assert found["probe"]["top1"] == 100
    assert found["majority"]["top1"] == pytest.approx(100 * 10 / 15)


def test_refusals():
    predictor = ready(Reads(torch.zeros(9, 2)), ["en"])
    two = part(["a", "b", "a"], "train")
    with pytest.raises(UserError, match="fitted on a train split"):
        evaluate_linear_probe(predictor, two)
    with pytest.raises(UserError, match="1 classes to tell apart"):
        evaluate_linear_probe(predictor, two, train=part(["a", "a"], "train"))
    with pytest.raises(UserError, match="no picture has a class"):
        evaluate_linear_probe(predictor, part([None, "a"][:1] * 2, "test"), train=two)


@pytest.mark.parametrize("name", ["albef", "clip", "cookie", "flava", "mvptr"])
def test_features_are_the_tower_s_before_any_projection(name):
    system, images = build(name).eval(), spanned().images
    with torch.no_grad():
        tower = system.encoders.image
        torch.testing.assert_close(picture_features(system, images), tower.pooled(tower.tokens(images)))
        assert picture_features(system, images).shape[1] == system.config.image.width
    with pytest.raises(UserError, match="no image tower"):
        picture_features(build("dvae"), images)
    assert systems.find("dvae").can("encode_images")
