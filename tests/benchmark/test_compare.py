"""A comparison from end to end at the smallest size: equal starts, nothing repeated, mistakes told before any work."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from tests.benchmark.chinese import NAMES, Visible, english_of
from tuwen.benchmark import arms as arms_module
from tuwen.benchmark import compare as module
from tuwen.benchmark.compare import CompareConfig, compare
from tuwen.benchmark.measure import MeasureConfig, measure_run
from tuwen.benchmark.report import page, write_report
from tuwen.benchmark.table import print_comparison
from tuwen.data.open import open_corpus
from tuwen.data.text import Tokenizer
from tuwen.errors import UserError
from tuwen.tasks import metrics
from tuwen.training import loop
from tuwen.training.once import same_tokenizer

CORPUS = "scenes:count=40,side=32"
CHANGES = {"data.workers": 0, "data.augment": "none", "train.threads": 1, "train.eval_every": 1}
OPTIONS = {"size": "tiny", "steps": 2, "seeds": 2, "changes": CHANGES, "validation": 6, "quiet": True}
MEASURE = MeasureConfig(limit=12, top_k=4, samples=2)
OPTIONS |= {"how": CompareConfig(measure=MEASURE)}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, comparison) of clip and albef with two seeds."""
    out = tmp_path_factory.mktemp("comparison")
    return out, compare(["clip", "albef"], CORPUS, out, **OPTIONS)


def test_comparison_json_has_the_published_shape(done):
    out, found = done
    assert json.loads((out / "comparison.json").read_text()) == found
    assert list(found["systems"]) == ["clip", "albef"]
    for name, system in found["systems"].items():
        assert system["system"] == name
        assert system["task"] == "retrieval"
        assert system["fidelity"] in ("code", "paper", "reconstructed")
        assert [one["seed"] for one in system["seeds"]] == [0, 1]
        for key in ("seconds", "pairs_per_second"):
            assert system[key] == pytest.approx(sum(one[key] for one in system["seeds"]) / 2)
        for language in ("en", "zh"):
            stages = [one["languages"][language]["first"]["mean_recall"] for one in system["seeds"]]
            assert system["languages"][language]["first"]["mean_recall"] == pytest.approx(sum(stages) / 2)
            spread = system["spread"]["languages"][language]["first"]["mean_recall"]
            assert spread == pytest.approx(abs(stages[0] - stages[1]) / 2**0.5)
    assert "reranked" not in found["systems"]["clip"]["languages"]["zh"]
    assert "reranked" in found["systems"]["albef"]["languages"]["zh"]
    assert found["steps"] == 2


def test_systems_share_tokenizer_budget_seeds_and_settings(done):
    out, _ = done
    shared = (out / "tokenizer.json").read_bytes()
    for seed in (0, 1):
        runs = [out / f"{name}-seed{seed}" for name in ("clip", "albef")]
        configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
        assert configs[0]["train"] == configs[1]["train"]
        assert configs[0]["train"]["seed"] == seed
        assert configs[0]["model"]["image"] == configs[1]["model"]["image"]
        assert all((run / "tokenizer.json").read_bytes() == shared for run in runs)


def test_arms_of_one_system_differ_in_their_own_settings_alone(tmp_path):
    arms = ["wukong", "wukong:model.style=filip", "wukong:model.style=clip,model.smoothing=0"]
    found = compare(arms, CORPUS, tmp_path, **OPTIONS | {"seeds": 1, "validation": 0})
    assert list(found["systems"]) == arms
    folders = ["wukong-seed0", "wukong-model.style=filip-seed0", "wukong-model.style=clip-model.smoothing=0-seed0"]
    configs = [yaml.safe_load((tmp_path / run / "config.yaml").read_text()) for run in folders]
    told = [(config["model"].pop("style"), config["model"].pop("smoothing")) for config in configs]
    assert told == [("wukong", 0.1), ("filip", 0.1), ("clip", 0.0)]
    assert configs[0] == configs[1] == configs[2]
    assert [system["seeds"][0]["run"] for system in found["systems"].values()] == folders
    assert next((one["of"], one["over"]) for one in found["differences"]) == (f"{arms[1]} first", "wukong first")
    write_report(tmp_path)
    for wrong in ("wukong:style", "wukong:style=filip"):
        with pytest.raises(UserError, match="style"):
            compare([wrong], CORPUS, tmp_path, **OPTIONS)


