"""The command line: what it prints where, with which exit status, and how soon."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tuwen import cli, systems
from tuwen.benchmark.compare import CompareConfig
from tuwen.cli import data as data_command
from tuwen.cli.output import print_json, print_table
from tuwen.cli.train import changes_of, config_of
from tuwen.config import override
from tuwen.errors import UserError
from tuwen.training.config import fitting_batch

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "tuwen"]


def shell(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, **options)


def usage(arguments: str, capsys) -> str:
    """Standard error of a command line that must be wrong usage."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments.split())
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, tuwen.cli; tuwen.cli.parser();"
        "print(sorted({'torch', 'numpy', 'rich', 'yaml', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    seconds = []
    for _ in range(3):
        began = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        result = shell("--help")
        seconds.append(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - began)  # whatever else runs beside
        assert result.returncode == 0
        assert "examples:" in result.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "command", ["systems", "data build", "data check", "data show", "train", "eval", "compare", "import", "export"]
)
def test_every_command_helps_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert f"tuwen {command}" in capsys.readouterr().out.split("examples:")[1]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("trian", "did you mean train?"),
        ("train clip --corpos x", "did you mean --corpus?"),
        ("data biuld x", "did you mean build?"),
        ("eval run --corpus x --task retreival", "did you mean retrieval"),
        ("train clip --corpus x --out y --steps 0", "'0' is not a whole number of at least 1"),
        ("train clip --corpus x --out y --step 3", "did you mean --steps"),
        ("eval run --task retrieval", "--corpus"),
        ("index run photos --out i --first-code int9", "did you mean int8? (`"),
        ("data", "ACTION"),
        ("compare --corpus x --out y", "SYSTEM"),
    ],
)
def test_wrong_usage_is_status_2_with_the_nearest_right_word(arguments, hint, capsys):
    assert hint in usage(arguments, capsys)


def test_systems_as_json_is_the_registry(capsys):
    assert cli.main(["systems", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["systems"]
    assert [found["name"] for found in listed] == systems.names()
    for found in listed:
        assert found["fidelity"] in ("code", "paper", "reconstructed")
        assert {"encode_images", "encode_texts"} & set(found["capabilities"])  # `dino` and `mlm` read one of them
        assert found["axes"], f"{found['name']}: its Paper has no axes; keys are in tuwen/systems/survey/axes.py"


@pytest.mark.parametrize("name", systems.names())
def test_one_system_in_full(name, capsys):
    assert cli.main(["systems", name]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert systems.find(name).paper.arxiv in text
    assert cli.main(["systems", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == systems.find(name).paper.title


def test_a_users_mistake_is_one_line_and_status_1():
    result = shell("systems", "alebf")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert "did you mean albef" in result.stderr
    assert "Traceback" not in result.stderr


def fails_with(monkeypatch, error) -> int:
    """Exit status of a command whose work raises."""

    def fail(args):
        raise error

    monkeypatch.setattr(data_command, "run_check", fail)
    return cli.main(["data", "check", "x"])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("row 3:\n no picture"), 1, "tuwen: row 3: no picture\n"),
        (KeyboardInterrupt(), 130, "tuwen: interrupted\n"),
        (PermissionError(13, "Permission denied", "/out/x"), 1, "tuwen: Permission denied: /out/x\n"),
    ],
)
def test_errors_become_status_and_one_line(error, status, said, monkeypatch, capsys):
    assert fails_with(monkeypatch, error) == status
    assert capsys.readouterr().err == said


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        fails_with(monkeypatch, ZeroDivisionError())


def allocated_too_much() -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50, dtype=torch.uint8)
    return raised.value


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), allocated_too_much()])
def test_memory_that_runs_out_is_a_line(error, monkeypatch, capsys):
    """Python's, a GPU's and the CPU's as torch tells it; what a batch takes is not known before."""
    assert fails_with(monkeypatch, error) == 1
    line = capsys.readouterr().err
    assert line.startswith("tuwen: memory ran out (")
    assert "train.batch_size" in line
    assert line.count("\n") == 1
    with pytest.raises(RuntimeError, match="other"):
        fails_with(monkeypatch, RuntimeError("other"))


