"""Claims: verdicts by hand, files that say what is wrong with them, and one tested from end to end."""

import json
from pathlib import Path

import pytest
import yaml

from tuwen.benchmark import claim as module
from tuwen.benchmark.claim import CONFIRMED, REFUTED, UNDETERMINED, claim_names, decide, read_claim, run_claim
from tuwen.benchmark.crossed import Crossed
from tuwen.cli import main
from tuwen.data.open import open_corpus
from tuwen.errors import UserError
from tuwen.run import read_json
from tuwen.training import loop

SMALL = {
    "card": "wukong",
    "claim": {"en": "one vector finds less", "zh": "单个向量检索得更少"},
    "paper": {"en": "none", "zh": "无"},
    "arms": ["wukong", "wukong:model.style=clip"],
    "corpus": "scenes:count=40,side=32",
    "set": {"train.batch_size": 8, "train.threads": 1, "data.workers": 0},
    "steps": 2,
    "least": 1.0,
    "seeds": 3,
    "measure": {"limit": 12},
}


def written(folder, **changes):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, allow_unicode=True), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("direction", "difference", "interval", "word"),
    [
        ("more", 3.0, (1.0, 5.0), CONFIRMED),
        ("more", 1.5, (0.5, 2.5), UNDETERMINED),  # above 0, but less than 2 was seen and 2 is not ruled out
        ("more", 0.5, (0.1, 0.9), REFUTED),  # above 0, and below the least effect
        ("more", 3.0, (-1.0, 7.0), UNDETERMINED),
        ("more", 0.0, (-1.0, 1.0), REFUTED),
        ("more", -3.0, (-5.0, -1.0), REFUTED),
        ("less", -3.0, (-5.0, -1.0), CONFIRMED),
        ("less", 3.0, (1.0, 5.0), REFUTED),
        ("equal", 0.1, (-1.0, 1.2), CONFIRMED),
        ("equal", 3.0, (2.5, 3.5), REFUTED),
        ("equal", 1.0, (-1.0, 3.0), UNDETERMINED),
        ("more", 3.0, None, UNDETERMINED),
    ],
)
def test_verdicts_by_hand(direction, difference, interval, word):
    assert decide(direction, 2.0, difference, interval)[0] == word


def results(figures, chance=10.0):
    chances = {"languages": {"en": {"chance": {"mean_recall": chance}}}}
    return [{"figure": figure, **chances} for figure in figures]


def test_a_verdict_says_what_would_decide_and_an_arm_that_learnt_nothing_decides_nothing(tmp_path):
    claim = read_claim(written(tmp_path))
    table = Crossed(1.0, 64 + 100 * 4.0, 64 + 3 * 4.0, 64.0, 3, 100)
    verdict = module.judge_claim(claim, results([51, 52, 53]), results([50, 51, 52]), table)
    assert (verdict.word, verdict.difference, verdict.covers) == (UNDETERMINED, 1.0, "seeds and pictures")
    assert verdict.seeds_needed == table.seeds_for(1.0)
    assert f"{verdict.seeds_needed} seeds would show 1" in verdict.why
    by_seeds = module.judge_claim(claim, results([51.0, 52.1, 52.9]), results([50, 51, 52]))
    assert (by_seeds.word, by_seeds.covers) == (CONFIRMED, "seeds alone")
    low = module.judge_claim(claim, results([12, 13, 14]), results([10, 11, 12]))
    assert low.word == UNDETERMINED
    assert "neither arm learnt enough" in low.why


@pytest.mark.parametrize(
    ("best", "chance", "least", "enough"),
    [
        (8.25, 5.5, 1.0, True),  # retrieval: half of chance again
        (8.0, 5.5, 1.0, False),
        (61.0, 50.0, 5.0, True),  # yes or no: a fifth of the way to 100
        (59.9, 50.0, 5.0, False),
        (53.0, 40.0, 15.0, False),  # less above chance than the effect
        (0.61, 0.5, 0.03, True),  # an area
        (0.59, 0.5, 0.03, False),
    ],
)
def test_an_arm_must_be_clearly_above_chance(best, chance, least, enough):
    assert module.learnt_enough(best, chance, least) is enough