def test_towers_start_alike_within_a_seed_and_not_across(tmp_path):
    """With a learning rate of 1e-30 the weights that come out are those that went in."""
    changes = CHANGES | {"train.lr": 1e-30, "train.min_lr": 0, "train.weight_decay": 0}
    compare(["clip", "albef"], CORPUS, tmp_path, **OPTIONS | {"changes": changes, "steps": 1, "validation": 0})
    clip, albef, other = (
        load_file(tmp_path / run / "weights.safetensors") for run in ("clip-seed0", "albef-seed0", "clip-seed1")
    )
    common = [name for name in clip if name.startswith("encoders.") and clip[name].dim() > 1 and clip[name].numel() > 3]
    assert common
    for name in common:
        assert torch.allclose(clip[name], albef[name], rtol=0, atol=1e-20), name
        assert not torch.allclose(clip[name], other[name]), name


def test_finished_runs_are_not_repeated(done, monkeypatch, capsys):
    out, before = done

    def refuse(*args, **options):
        raise AssertionError("a finished run was trained or measured again")

    for name in ("train", "resume"):
        monkeypatch.setattr(loop, name, refuse)
    monkeypatch.setattr("tuwen.benchmark.measure.retrieve", refuse)
    assert compare(["clip", "albef"], CORPUS, out, **OPTIONS) == before
    assert capsys.readouterr().err == ""
    compare(["clip", "albef"], CORPUS, out, **OPTIONS | {"quiet": False})
    runs = ("clip-seed0", "albef-seed0", "clip-seed1", "albef-seed1")
    lines = [f"run {number} of 4: {run}, finished before" for number, run in enumerate(runs, 1)]
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("run ")] == lines


def test_a_missing_run_alone_is_trained(done, monkeypatch, tmp_path):
    out, _ = done
    trained = []
    monkeypatch.setattr(loop, "train", lambda config, run, **options: trained.append(run.name))
    monkeypatch.setattr(module, "measure_run", lambda run, *rest, **options: json.loads((out / "clip-seed0" / "retrieval.json").read_text()))  # fmt: skip # noqa: E501
    monkeypatch.setattr(module, "_cost", lambda trained, result, trial: {"run": trained.run.name, "steps": 2, "seconds": 1.0, "pairs_per_second": 1.0, "measure_seconds": 1.0})  # fmt: skip # noqa: E501
    monkeypatch.setattr(module, "settle_score", lambda run, **options: None)
    monkeypatch.setattr(module, "RESULT", "other.json")
    compare(["clip", "albef"], CORPUS, out, **OPTIONS | {"seeds": 3})
    assert trained == ["clip-seed2", "albef-seed2"]


def test_a_run_with_other_settings_is_refused(done, monkeypatch):
    out, _ = done
    monkeypatch.setattr(module, "RESULT", "other.json")
    with pytest.raises(UserError, match=r"clip-seed0: was trained with train.steps=2, now 3"):
        compare(["clip"], CORPUS, out, **OPTIONS | {"steps": 3})
    with pytest.raises(UserError, match=r"clip-seed0: was trained on another corpus"):
        compare(["clip"], "scenes:count=41,side=32", out, **OPTIONS)
    settings = OPTIONS | {"changes": CHANGES | {"train.log_every": 1, "data.workers": 1}}
    compare(["clip"], CORPUS, out, **settings)  # neither changes a weight


def test_mistakes_are_told_before_any_work(tmp_path):
    for names, changes, message in (
        (["clip", "clip"], {}, "clip is named twice"),
        ([], {}, "at least one"),
        (["clip", "clop"], {}, "no system called 'clop'"),
        (["clip"], {"train.stpes": 1}, "train.steps"),
    ):
        with pytest.raises(UserError, match=message):
            compare(names, CORPUS, tmp_path / "out", **OPTIONS | {"changes": changes})
    for arms, message in (
        ({"albef": {"train.batch_size": 8}}, "the same budget"),
        ({"albfe": {"train.batch_size": 8}}, r"compare\.arms: no system called 'albfe'"),
    ):
        with pytest.raises(UserError, match=message):
            compare(["clip", "albef"], CORPUS, tmp_path / "out", **OPTIONS | {"how": CompareConfig(arms=arms)})
    assert not (tmp_path / "out").exists()


