"""What the pages say is so: commands parse, links lead somewhere, tables are the registry's, examples run."""

import importlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import tuwen
from tuwen import cli, systems
from tuwen.benchmark import arms, compare
from tuwen.benchmark.claim import claim_names
from tuwen.cli.parser import Parser
from tuwen.cli.train import changes_of, config_of
from tuwen.config import dump, override
from tuwen.training import loop
from tuwen.training.config import RunConfig
from tuwen.training.stages.recipe import plan, read_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in FENCED.findall(path.read_text(encoding="utf-8")) if kind == language]


def words_of(line: str) -> list[str]:
    """The arguments of a line that runs tuwen, else none."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["torchrun"]:
        words = words[words.index("-m") + 1 :]
    return words[1:] if words[:1] == ["tuwen"] else []


def commands() -> list[tuple[str, list[str]]]:
    """Every full command line that pages, recipes and help show, with where it stands."""
    shown = [(path.name, line) for path in PAGES for text in blocks(path, "sh") for line in text.splitlines()]
    for path in RECIPES:
        header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        shown += [(path.name, line.lstrip("# ")) for line in header if re.match(r"#\s+(tuwen|torchrun)\b", line)]
    for parser in parsers(cli.parser()):
        examples = (parser.epilog or "").splitlines()
        shown += [(parser.prog, re.split(r"\s{3,}", line.strip())[0]) for line in examples if line.startswith("  t")]
    return [(where, words) for where, line in shown if (words := words_of(line))]


def parsers(root: Parser) -> list[Parser]:
    """The parser and those of all its subcommands."""
    groups = [action.choices for action in root._actions if isinstance(action.choices, dict)]
    below = [parser for group in groups for parser in group.values()]
    return [root, *(found for one in below for found in parsers(one))]


COMMANDS = commands()


def test_commands_are_found():
    assert {where for where, _ in COMMANDS} >= {"README.md", "README.zh.md", "training.md", "demo.yaml", "tuwen train"}


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_shown_commands_parse_and_name_real_settings(where, words, capsys):
    if "--help" in words:
        return
    args = cli.parser().parse_args(words)
    named = {"train": lambda: [args.system], "compare": lambda: args.systems}.get(args.command, list)()
    for name in filter(None, named):
        if arms.is_recipe_arm(name):
            continue
        system, own = arms.arm_settings(name)
        RunConfig.of(system, args.size or "small", args.corpus, changes=settings_for(system, args.sets) | own)


def settings_for(system: str, sets: list[tuple[str, str]]) -> dict[str, str]:
    """The settings of a command line that the config of this system gets."""
    arms = f"compare.arms.{system}."
    mine = {name.removeprefix(arms): value for name, value in sets}
    return {name: value for name, value in mine.items() if not name.startswith("compare.")}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_in_the_text_exist(path):
    prose = FENCED.sub("", path.read_text(encoding="utf-8"))
    known = {action.dest: action.choices for action in cli.parser()._actions if action.choices}["command"]
    for inline in re.findall(r"`tuwen ([a-z]+)", prose):
        assert inline in known


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path):
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets or path.name == "CHANGELOG.md"
    for target in targets:
        if not re.match(r"[a-z]+://|#", target):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_every_page_stands_in_both_languages_with_the_same_commands():
    for path in PAGES:
        if path.name == "CHANGELOG.md":
            continue
        twin = path.with_name(path.name.replace(".zh.md", ".md") if ".zh." in path.name else f"{path.stem}.zh.md")
        assert twin in PAGES, f"{path.name} lacks {twin.name}"
        for language in ("sh", "json", "python"):
            both = ["".join(blocks(page, language)) for page in (path, twin)]
            assert without_comments(both[0]) == without_comments(both[1]), f"{path.name} and {twin.name} differ"


def without_comments(text: str) -> list[str]:
    return [re.sub(r"\s+# .*| *# .*$", "", line).rstrip() for line in text.splitlines()]


NAMES = {  # of systems, projects, settings and measures: the same in both languages
    *systems.names(),
    *("tuwen", "transformers", "sentence-transformers", "float", "bfloat", "tiny", "small", "val", "test", "read"),
    *("write", "top-", "int", "open_clip", "cn_clip"),
}


def test_no_cell_of_a_chinese_table_is_english():
    strange = []
    for path in (path for path in PAGES if path.name.endswith(".zh.md")):
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for row in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
            # code, and a paper with its venue, are names
            cells = [re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\).*", "", cell) for cell in re.split(r"(?<!\\)\|", row)]
            for cell in cells:
                words = set(re.findall(r"(?<![A-Za-z_-])[a-z][a-z_-]{2,}", cell)) - NAMES
                if words and not re.search("[\u4e00-\u9fff]", cell):
                    strange.append((path.name, cell.strip()))
    assert strange == []


def test_tables_are_those_of_the_registry_and_the_results():
    pages = runpy.run_path(str(ROOT / "docs" / "tables.py"))["pages"]()
    of_claims, of_tasks = {"claims.md", "claims.zh.md"}, {"tasks.md", "tasks.zh.md"}
    of_systems = {"README.md", "README.zh.md", "systems.md", "systems.zh.md"}
    assert {path.name for path in pages} == of_systems | of_claims | of_tasks
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is old: run `make docs`"
        if path.name in of_tasks:
            assert "| `vqa` |" in text
            continue
        for name in claim_names() if path.name in of_claims else systems.names():
            assert (f"| **{name}** (" if path.name in of_claims else f"| `{name}` |") in text


def test_every_page_of_the_documentation_is_listed_in_the_readme():
    for readme, suffix in (("README.md", ".md"), ("README.zh.md", ".zh.md")):
        text = (ROOT / readme).read_text(encoding="utf-8")
        for path in (ROOT / "docs").glob("*.md"):
            if path.name.endswith(".zh.md") == (suffix == ".zh.md"):
                assert f"docs/{path.name}" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_fit_the_systems_their_commands_name(path, tmp_path, monkeypatch):
    lines = [words for where, words in COMMANDS if where == path.name]
    assert lines, f"{path.name} gives no command in its header"
    monkeypatch.chdir(tmp_path)
    for words in lines:
        args = cli.parser().parse_args(words)
        if args.command == "run":
            assert ROOT / args.recipe == path
            assert plan(read_recipe(path), args.corpus, tmp_path / "out", dict(args.also))
            continue
        args.config = ROOT / args.config
        assert args.config == path
        if args.command == "train":
            if args.init:
                before = RunConfig.of(args.system, "tiny", "scenes")
                Path(args.init).mkdir(parents=True)
                (Path(args.init) / "config.yaml").write_text(dump(before), encoding="utf-8")
            config = config_of(args)
            assert config.system == args.system
            assert config.size == ("tiny" if args.init else "base")
        else:
            changes, own = changes_of(args)
            how = override(compare.CompareConfig(), own)
            steps = args.budget and int(args.budget.amount)
            options = args.size, steps, args.seeds, changes, how.arms
            arms.planned_arms(args.systems, args.corpus, Path("runs"), *options)


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """An empty folder to work in, whose tuwen/ rooms are looked into beside the real ones."""
    monkeypatch.chdir(tmp_path)
    rooms = ("objectives", "systems", "tasks", "data.corpora")
    packages = [importlib.import_module(f"tuwen.{room}") for room in rooms]
    before = set(sys.modules)
    for package in packages:
        folder = tmp_path.joinpath(*package.__name__.split("."))
        folder.mkdir(parents=True)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            parent, _, last = name.rpartition(".")
            vars(sys.modules[parent]).pop(last, None)
            del sys.modules[name]


def test_the_examples_of_contributing_work(workshop, capsys):
    use = []
    for text in blocks(ROOT / "CONTRIBUTING.md", "python"):
        name = text.splitlines()[0].removeprefix("# ")
        if name == "use":
            use.append(text)
        else:
            (workshop / name).write_text(text, encoding="utf-8")
    assert "sigmoid" in systems.names()
    for text in use:
        exec(compile(text, "CONTRIBUTING.md", "exec"), {})
    train = "train sigmoid --corpus data/colours --out runs/a --size tiny --steps 40"
    assert cli.main([*train.split(), "--set", "train.batch_size=3", "data.workers=0"]) == 0
    capsys.readouterr()
    assert cli.main(["eval", "runs/a", "--corpus", "data/colours", "--task", "pair_cosine", "--json"]) == 0
    found = capsys.readouterr().out
    by_language = json.loads(found)["languages"]
    assert set(by_language) == {"en", "zh"}
    assert by_language["en"] > 0.2  # three colours are learnt in no time


def test_the_examples_of_python_work(workshop, capsys):
    load, make, _, train = blocks(
        ROOT / "docs" / "python.md", "python"
    )  # the third, other people's evaluators, is tests/test_encoder.py
    space = {"tuwen": tuwen}
    exec(compile(train.replace("count=500", "count=40"), "python.md", "exec"), space)
    assert set(eval(capsys.readouterr().out.splitlines()[-1])) >= {"r1", "r5", "r10"}
    from PIL import Image

    for name, colour in (("cat.jpg", "red"), ("dog.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(name)
    exec(compile(load.replace("runs/photos", "runs/from_python"), "python.md", "exec"), space)
    vectors, ranking = space["vectors"], space["ranking"]
    assert (vectors.images.norm(dim=1) - 1).abs().max() < 1e-5
    assert sorted(ranking.images) == [0, 1]
    assert ranking.scores == sorted(ranking.scores, reverse=True)
    config = RunConfig.of("ernie_unix2", "tiny", "scenes:count=40", changes={"train.steps": 2, "train.batch_size": 8})
    space["model"] = tuwen.load(loop.train(config, "runs/speaking", quiet=True))
    exec(compile(make, "python.md", "exec"), space)
