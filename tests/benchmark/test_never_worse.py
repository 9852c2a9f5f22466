"""Never worse: whatever state a cross encoder is in, a fitted final score does not fall below the first stage."""

import pytest
from safetensors.torch import load_file

import tuwen
from tuwen import systems
from tuwen.benchmark.measure import MeasureConfig, measure_run
from tuwen.benchmark.score import settle_score
from tuwen.benchmark.statistics import gain_interval
from tuwen.config import override
from tuwen.data.open import open_corpus
from tuwen.nn.initial import initialise
from tuwen.run import METRICS, RANKS, SCORE, WEIGHTS, read_json
from tuwen.training import checkpoint, loop
from tuwen.training.config import RunConfig

CORPUS = "scenes:count=160,side=32,things=12,objects=2,whole=true"
MATCHING = [name for name in systems.names() if systems.find(name).can("match")]
STEPS = 60
SETTINGS = {"train.steps": STEPS, "train.checkpoint_every": STEPS // 2, "train.keep": 9, "train.batch_size": 32}
SETTINGS |= {"train.lr": 3e-3, "train.threads": 1, "data.workers": 0, "data.augment": "none", "tokenizer.size": 400}


@pytest.fixture(scope="module")
def pairs():
    return open_corpus(CORPUS.replace("160", "2000"), "train")


def states(run, seed):
    """(name, weights) of an untrained, a half-trained and a trained run of one training."""
    predictor = tuwen.load(run).predictor
    initialise(predictor.system, seed)
    yield "untrained", predictor.system.state_dict()
    half = checkpoint.load_tensors(run / f"state/step-{STEPS // 2:08d}/weights.safetensors")
    trained = checkpoint.load_tensors(run / WEIGHTS)
    yield "half-trained", {name: half[name] for name in trained}
    yield "trained", trained


@pytest.mark.slow
@pytest.mark.parametrize("name", MATCHING)
def test_re_ranked_recall_is_not_below_the_first_stage_by_more_than_its_interval(tmp_path, pairs, name):
    """About a minute a system."""
    run = tmp_path / name
    loop.train(override(RunConfig.of(name, "tiny", CORPUS), SETTINGS), run, corpus=pairs, quiet=True)
    (run / METRICS).unlink()  # the match itself is weighed, also where it ended at a guess
    gallery, chosen = open_corpus(CORPUS, "test"), {}
    for state, weights in states(run, 0):
        checkpoint.save_tensors(run / WEIGHTS, weights)
        settle_score(run, top_k=8, quiet=True)
        measured = measure_run(run, gallery, MeasureConfig(limit=100, top_k=8, samples=0))
        chosen[state] = read_json(run / SCORE)["weight"]
        assert measured["second_stage"]["weight"] == chosen[state]
        ranks = load_file(run / RANKS)
        for language, stages in measured["languages"].items():
            low, high = gain_interval(ranks, language)
            assert stages["gain"] >= -(high - low) / 2, f"{state}, {language}: {stages['gain']} of {low} to {high}"
            if chosen[state] == 0:
                assert stages["reranked"] == stages["first"]
    assert chosen["untrained"] == 0