def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = subprocess.run([*COMMAND, "systems", "--json"], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_json_says_null_for_what_is_no_number(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "图": ("文", True)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "图": ["文", True]}


def test_what_a_terminal_would_obey_is_printed_escaped(monkeypatch, capsys):
    monkeypatch.setattr(data_command, "run_list", lambda args: (_ for _ in ()).throw(UserError("no \x1b[2J\x9b file")))
    assert cli.main(["data", "list"]) == 1
    assert capsys.readouterr().err == "tuwen: no \\x1b[2J\\x9b file\n"
    print_table("a\x1bb", ("id",), [("evil\nid: 3",), ("一只\u3000鸟",)])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["a\\x1bb", "id", "evil\\nid: 3", "一只\u3000鸟"]
    print_json({"id": "a\x1b\x9b\u202e鸟"})
    assert json.loads(capsys.readouterr().out) == {"id": "a\x1b\x9b\u202e鸟"}
    print_json({"id": "\x1b\x9b\u202e"})
    assert capsys.readouterr().out.isascii()


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny clip, trained for three steps by the command line."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    arguments = "train clip --corpus scenes:count=24,side=32 --size tiny --steps 3 --set train.batch_size=8"
    assert cli.main([*arguments.split(), "data.workers=0", "tokenizer.size=200", "--out", str(folder)]) == 0
    return folder


def test_training_leaves_a_run_that_eval_measures(run, capsys):
    arguments = ["eval", str(run), "--corpus", "scenes:count=12,side=32", "--task"]
    assert cli.main([*arguments, "retrieval", "--limit", "10", "--languages", "zh", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["system"], found["task"], found["split"], found["images"]) == ("clip", "retrieval", "test", 10)
    recalls = found["languages"]["zh"]["first"]
    six = [recalls[way][cut] for way in ("image_to_text", "text_to_image") for cut in ("r1", "r5", "r10")]
    assert recalls["mean_recall"] == pytest.approx(sum(six) / 6)

    assert cli.main([*arguments, "matching", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["languages"]["en"]["auc"] <= 1

    assert cli.main([*arguments, "retrieval"]) == 0
    table = capsys.readouterr().out
    assert "chance" in table
    assert "i2t R@10" in table


def test_eval_counts_the_texts_it_leaves_out(run, tmp_path, capsys):
    texts = [["a red bird", "2024"], ["two cats", "😀"], ["a dog"], ["красная птица"]]
    for n, given in enumerate(texts):
        Image.new("RGB", (40, 40), (60 * n, 0, 0)).save(tmp_path / f"{n}.png")
        line = json.dumps({"id": str(n), "image": f"{n}.png", "texts": given, "split": "test"}, ensure_ascii=False)
        (tmp_path / "pairs.jsonl").open("a").write(line + "\n")
    assert cli.main(["eval", str(run), "--corpus", str(tmp_path), "--task", "retrieval"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "3 texts, recall in percent" in table
    assert "not measured: 3 texts in und, unknown to the run" in table


def test_the_offline_recipe_fits_a_small_shop_and_keeps_a_batch_that_is_typed():
    words = f"train clip --corpus shop --out run --config {ROOT}/recipes/offline.yaml".split()
    train = config_of(cli.parser().parse_args(words)).train
    assert (train.batch_size, fitting_batch(train, 218).batch_size) == (256, 64)  # 218 rows do not fill 256
    assert fitting_batch(train, 606).batch_size == 256
    typed = config_of(cli.parser().parse_args([*words, "--set", "train.batch_size=128"])).train
    assert fitting_batch(typed, 189).batch_size == 128


def test_eval_says_what_is_wrong(run, tmp_path, capsys):
    for arguments, said in (
        ([str(tmp_path), "--corpus", "scenes", "--task", "retrieval"], "config.yaml"),
        ([str(run), "--corpus", "nowhere", "--task", "retrieval"], "nowhere: no such file or folder"),
        ([str(run), "--corpus", "scenes", "--task", "retrieval", "--split", "tset"], "tset"),
        ([str(run), "--corpus", "scenes:count=9", "--task", "retrieval", "--languages", "xx"], "xx"),
    ):
        assert cli.main(["eval", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("tuwen: ")
        assert captured.err.count("\n") == 1
        assert said in captured.err


def test_train_refuses_what_it_cannot_do(run, tmp_path, capsys):
    new = ["train", "clip", "--corpus", "scenes:count=24", "--out", str(tmp_path / "new"), "--size", "tiny"]
    for arguments, said in (
        ([*new[:-3], str(run), "--size", "tiny", "--steps", "1"], "holds a run already"),
        ([*new, "--set", "train.batchsize=3"], "train.batch_size"),
        ([*new, "--set", "train.lr=fast"], "expected a number, got 'fast'"),
        ([*new, "--preset", "finetune"], "--init"),
        ([*new, "--config", str(tmp_path / "none.yaml")], "none.yaml: cannot be read"),
        ([*new[:-1], "tinny"], "no size called 'tinny'"),
        (["train", "--resume", str(tmp_path)], "holds no run"),
    ):
        assert cli.main(arguments) == 1
        captured = capsys.readouterr()
        assert said in captured.err
        assert "Traceback" not in captured.err
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: 3", "no task called '3'"),
        ("task: vqua", "no task called 'vqua'; there are vqa"),
        ("task: {name: 3}", "no task called '3'"),
        ("size: [tiny]", "no size called ['tiny']"),
        ("train: 3", "field train: expected the fields of TrainConfig, got 3"),
        ("train: [batch_size]", "field train: expected the fields of TrainConfig"),
        ("model: 3", "field model: expected the fields of CLIPConfig, got 3"),
        ("model:", "field model: expected the fields of CLIPConfig, got None"),
        ("3: 4", "no config field '3'"),
    ],
)
def test_values_of_the_wrong_kind_in_a_recipe_are_told_in_a_line(text, said, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert cli.main(f"train clip --corpus scenes:count=24 --out {tmp_path}/new --config {recipe}".split()) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train clip --out x", "corpus missing"),
        ("train --resume x --steps 3", "leave out steps"),
        ("train clip --corpus x --out y --set train.lr", "'train.lr' is not NAME=VALUE"),
        ("compare clip --corpus x --out y --budget hours=3", "'hours=3' is not steps=N"),
        ("eval x --corpus y --task matching --top-k 3", "--top-k has no meaning"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(arguments, said, capsys):
    assert said in usage(arguments, capsys)


def test_the_command_line_goes_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("size: demo\ntrain:\n  steps: 7\n  lr: 0.01\n  batch_size: 32\n")
    words = f"train clip --corpus scenes --out x --config {recipe} --steps 9 --set train.lr=0.5"
    config = config_of(cli.parser().parse_args(words.split()))
    assert (config.size, config.train.steps, config.train.lr, config.train.batch_size) == ("demo", 9, 0.5, 32)
    assert config.model.image.side == 64


def test_one_recipe_serves_training_and_comparing(tmp_path):
    """What only a comparison reads is no setting of a run; of the older form each name is told where it stands now."""
    recipe = Path(__file__).parents[1] / "recipes" / "demo.yaml"
    args = cli.parser().parse_args(f"train clip --corpus x --out y --config {recipe} --set compare.towers=3".split())
    assert config_of(args).train.steps == 200
    settings, own = changes_of(args)
    assert set(settings) == {"train", "data"}
    how = override(CompareConfig(), own)
    assert (how.towers, how.measure.limit, how.measure.top_k) == (3, 300, 16)
    assert how.arms == {"r2d2": {"model": {"image": {"final_norm": True}}}}
    for old, new in (
        ("r2d2: {model: {embed: 8}}", "r2d2: is called compare.arms.r2d2 now"),
        ("measure: {limit: 3}", "measure: is called compare.measure now"),
        ("towers: 3", "towers: is called compare.towers now"),
        ("compare: 3", "compare: expected names with values, got 3"),
    ):
        (tmp_path / "old.yaml").write_text(old)
        with pytest.raises(UserError, match=new):
            changes_of(cli.parser().parse_args(f"train clip --config {tmp_path}/old.yaml".split()))


@pytest.mark.parametrize(
    ("old", "new", "fails"),
    [
        ("weights import none --out x", "tuwen import", 1),
        ("weights export none --out x", "tuwen export --to hf", 1),
        ("export none --format onnx", "tuwen export --to", 1),
        ("export none --format=onnx", "", 2),
        ("weights", "", 2),
    ],
)
def test_older_commands_say_the_new_one_and_go_on(old, new, fails, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(old.split())
    except SystemExit as stopped:
        status = stopped.code
    told = capsys.readouterr().err.splitlines()
    assert status == fails
    assert not new or told[0].endswith(f"is called `{new}` now")
    assert fails == 2 or (len(told) == 2 and "none" in told[1]), told


def test_export_says_what_belongs_to_which_form(capsys):
    assert "--to hf needs --out DIR" in usage("export run --to hf", capsys)
    assert "leave out --out" in usage("export run --to onnx --out x", capsys)


def test_a_run_that_starts_from_another_has_its_shapes(run):
    words = f"train clip --corpus scenes --out x --init {run} --preset finetune".split()
    config = config_of(cli.parser().parse_args(words))
    assert (config.size, config.init, config.preset) == ("tiny", str(run), "finetune")
    assert config.train.average < 1
    larger = config_of(cli.parser().parse_args([*words, "--set", "model.image.side=64"]))
    assert larger.model.image.side == 64
    assert larger.model.text == config.model.text


def test_a_runs_config_is_a_recipe(run):
    words = f"train clip --corpus scenes:seed=3 --out x --config {run}/config.yaml"
    config = config_of(cli.parser().parse_args(words.split()))
    assert (config.corpus, config.train.steps, config.data.workers) == ("scenes:seed=3", 3, 0)
    with pytest.raises(UserError, match="is of system clip, but albef"):
        config_of(cli.parser().parse_args(words.replace(" clip ", " albef ").split()))


def test_what_pre_training_ran_with_is_a_recipe_for_a_task(run, tmp_path):
    """Its `task: null` gives way to --task, and a task may be named without settings."""
    assert "task: null" in (run / "config.yaml").read_text()
    words = "train clip --corpus scenes --out x --config"
    config = config_of(cli.parser().parse_args([*words.split(), f"{run}/config.yaml", "--task", "classification"]))
    assert (config.task_name, config.train.steps, config.data.workers) == ("classification", 3, 0)
    (tmp_path / "named.yaml").write_text("task: classification\n")
    config = config_of(cli.parser().parse_args([*words.split(), str(tmp_path / "named.yaml")]))
    assert config.task_name == "classification"


def test_data_is_built_checked_and_shown(tmp_path, capsys):
    out = tmp_path / "built"
    assert cli.main(["data", "build", "scenes:count=8", "--side", "32", "--seed", "5", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["train", "8"]
    assert cli.main(["data", "check", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["rows"] == 8
    page = tmp_path / "page.html"
    assert cli.main(["data", "show", str(out), "--out", str(page), "--count", "3"]) == 0
    assert page.read_text(encoding="utf-8").count("<img") == 3


def test_data_show_takes_the_split_that_is_there(tmp_path, capsys):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    row = {"id": "red", "image": "red.png", "texts": {"en": ["red"]}}
    page = tmp_path / "page.html"
    for split in ("val", "train"):
        rows = [row | {"split": split}, {**row, "id": "other", "split": "val"}]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        assert cli.main(["data", "show", str(tmp_path), "--out", str(page)]) == 0
        assert f", {split}</h1>" in page.read_text(encoding="utf-8")
    assert cli.main(["data", "show", str(tmp_path), "--split", "test", "--out", str(page)]) == 1
    assert "no split 'test'; there are: train, val" in capsys.readouterr().err


def test_options_of_scenes_go_into_their_name():
    args = cli.parser().parse_args(
        ["data", "build", "scenes:noise=0.2", "--out", "x", "--count", "9", "--seed", "5", "--side", "64"]
    )
    assert data_command.location_of(args, "train") == "scenes:noise=0.2,count=9,seed=5,side=64"
    assert data_command.location_of(args, "test") == "scenes:noise=0.2,seed=5,side=64"
    args = cli.parser().parse_args(["data", "build", "scenes", "--out", "x"])
    assert data_command.location_of(args, "val") == "scenes"


def test_faults_are_status_1_and_a_build_leaves_them_out(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 20), "red").save(photos / "good.png")
    (photos / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    for name in ("good", "torn"):
        (photos / f"{name}.txt").write_text(f"a {name} one\n")
    assert cli.main(["data", "check", str(photos), "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert len(faults) == 1
    assert "torn.png" in faults[0]["message"]
    assert cli.main(["data", "build", str(photos), "--out", str(tmp_path / "built")]) == 0
    assert "left out" in capsys.readouterr().out
    assert cli.main(["data", "build", str(photos), "--out", str(tmp_path / "x"), "--count", "3"]) == 1
    assert "--count and --seed are for scenes" in capsys.readouterr().err


def test_compare_prints_one_object_and_repeats_nothing(tmp_path, capsys):
    words = "compare clip --corpus scenes:count=24,side=32 --size tiny --budget steps=2 --json --set train.batch_size=8"
    words = [*words.split(), "data.workers=0", "compare.measure.limit=8", "tokenizer.size=200", "--out", str(tmp_path)]
    assert cli.main(words) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["systems"]["clip"]["fidelity"] == "paper"
    assert first["systems"]["clip"]["images"] == 8
    assert first == json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    before = (tmp_path / "clip-seed0" / "weights.safetensors").stat().st_mtime_ns
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert (tmp_path / "clip-seed0" / "weights.safetensors").stat().st_mtime_ns == before
    (tmp_path / "report.html").unlink()
    assert cli.main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()
