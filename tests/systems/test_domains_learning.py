"""ARL learns on scenes, in Chinese and English: its match tells true captions from other scenes'."""

import pytest

import tuwen
from tests.systems.test_foundation_learning import SCENES
from tuwen.data.lexicons.files import save_lexicon
from tuwen.data.lexicons.open import open_lexicon
from tuwen.data.open import open_corpus
from tuwen.tasks.matching import evaluate_matching
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.knowledge import KnowledgeConfig, learn_knowledge

CORPUS = f"{SCENES},count=3000"
PLAIN = {"train.batch_size": 32, "train.warmup": 0.1, "train.threads": 1, "data.workers": 0, "data.augment": "none"}
PLAIN["model.image.pool"] = "max"
NEW = "(image_query|text_query|entities|fusion|match_head|word_head|text_pooler|image_pooler|painter)"


@pytest.mark.slow
def test_arl_tells_a_scene_s_own_caption(tmp_path):
    """About two minutes of computing.

    As the card has it (section 5) it starts from towers that know pictures and texts (there METER's, here those of 250
    steps of `clip`) and from TransE, and its own parts learn five times as fast. Half of the words are hidden, as the
    official budget hides of a short text, and matching weighs 1 in place of 0.1: of 500 steps a tenth is nothing.
    Measured so: 0.96 (en), 0.95 (zh). From nothing, 400 steps leave it at chance (0.49, 0.50).
    """
    lexicon, _ = learn_knowledge(open_lexicon("scenes"), KnowledgeConfig(width=32, epochs=60, batches=4))
    save_lexicon(lexicon, tmp_path)
    changes = PLAIN | {"train.lr": 2e-3, "train.steps": 250}
    towers = str(loop.train(RunConfig.of("clip", "tiny", CORPUS, changes=changes), tmp_path / "clip", quiet=True))
    changes = PLAIN | {"train.lr": 1e-3, "train.steps": 500, "train.rates": ((NEW, 5.0),)}
    changes |= {"init": {"image": towers, "text": towers}, "tokenizer.lexicon": str(tmp_path)}
    changes |= {"model.mask_share": 0.5, "model.align": 50.0, "model.matching": 1.0, "model.knowledge.dropout": 0.0}
    run = loop.train(RunConfig.of("arl", "tiny", CORPUS, changes=changes), tmp_path / "run", quiet=True)
    marks = evaluate_matching(tuwen.load(run).predictor, open_corpus(CORPUS, "val"), limit=150)["languages"]
    print(marks)
    for language in ("en", "zh"):
        assert marks[language]["auc"] > 0.75, language