def test_settings_of_one_system_alone(tmp_path):
    arms = {"albef": {"model": {"momentum": 0.9}, "model.alpha": 0.1}}
    configs = arms_module.planned_arms(["clip", "albef"], CORPUS, tmp_path, "tiny", 5, 1, CHANGES, arms).configs
    albef = configs[tmp_path / "albef-seed0"]
    assert (albef.model.momentum, albef.model.alpha) == (0.9, 0.1)
    assert [config.train.steps for config in configs.values()] == [5, 5]


def test_measured_ranks_give_the_published_recalls(done):
    out, found = done
    ranks = load_file(out / "albef-seed0" / "ranks.safetensors")
    one = found["systems"]["albef"]["seeds"][0]["languages"]["zh"]["reranked"]
    for way in metrics.DIRECTIONS:
        assert metrics.recalls(ranks[f"zh.reranked.{way}"].numpy()) == pytest.approx(one[way])


def test_measuring_needs_weights(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        measure_run(tmp_path, open_corpus(CORPUS, split="test"))


def test_the_table_shows_spread_chance_fidelity_and_sign(done):
    console = Console(file=io.StringIO(), width=200)
    print_comparison(done[1], console)
    text = console.file.getvalue()
    for wanted in (
        "clip (",
        "albef (",
        "re-ranked",
        "chance",
        "±",
        "pairs per second",
        "differences in points",
        "MFLOPs a pair",
    ):
        assert wanted in text
    assert re.search(r"albef first +clip first +[+-]\d", text)  # too few to settle a weight
    assert "re-ranked, w" not in text


def with_recalls(comparison, levels):
    """The comparison with all recalls of a system's seeds at the given levels."""
    changed = json.loads(json.dumps(comparison))
    for name, seeds in levels.items():
        for seed, level in zip(changed["systems"][name]["seeds"], seeds, strict=True):
            for stages in seed["languages"].values():
                for stage in ("first", "reranked"):
                    for way in metrics.DIRECTIONS if stage in stages else ():
                        stages[stage][way] = dict.fromkeys(stages[stage][way], level)
                        stages[stage]["mean_recall"] = level
    return changed


@pytest.mark.parametrize(("clip", "bold"), [((60, 60.1), True), ((60, 90), False)])
def test_bold_is_only_what_leads_by_more_than_the_seeds_differ(done, clip, bold):
    comparison = with_recalls(done[1], {"clip": clip, "albef": (50, 50)})
    text = page(comparison, {"clip": [], "albef": []})
    assert text.count(' best"') == (2 * 7 if bold else 0)  # languages, six recalls and their mean
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    print_comparison(comparison, console)
    means = [line for line in console.file.getvalue().splitlines() if line.startswith("clip (") and "first" in line]
    assert [("\x1b[1m" in line) for line in means] == [bold, bold]


def test_the_title_says_on_what_it_was_measured_and_watched(done):
    assert done[1]["watched"] == "val"
    text = page(done[1], {"clip": [done[0] / "clip-seed0"], "albef": [done[0] / "albef-seed0"]})
    assert f"<h1>Comparison of clip and albef on {done[1]['corpus']}, split test</h1>" in text
    assert "en: mean recall on val, first stage, %" in text


class Page(HTMLParser):
    """What a page refers to, and what its pictures are called."""

    def __init__(self, text):
        super().__init__()
        self.links, self.alts, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href", "srcset", "data", "action") if values.get(name)]
        if tag == "img":
            self.alts.append(values.get("alt"))

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_one_file_that_asks_for_nothing(done):
    out, found = done
    path = write_report(out)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe|xmlns", text)
    assert len(page.alts) == 2 * 2 * 2 * 5  # queries, languages, systems, pictures
    assert all(re.match(r"\d, (right|wrong): .", alt) for alt in page.alts)
    words = "".join(page.text)
    for wanted in (
        "Recall召回率",
        "Learning curves学习曲线",
        "Quality and cost质量与开销",
        "Sample queries查询示例",
        "chance",
    ):
        assert wanted in words
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)
    assert path.stat().st_size < 5_000_000
    recall = found["systems"]["albef"]["languages"]["zh"]["reranked"]["mean_recall"]
    assert f"{recall:.1f}" in words