def test_mistakes_in_a_claims_file_are_told(tmp_path):
    for changes, message in (
        ({"arms": ["wukong"]}, "arms are two that differ"),
        ({"arms": ["wukong", "wukong"]}, "arms are two that differ"),
        ({"claim": {"en": "x"}}, "claim is missing"),
        ({"least": -1}, "least and towers"),
        ({"direction": "equal", "least": 0}, "direction equal"),
        ({"direction": "up"}, "direction"),
        ({"steps_": 3}, "steps_"),
        ({"measure": {"task": "dancing"}}, "dancing"),
    ):
        with pytest.raises(UserError, match=message):
            read_claim(written(tmp_path, **changes))
    with pytest.raises(UserError, match="no claim 'none'; there are"):
        read_claim("none")
    with pytest.raises(UserError, match="no claim 'albef-teachr'; did you mean albef-teacher, albef"):
        read_claim("albef-teachr")
    path = tmp_path / "none.yaml"
    path.write_text("card: [")
    with pytest.raises(UserError) as caught:
        read_claim(str(path))
    assert str(caught.value).count(str(path)) == 1


def test_a_mistake_in_the_last_claim_is_told_before_the_first_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "run_claim", lambda *args, **options: pytest.fail("a claim was run"))
    for arm, message in (
        ("wukong:model.styel=clip", "no config field 'model.styel'"),
        ("wukogn", "did you mean wukong"),
    ):
        path = written(tmp_path, arms=["wukong", arm])
        assert main(["claim", "albef-teacher", path, "--out", str(tmp_path / "runs")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"tuwen: {path}: ")
        assert message in line


def test_results_take_the_place_of_a_claim_s_alone_and_are_refused_before_any_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "run_claim", lambda *words, **options: pytest.fail("ran"))
    path, results = written(tmp_path), tmp_path / "results"
    results.mkdir()
    theirs = results / f"{Path(path).stem}.json"
    for content in ('{"mine": 1}', "notes"):
        theirs.write_text(content)
        assert main(["claim", path, "--out", str(tmp_path / "runs"), "--results", str(results)]) == 1
        assert f"{theirs}: is there already and was not made by this command" in capsys.readouterr().err
        assert theirs.read_text() == content
    assert not (tmp_path / "runs").exists()


def test_claims_are_told_in_the_language(monkeypatch, capsys):
    monkeypatch.setenv("TUWEN_LANG", "zh")
    assert main(["claim"]) == 0
    assert "动量教师" in capsys.readouterr().out


@pytest.mark.parametrize("name", claim_names())
def test_every_claim_of_ours_can_be_begun(name):
    """Its arms, settings and task exist, and its corpora can be opened."""
    claim = read_claim(name)
    module.check_claim(name, claim)
    for location in {claim.corpus, claim.measure.corpus or claim.corpus}:
        assert len(open_corpus(location, claim.measure.split))
    assert claim.minutes <= 10
    assert claim.least > 0


def test_a_claim_from_end_to_end_and_again_without_training(tmp_path, monkeypatch, capsys):
    path = written(tmp_path)
    assert main(["claim", path, "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["claims"]
    assert read_json(tmp_path / "results" / "small.json") == result
    arms = {arm: part["figures"] for arm, part in result["arms"].items()}
    gains = [a - b for a, b in zip(*arms.values(), strict=True)]
    assert result["difference"] == pytest.approx(sum(gains) / 3)
    assert result["covers"] == "seeds and pictures"
    assert result["interval"][0] <= result["difference"] <= result["interval"][1]
    assert result["origin"]["packages"]["torch"]
    assert result["seeds"] == [0, 1, 2]

    def refuse(*args, **options):
        raise AssertionError("a finished run was trained or measured again")

    for name in ("train", "resume"):
        monkeypatch.setattr(loop, name, refuse)
    monkeypatch.setattr("tuwen.benchmark.measure.retrieve", refuse)
    again = run_claim(path, tmp_path / "runs" / "small", quiet=True)
    changing = ("seconds_this_time",)
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in result.items() if k not in changing
    }


def test_without_a_name_the_claims_are_listed(capsys):
    assert main(["claim"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in claim_names())
    assert main(["claim", "--json"]) == 0
    assert [claim["name"] for claim in json.loads(capsys.readouterr().out)["claims"]] == claim_names()
    with pytest.raises(SystemExit):
        main(["claim", "x", "--all"])
