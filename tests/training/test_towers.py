"""Runs that start from published towers: weights taken; locked ones unchanged and computed once; free ones trained."""

from types import SimpleNamespace

import pytest
import torch

from tests.exchange.checkpoints import TEXT, VISION, randomised, saved
from tuwen.benchmark.arms import planned_arms
from tuwen.benchmark.compare import CompareConfig, compare
from tuwen.benchmark.measure import MeasureConfig
from tuwen.errors import UserError
from tuwen.nn.published.files import tensors_of
from tuwen.nn.published.towers import image_weights, text_weights
from tuwen.nn.sizes import ImageTowerConfig
from tuwen.nn.towers import ImageTower, TextTower
from tuwen.training import features
from tuwen.training.towers import Published

t = pytest.importorskip("transformers")

CORPUS = "scenes:count=24,side=32"
CHANGES = {"data.workers": 0, "data.augment": "none", "data.languages": ["en"], "train.threads": 1}
CHANGES |= {"train.batch_size": 8, "train.lr": 0.01, "train.precision": "float32"}
OPTIONS = {"size": "tiny", "steps": 3, "changes": CHANGES, "validation": 0, "quiet": True}
OPTIONS |= {"how": CompareConfig(measure=MeasureConfig(limit=8, samples=0, languages=("en",)))}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(folder of a ViT, folder of a BERT)."""
    folder = tmp_path_factory.mktemp("published")
    image = saved(randomised(t.ViTModel(t.ViTConfig(**VISION), add_pooling_layer=False)), folder / "vit")
    text = saved(randomised(t.BertModel(t.BertConfig(**TEXT), add_pooling_layer=False)), folder / "bert")
    return str(image), str(text)


def trained(run, name: str) -> dict[str, torch.Tensor]:
    """Tensors of one tower in a run's weights, without the prefix."""
    stem = f"encoders.{name}."
    held = tensors_of(run / "weights.safetensors")
    return {key.removeprefix(stem): value for key, value in held.items() if key.startswith(stem)}


def same(run, name: str, source) -> list[bool]:
    held = trained(run, name)
    return [torch.equal(held[key], value[: len(held[key])]) for key, value in source.tensors.items()]


def test_locked_towers_stay_and_are_computed_once_for_all_runs(places, tmp_path, monkeypatch):
    monkeypatch.setenv("TUWEN_CACHE", str(tmp_path / "cache"))
    ran = {ImageTower: 0, TextTower: 0}
    for kind in ran:
        before = kind.run

        def counted(self, inputs, *rest, before=before, kind=kind, **options):
            ran[kind] += len(inputs)
            return before(self, inputs, *rest, **options)

        monkeypatch.setattr(kind, "run", counted)
    locked = Published(*places, ("image", "text"))
    found = compare(["clip"], CORPUS, tmp_path / "a", published=locked, **OPTIONS)
    run = tmp_path / "a" / "clip-seed0"
    assert list(found["systems"]["clip"]["languages"]) == ["en"]
    assert all(same(run, "image", image_weights(places[0])))
    assert all(same(run, "text", text_weights(places[1])))
    texts, first = ran[TextTower], ran[ImageTower]
    assert first == 3 + 24 + 8, "a blank in each of three trainings, each picture once, those measured on"
    assert texts > 0

    compare(["clip"], CORPUS, tmp_path / "b", published=locked, **OPTIONS)
    assert ran[TextTower] == texts, "no text is read again"
    assert ran[ImageTower] == first + 3 + 8, "pictures measured on are not kept, those trained on are"
    again = tensors_of(tmp_path / "b" / "clip-seed0" / "weights.safetensors")
    for name, value in tensors_of(run / "weights.safetensors").items():
        assert torch.equal(again[name], value), name

    monkeypatch.setenv("TUWEN_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(features, "image_features", lambda *_: None)
    monkeypatch.setattr(features, "text_features", lambda *_: None)
    compare(["clip"], CORPUS, tmp_path / "c", published=locked, **OPTIONS)
    plain = tensors_of(tmp_path / "c" / "clip-seed0" / "weights.safetensors")
    for name, value in tensors_of(run / "weights.safetensors").items():
        torch.testing.assert_close(plain[name], value, rtol=0, atol=1e-5, msg=f"{name}: kept features change nothing")


def test_free_towers_are_trained(places, tmp_path):
    compare(["clip"], CORPUS, tmp_path, published=Published(*places), **OPTIONS)
    run = tmp_path / "clip-seed0"
    assert not any(same(run, "image", image_weights(places[0])))
    assert sum(same(run, "text", text_weights(places[1]))) <= 1


def test_every_arm_has_them_and_a_cross_encoder_the_width_of_the_texts(places, tmp_path):
    published = Published(*places, ("image",))
    configs = planned_arms(["clip", "r2d2"], CORPUS, tmp_path, "tiny", 2, 1, {}, {}, published).configs
    for config in configs.values():
        assert (config.image_weights, config.text_weights) == places
        assert (config.model.image.locked, config.model.text.locked) == (True, False)
        assert (config.model.image.width, config.model.text.width) == (24, 16)
    assert configs[tmp_path / "r2d2-seed0"].model.fusion.width == 16


def test_a_system_without_such_a_tower_is_told(places):
    model = SimpleNamespace(image=ImageTowerConfig())
    with pytest.raises(UserError, match="no text tower"):
        Published(text=places[1]).changes(model)
    assert Published().changes(model) == {}