def test_report_and_terminal_are_chinese_but_for_names(done, monkeypatch):
    out, comparison = done
    runs = {name: [out / f"{name}-seed{seed}" for seed in (0, 1)] for name in ("clip", "albef")}
    english = page(comparison, runs)
    monkeypatch.setenv("TUWEN_LANG", "zh")
    losses = r'<svg role="img" aria-label="各系统的训练损失.*?</svg>'  # names of losses are those of settings
    text = page(comparison, runs)
    assert (text.startswith('<!doctype html>\n<html lang="zh">'), len(re.findall(losses, text, re.DOTALL))) == (True, 1)
    seen = " ".join(Visible(re.sub(losses, "", text, flags=re.DOTALL)).text)
    notice = json.loads((out / "clip-seed0" / "samples.json").read_text(encoding="utf-8"))["notice"]
    assert english_of(seen.replace(comparison["corpus"], "").replace(notice, ""), NAMES) == set()
    assert "召回" in seen
    assert "保持第一阶段的顺序" in seen
    for figure in re.findall(r">(\d+\.\d)[ <]", english):
        assert figure in text
    console = Console(file=io.StringIO(), width=200)
    print_comparison(comparison, console)
    assert english_of(console.file.getvalue().replace(comparison["corpus"], ""), NAMES) == set()


def test_the_report_frames_right_pictures_and_escapes_texts(done):
    out, _ = done
    path = out / "clip-seed0" / "samples.json"
    before = path.read_text(encoding="utf-8")
    samples = json.loads(before)
    for query in samples["queries"]:
        for result in query["results"]:
            result["right"] = False
    samples["queries"][0]["text"] = "<script>alert('猫 & \"dog\"')</script>"
    samples["queries"][0]["results"][1] |= {"right": True, "shows": '"><img src=x>'}
    path.write_text(json.dumps(samples), encoding="utf-8")
    try:
        text = write_report(out / "clip-seed0").read_text(encoding="utf-8")
    finally:
        path.write_text(before, encoding="utf-8")
    assert "<script" not in text
    page = Page(text)
    assert "<script>alert('猫 & \"dog\"')</script>" in "".join(page.text)
    assert '2, right: "><img src=x>' in page.alts
    assert text.count('class="answer right"') == 1
    assert sum(alt.split(":")[0].endswith("right") for alt in page.alts) == 1


def test_a_run_that_was_not_measured_has_a_report_too(done, tmp_path):
    out, _ = done
    for name in ("config.yaml", "provenance.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((out / "albef-seed0" / name).read_bytes())
    words = "".join(Page(write_report(tmp_path).read_text(encoding="utf-8")).text)
    assert "Not measured yet" in words
    assert "Learning curves" in words
    with pytest.raises(UserError, match="neither a comparison"):
        write_report(tmp_path / "nothing")


def test_systems_start_from_briefly_trained_towers_of_their_seed(tmp_path):
    changes = CHANGES | {"train.lr": 1e-30, "train.min_lr": 0, "train.weight_decay": 0}
    options = OPTIONS | {
        "changes": changes,
        "steps": 1,
        "seeds": 1,
        "validation": 0,
        "how": CompareConfig(towers=2, measure=MEASURE),
    }
    compare(["clip", "albef"], CORPUS, tmp_path, **options)
    config = yaml.safe_load((tmp_path / "towers-seed0" / "config.yaml").read_text())
    assert (config["system"], config["train"]["steps"]) == ("clip", 2)
    towers = load_file(tmp_path / "towers-seed0" / "weights.safetensors")
    for name in ("clip", "albef"):
        config = yaml.safe_load((tmp_path / f"{name}-seed0" / "config.yaml").read_text())
        assert config["init"] == str(tmp_path / "towers-seed0")
        weights = load_file(tmp_path / f"{name}-seed0" / "weights.safetensors")
        same = [key for key in towers if key.startswith("encoders.") and towers[key].dim() > 1]
        assert all(torch.allclose(towers[key], weights[key], rtol=0, atol=1e-20) for key in same)


def test_a_tokenizer_written_again_is_the_same(tmp_path):
    shared, own = tmp_path / "shared" / "tokenizer.json", tmp_path / "own" / "tokenizer.json"
    shared.parent.mkdir()
    own.parent.mkdir()
    Tokenizer.train(["a red bird", "a blue cat"] * 9, kind="unigram", size=40).save(shared)
    told = json.loads(shared.read_text())
    told["model"]["vocab"][-1][1] = -7.4715776443481445  # as published; `tokenizers` writes ...8144
    shared.write_text(json.dumps(told))
    Tokenizer.load(shared).save(own)
    assert own.read_bytes() != shared.read_bytes()
    assert same_tokenizer(shared, own)
    told["model"]["vocab"][-1][1] = -7.5
    shared.write_text(json.dumps(told))
    assert not same_tokenizer(shared, own)
