"""A run's final score: settled when training ends, set anew for another corpus, read by whoever loads the run."""

import json
import math
import shutil

import pytest
import torch

import tuwen
from tuwen import cli
from tuwen.benchmark.score import fit_score, score_line, settle_score
from tuwen.config import dump, override
from tuwen.errors import UserError
from tuwen.run import CONFIG, METRICS, SCORE
from tuwen.training.config import RunConfig
from tuwen.training.log import NOTHING_LEARNT, learnt_nothing

CORPUS = "scenes:count=60,side=32"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score") / "albef"
    words = f"train albef --corpus {CORPUS} --out {folder} --size tiny --steps 1"
    assert cli.main([*words.split(), "--set", "train.batch_size=8", "data.workers=0", "train.threads=1"]) == 0
    return folder


def test_training_ends_with_a_settled_score(run):
    score = json.loads((run / SCORE).read_text())
    assert score["weight"] == 0  # of one step
    assert score["split"] == "val"
    assert tuwen.load(run).predictor.weight == 0
    assert score_line(score).startswith("final score: the first stage alone (")


def test_eval_sets_it_anew_without_training_and_shows_it(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.glob("*.safetensors")}
    words = f"eval {run} --corpus {CORPUS} --fit-score train --task retrieval --limit 20 --top-k 4 --json"
    assert cli.main(words.split()) == 0
    shown = json.loads(capsys.readouterr().out)["second_stage"]
    score = json.loads((run / SCORE).read_text())
    assert score["split"] == "train"
    assert (shown["score"], shown["weight"]) == ("fitted", score["weight"])
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(SystemExit):
        cli.main(f"eval {run} --corpus {CORPUS}".split())
    assert "give --task, --fit-score, or both" in capsys.readouterr().err


def test_what_is_written_is_obeyed_and_damage_is_a_line(run):
    settled = (run / SCORE).read_text()
    for name, weight in ((0.5, 0.5), ("match", math.inf), (0, 0.0)):
        (run / SCORE).write_text(json.dumps({"weight": name}))
        assert tuwen.load(run).predictor.weight == weight
    (run / SCORE).write_text(json.dumps({"weight": "x" * 9000}))
    with pytest.raises(UserError, match="is no weight; fit it anew") as raised:
        tuwen.load(run)
    assert len(str(raised.value)) < 300
    (run / SCORE).write_text(settled)


def test_a_matching_that_ends_at_a_guess_is_told_and_not_re_ranked(run):
    def records(gains):
        return [{"step": k, "metrics": {"matching_gain": gain}} for k, gain in enumerate(gains)]

    assert learnt_nothing(records([0.5] * 5 + [0.01] * 10))
    assert not learnt_nothing(records([0.01] * 10 + [0.3] * 5))
    assert not learnt_nothing([{"step": 1, "metrics": {}}, {"step": 2, "eval": {}}])
    lines = (run / METRICS).read_text()
    (run / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records([0.0] * 3)))
    assert fit_score(run, CORPUS, "train", quiet=True)["why"] == NOTHING_LEARNT
    (run / METRICS).write_text(lines)


def test_the_papers_rule_is_left_alone(run, tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(run, folder)  # a run that chose the paper's rule before it began
    (folder / SCORE).unlink()
    config = override(RunConfig.read(folder), {"model.score": "published"})
    (folder / CONFIG).write_text(dump(config), encoding="utf-8")
    assert settle_score(folder) is None
    assert not (folder / SCORE).exists()
    predictor = tuwen.load(folder).predictor
    assert predictor.weight is None
    odds = torch.randn(4, 1)
    assert torch.equal(predictor.rescored(odds, torch.randn(4)), odds[:, 0])
