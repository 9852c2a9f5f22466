"""FLAVA, BridgeTower and systems of one vector a side learn on scenes, in Chinese and English."""

import pytest

import tuwen
from tuwen.data.open import open_corpus
from tuwen.model import Model
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig

SCENES = "scenes:side=32,things=16,objects=2,whole=true"


def trained(system: str, folder, corpus: str = SCENES, **changes) -> Model:
    """At size tiny."""
    settings = {"train.batch_size": 32, "train.lr": 2e-3, "train.threads": 1, "data.workers": 0, "data.augment": "none"}
    settings["model.image.pool"] = "max"
    config = RunConfig.of(system, "tiny", corpus, changes=settings | changes)
    return tuwen.load(loop.train(config, folder, quiet=True))


def recalls(model: Model, corpus: str = SCENES) -> dict[str, dict[str, float]]:
    """Mean recall of 100 scenes of val by language and stage."""
    languages = retrieve(model.predictor, open_corpus(corpus, "val"), limit=100, top_k=16).json["languages"]
    stages = ("first", "reranked", "chance")
    found = {name: {s: of[s]["mean_recall"] for s in stages if s in of} for name, of in languages.items()}
    print(model.predictor.name, found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("system", ["flava", "bridgetower", "clip", "albef", "blip", "r2d2", "prd2"])
def test_it_finds_pictures_and_texts(system, tmp_path):
    """About a minute each on a free core: mean recall, first stage, above four times that of chance."""
    for language, found in recalls(trained(system, tmp_path / "run", **{"train.steps": 400})).items():
        assert found["first"] > 4 * found["chance"], language
