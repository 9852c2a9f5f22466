"""Run folders: their names in one file alone, and small files that are damaged or edited."""

import ast
import json
from pathlib import Path

import pytest

from tests.test_floors import ROOT, sources
from tuwen import run as names
from tuwen.errors import UserError
from tuwen.exchange.importing import import_model
from tuwen.run import check_new, finished, provenance, read_json, write
from tuwen.training.config import RunConfig
from tuwen.training.loop import train

ORIGIN = {"corpus": {"name": "memory", "fingerprint": "memory-1", "languages": ["en"]}}
DONE = {"step": 3, "seconds": 1.5, "pairs_per_second": 2}


def spelled(tree: ast.AST) -> list[str]:
    """Names of a run's files that a module spells outside its docstrings."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        if isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]
    # a tokenizer.json is any program's that uses the tokenizers library: help may speak of one
    own = [text for text in texts if any(name in text for name in names.NAMES if name != names.TOKENIZER)]
    return own + [text for text in texts if text.rpartition("/")[2] == names.TOKENIZER]


def test_no_other_file_spells_the_names_of_a_run():
    theirs = (ROOT / "run.py", ROOT / "nn" / "published" / "tokenizer.py")  # the second reads folders of transformers
    wrong = {str(path): spelled(ast.parse(path.read_text())) for path in sources() if path not in theirs}
    assert {path: texts for path, texts in wrong.items() if texts} == {}


def test_the_search_sees_a_spelled_name():
    source = (
        '"""Reads config.yaml."""\nx = f"no config.yaml: {run}"\ny = run / "tokenizer.json"\nz = "a tokenizer.json"'
    )
    assert spelled(ast.parse(source)) == ["no config.yaml: ", "tokenizer.json"]


def test_a_new_run_writes_over_nothing_that_no_run_made(tmp_path):
    """A folder of published towers has a tokenizer.json too; a run that was killed as it began is begun again."""
    check_new(tmp_path / "new")
    (tmp_path / "notes.txt").touch()
    check_new(tmp_path)
    (tmp_path / names.TOKENIZER).write_text("mine")
    with pytest.raises(UserError, match=r"holds 'tokenizer\.json', which a run would write over"):
        check_new(tmp_path)
    with pytest.raises(UserError, match=r"holds 'tokenizer\.json'"):
        train(RunConfig.of("clip", "tiny", "scenes:count=8,side=32"), tmp_path, quiet=True)
    with pytest.raises(UserError, match=r"holds 'tokenizer\.json'"):
        import_model("nowhere", tmp_path)
    assert (tmp_path / names.TOKENIZER).read_text() == "mine"
    (tmp_path / names.PROVENANCE).touch()
    check_new(tmp_path)
    for name in (names.CONFIG, names.STATE):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="holds a run already; choose"):
            check_new(tmp_path)
        (tmp_path / name).unlink()


def test_provenance_as_a_run_writes_it(tmp_path):
    assert not finished(tmp_path)
    names.write_provenance(tmp_path, ORIGIN)
    assert provenance(tmp_path) == ORIGIN
    assert not finished(tmp_path)
    names.write_provenance(tmp_path, ORIGIN | {"finished": DONE})
    assert finished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["provenance.json"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"corpus": None}, "corpus.name, corpus.fingerprint, corpus.languages"),
        ({"corpus": {"name": "memory", "fingerprint": 3, "languages": ["en"]}}, "corpus.fingerprint is"),
        ({"corpus": {"name": "memory", "fingerprint": "m", "languages": [3]}}, "corpus.languages is"),
        ({"finished": {"step": True, "seconds": 1, "pairs_per_second": 1}}, "finished is"),
        ({"finished": "yes"}, "finished is"),
        ({"sources": {"texts": "there"}}, "sources is"),
        ({"resumed": {}}, "resumed is"),
    ],
)
def test_edited_provenance_is_told_in_a_line(tmp_path, changes, told):
    (tmp_path / "provenance.json").write_text(json.dumps(ORIGIN | changes))
    with pytest.raises(UserError, match=rf"^{tmp_path}/provenance.json: {told}"):
        provenance(tmp_path)


def test_what_utf8_has_not_is_written_as_json_has_it(tmp_path):
    """JSON may say half a pair of UTF-16 by its number, and what was read so is written again."""
    (tmp_path / "x.json").write_text(r'{"name": "\ud800猫"}')
    value = read_json(tmp_path / "x.json")
    write(tmp_path / "x.json", json.dumps(value, ensure_ascii=False))
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == r'{"name": "\ud800猫"}'
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a": ', b"\xff\xfe", b"[1]", b"null", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_damaged_json_is_told_in_a_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: ") as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value)) < 500
    with pytest.raises(UserError, match=r"y\.json: cannot be read"):
        read_json(tmp_path / "y.json")


@pytest.mark.parametrize("content", ["size: tiny\ncorpus: x", "system: 3\nsize: tiny\ncorpus: x", "{}"])
def test_a_config_without_its_first_names_is_told(tmp_path, content):
    Path(tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml: .*missing or no text"):
        RunConfig.read(tmp_path)
