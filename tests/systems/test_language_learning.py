"""ERNIE-UniX2 and MVPTR learn on scenes, in Chinese and English: minutes each, on one core."""

import pytest

import tuwen
from tuwen.data.open import open_corpus
from tuwen.tasks.captioning import evaluate_captioning
from tuwen.tasks.grounding import evaluate_grounding
from tuwen.tasks.retrieval import retrieve
from tuwen.tasks.translation import evaluate_translation
from tuwen.training import loop
from tuwen.training.config import RunConfig

SCENES = "scenes:side=64,things=24,objects=3,whole=true"


def trained(system: str, corpus: str, steps: int, folder):
    changes = {"train.batch_size": 64, "train.steps": steps, "train.lr": 1e-3, "train.threads": 1, "data.workers": 0}
    config = RunConfig.of(system, "demo", corpus, changes=changes)
    model = tuwen.load(loop.train(config, folder / "run", quiet=True))
    towers = model.config.model
    asked = (model.system, open_corpus(corpus, "val"), model.tokenizer, towers.image.side, towers.text.length)
    return asked, {"table": model.languages, "limit": 100}


def assert_retrieval_beats_chance(found: dict, times: float) -> None:
    for language in ("en", "zh"):
        stages = found["languages"][language]
        assert stages["first"]["mean_recall"] > times * stages["chance"]["mean_recall"], language


@pytest.mark.slow
def test_ernie_unix2_retrieves_captions_and_translates(tmp_path):
    """MINUTES minutes: the picture helps a translator whose source leaves open which thing is meant."""
    asked, options = trained("ernie_unix2", f"{SCENES},ambiguous=true", 1000, tmp_path)
    assert_retrieval_beats_chance(retrieve(*asked, **options).json, 4)
    captions = evaluate_captioning(*asked, **options)["languages"]
    translations = evaluate_translation(*asked, **options)["pairs"]
    for language in ("en", "zh"):
        assert captions[language]["cider_d"] > 2 * captions[language]["shuffled"]["cider_d"], language
        assert captions[language]["bleu_4"] > 1.3 * captions[language]["shuffled"]["bleu_4"], language
    for pair in ("en-zh", "zh-en"):
        found = translations[pair]
        for score in ("bleu", "chrf"):
            assert found["with_picture"][score] > found["without_picture"][score] + 3, pair
            assert found["with_picture"][score] > found["wrong_picture"][score] + 3, pair


@pytest.mark.slow
def test_mvptr_retrieves_and_grounds(tmp_path):
    """MINUTES minutes: phrases are grounded against exact boxes, though no box was ever shown."""
    asked, options = trained("mvptr", SCENES, 400, tmp_path)
    found = retrieve(*asked, **options).json
    assert_retrieval_beats_chance(found, 4)
    for language, marks in evaluate_grounding(*asked, **options)["languages"].items():
        assert marks["pointing"] > 1.3 * marks["centre"]["pointing"], language
