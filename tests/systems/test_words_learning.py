"""Systems that score finer than by one vector learn on scenes and clips, in Chinese and English; SLAN finds boxes."""

import pytest

import tuwen
from tuwen.data.open import open_corpus
from tuwen.model import Model
from tuwen.tasks.grounding import evaluate_grounding
from tuwen.tasks.retrieval import retrieve
from tuwen.training import loop
from tuwen.training.config import RunConfig

SCENES = "scenes:side=32,things=12,objects=2,whole=true,count=1500"
CLIPS = "moving:side=32,frames=4,things=4,count=1500"
SETTINGS = {  # those of benchmarks/results/words.json
    "train.batch_size": 64,
    "train.steps": 150,
    "train.lr": 3e-3,
    "train.warmup": 0.1,
    "train.threads": 1,
    "data.augment": "none",
    "data.workers": 0,
}


def trained(name: str, corpus: str, folder, **changes) -> Model:
    config = RunConfig.of(name, "tiny", corpus, changes={**SETTINGS, **changes})
    return tuwen.load(loop.train(config, folder, quiet=True))


def asked(model: Model, corpus: str, split: str = "val") -> tuple:
    towers = model.config.model
    return model.system, open_corpus(corpus, split), model.tokenizer, towers.image.side, towers.text.length


ARMS = [
    ("wukong", {"model.style": "clip"}),
    ("wukong", {"model.style": "filip"}),
    ("wukong", {"model.style": "wukong"}),
    ("tokenflow", {}),
    ("bagformer", {}),
    ("cookie", {}),
    ("slan", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), ARMS, ids=str)
def test_retrieves_scenes(name, changes, tmp_path):
    """15 to 45 seconds each on a free core, three minutes in all: 150 steps of 64 pairs.

    Chance is a mean recall of about 9; three seeds of each gave 33 to 49 where chance was 5.4.
    """
    model = trained(name, SCENES, tmp_path / "run", **changes)
    found = retrieve(*asked(model, SCENES), table=model.languages, limit=100, top_k=16).json["languages"]
    for language in ("en", "zh"):
        stages = found[language]
        assert stages["first"]["mean_recall"] > 3.5 * stages["chance"]["mean_recall"], language
        if "reranked" in stages:  # by a match that has learned little yet, and by scores that have
            assert stages["reranked"]["mean_recall"] > 3.5 * stages["chance"]["mean_recall"], language
    if name == "slan":
        marks = evaluate_grounding(*asked(model, SCENES), table=model.languages, limit=100)["languages"]
        for language in ("en", "zh"):
            for other in ("centre", "whole"):
                assert marks[language]["pointing"] > 1.5 * marks[language][other]["pointing"], language
                assert marks[language]["iou"] > 1.2 * marks[language][other]["iou"], language


@pytest.mark.slow
def test_tokenflow_retrieves_clips(tmp_path):
    """About a minute and a half on a free core: 300 steps of 64 clips, with self-attention over the frames.

    What and where is learned; to tell a movement from its mirror in time takes more (0.52 of pairs after these steps).
    """
    model = trained("tokenflow", CLIPS, tmp_path / "run", **{"model.frame_layers": 1, "train.steps": 300})
    found = retrieve(*asked(model, CLIPS), table=model.languages).json["languages"]
    for language in ("en", "zh"):
        assert found[language]["first"]["mean_recall"] > 3 * found[language]["chance"]["mean_recall"], language
