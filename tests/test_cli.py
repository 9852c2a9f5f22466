"""The command line: what it prints where, with which exit status, and how soon."""

import json
import os
import subprocess
import sys
import time

import pytest

from tuwen import cli, systems
from tuwen.cli import data as data_command
from tuwen.cli.output import print_json
from tuwen.errors import UserError

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
        began = time.perf_counter()
        result = shell("--help")
        seconds.append(time.perf_counter() - began)
        assert result.returncode == 0
        assert "examples:" in result.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", ["systems", "data build", "data check", "data show", "train", "eval", "compare"])
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
        ("eval run --corpus x --task retreival", "did you mean retrieval?"),
        ("train clip --corpus x --out y --steps 0", "'0' is not a whole number of at least 1"),
        ("train clip --corpus x --out y --step 3", "did you mean --steps"),
        ("eval run --task retrieval", "--corpus"),
        ("data", "ACTION"),
        ("compare --corpus x --out y", "SYSTEM"),
    ],
)
def test_wrong_usage_is_status_2_with_the_nearest_right_word(arguments, hint, capsys):
    assert hint in usage(arguments, capsys)


@pytest.mark.parametrize("command", ["claim x", "index a b", "search a b", "serve a", "weights import x", "export x"])
def test_commands_that_do_not_exist_yet_are_not_there(command, capsys):
    assert "invalid choice" in usage(command, capsys)


def test_systems_as_json_is_the_registry(capsys):
    assert cli.main(["systems", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["systems"]
    assert [found["name"] for found in listed] == systems.names()
    for found in listed:
        assert found["fidelity"] in ("code", "paper", "reconstructed")
        assert {"encode_images", "encode_texts"} <= set(found["capabilities"])


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


def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        result = subprocess.run([*COMMAND, "systems", "--json"], stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_json_says_null_for_what_is_no_number(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "图": ("文", True)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "图": ["文", True]}


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2
