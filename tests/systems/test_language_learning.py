"""ERNIE-UniX2 and MVPTR learn on scenes, in Chinese and English: to find, caption, translate, and ground phrases."""

import pytest

import tuwen
from tuwen.data.open import open_corpus
from tuwen.tasks.captioning import evaluate_captioning
from tuwen.tasks.grounding import evaluate_grounding
from tuwen.tasks.matching import evaluate_matching
from tuwen.tasks.retrieval import retrieve
from tuwen.tasks.translation import evaluate_translation
from tuwen.training import loop
from tuwen.training.config import RunConfig

SCENES = "scenes:side=64,things=16,objects=2,whole=true,ambiguous=true"
STREAMS = {"texts": 0, "parallel": 0, "pairs": 0.3, "both": 0.7}  # of the second run: captions and translation


def trained(folder, **changes):
    settings = {"train.batch_size": 32, "train.lr": 1e-3, "train.threads": 1} | changes
    config = RunConfig.of("ernie_unix2", "demo", SCENES, changes=settings)
    return loop.train(config, folder, quiet=True)


def measured(run) -> tuple[dict, dict, dict]:
    """Retrieval, captions and translations of the first 100 scenes of val."""
    asked = tuwen.load(run).predictor, open_corpus(SCENES, "val")
    return (
        retrieve(*asked, limit=100).json["languages"],
        evaluate_captioning(*asked, limit=100)["languages"],
        evaluate_translation(*asked, limit=100)["pairs"],
    )


@pytest.mark.slow
def test_ernie_unix2_retrieves_captions_and_translates(tmp_path):
    """About 8 minutes on a free core: 1000 steps of pre-training, 500 more on captions and translation.

    The picture helps a translator whose source leaves open which thing is meant, and a wrong picture misleads it.
    """
    first = trained(tmp_path / "first", **{"train.steps": 1000})
    streams = {f"model.streams.{name}": weight for name, weight in STREAMS.items()}
    second = {"train.steps": 500, "model.label_smoothing": 0, "data.augment": "none", "init": str(first)}
    check(*measured(trained(tmp_path / "second", **second, **streams)))


def check(found: dict, captions: dict, translations: dict) -> None:
    for language in ("en", "zh"):
        stages = found[language]
        assert stages["first"]["mean_recall"] > 3 * stages["chance"]["mean_recall"], language
        made = captions[language]
        assert made["cider_d"] > 2 * made["shuffled"]["cider_d"], language
        assert made["bleu_4"] > 1.2 * made["shuffled"]["bleu_4"], language
    for pair in ("en-zh", "zh-en"):
        read = translations[pair]
        for score in ("bleu", "chrf"):
            for other in ("without_picture", "wrong_picture"):
                assert read["with_picture"][score] > read[other][score] + 2, (pair, score, other)


@pytest.mark.slow
def test_mvptr_retrieves_matches_and_grounds_phrases(tmp_path):
    """About three and a half minutes on a free core: phrases point into exact boxes, though no box was ever shown.

    Matching tells a right text from any wrong one, and re-ranking keeps what the first stage found.
    """
    scenes = "scenes:side=32,things=24,objects=3,whole=true"
    changes = {"train.batch_size": 64, "train.steps": 900, "train.lr": 3e-3, "train.warmup": 0.1, "train.threads": 1}
    changes |= {"data.workers": 0, "data.augment": "none", "model.fusion.layers": 2, "model.ground": "single"}
    changes |= {"model.image.pool": "max", "model.negatives": "drawn", "model.hardness": 0.5}
    config = RunConfig.of("mvptr", "tiny", scenes, changes=changes)
    model = tuwen.load(loop.train(config, tmp_path / "run", quiet=True))
    asked = model.predictor, open_corpus(scenes, "val")
    found = retrieve(*asked, limit=100, top_k=16).json["languages"]
    matches = evaluate_matching(*asked)["languages"]
    marks = evaluate_grounding(*asked, limit=100)["languages"]
    print(found, matches, marks)
    for language in ("en", "zh"):
        first, reranked, chance = (found[language][stage]["mean_recall"] for stage in ("first", "reranked", "chance"))
        assert first > 8 * chance, language
        assert reranked > first - 2, language
        assert matches[language]["auc"] > 0.9, language
        assert marks[language]["pointing"] > 2 * marks[language]["centre"]["pointing"], language
        assert marks[language]["iou"] > 1.3 * marks[language]["whole"]["iou"], language
