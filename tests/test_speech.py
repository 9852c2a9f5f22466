"""tuwen in Chinese: no help, message, table or page lacks its translation, and what is typed stays as it is typed."""

import argparse
import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tuwen
from tests.test_floors import sources, tree_of
from tuwen import cli, speech


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv("TUWEN_LANG", "zh")


def said(parser: argparse.ArgumentParser):
    """Every text of a parser's help and of its subcommands'."""
    yield from filter(None, (parser.description, *(group.title for group in parser._action_groups)))
    for action in parser._actions:
        if action.help and action.help != argparse.SUPPRESS:
            yield action.help
        yield from (choice.help for choice in getattr(action, "_choices_actions", ()))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from said(command)


def test_no_text_of_the_help_lacks_its_translation(chinese):
    texts = set(said(cli.parser()))
    assert len(texts) > 200
    assert sorted(text for text in texts if speech.spoken(text) == text) == []


# ---- messages, read off the source

ROOT = Path(tuwen.__file__).parent
SAID = {  # calls: the places of their arguments that a person reads
    "UserError": (0,),
    "ValueError": (0,),  # of a config: told after its name
    "RowError": (0, 1),
    "BrokenImage": (0, 1),
    "Fault": (2, 3),
    "Finding": (0,),
    "finding": (1, 2),
    "spoken": (0,),
    "print_line": (0,),
    "say": (0,),
    "announce": (0,),
    "_progress": (0,),
    "in_parts": (0,),
    "error": (0,),  # of an argument parser
    "track": (1,),  # what a bar is called
    "ArgumentTypeError": (0,),
}
HEADS = ("head", "heads", "columns", "HEADS", "HEADINGS", "DIFFERENCES", "FOCUS")  # of tables
LINES = ("remarks", "foretold", "line_of", "decide", "_notes", "crossing_line", "score_line", "rule_line")
LINES += ("judge_claim", "where_to_ask", "_settled", "cost_cells", "_why_empty", "choose", "line", "_size_line")
TABLES = ("_FIXES", "KNOWN", "_ASKED")  # of parts of messages, by what they are about
WORDS = re.compile("[A-Za-z]{2}")


def name_of(node: ast.AST) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


@functools.cache
def mistakes() -> frozenset[str]:
    """UserError and the kinds of it."""
    kinds = {"UserError"}
    classes = [node for path in sources() for node in tree_of(path).body if isinstance(node, ast.ClassDef)]
    while more := {c.name for c in classes if kinds & set(map(name_of, c.bases))} - kinds:
        kinds |= more
    return frozenset(kinds)


def texts_of(node: ast.AST) -> list[str]:
    """The messages an expression may give, `{}` for every value; none where the source does not show them."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return [*texts_of(node.body), *texts_of(node.orelse)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in texts_of(value)]
    if isinstance(node, ast.Call) and name_of(node.func) in ("one_line", "spoken"):
        return texts_of(node.args[0])
    return []


def columns_of(node: ast.AST) -> list[str]:
    """The texts of a tuple."""
    return [text for item in node.elts for text in texts_of(item)] if isinstance(node, ast.Tuple) else []


def values_of(node: ast.AST) -> list[str]:
    """The texts that a dict's keys, or those of a comprehension, lead to."""
    values = node.values if isinstance(node, ast.Dict) else [node.value] if isinstance(node, ast.DictComp) else []
    return [text for value in values for text in texts_of(value)]


def lines_of(function: ast.FunctionDef) -> list[str]:
    """Every text of a function that makes lines for people, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    whole = [node for part in body for node in ast.walk(part) if isinstance(node, ast.Constant | ast.JoinedStr)]
    parts = {id(part) for node in whole if isinstance(node, ast.JoinedStr) for part in node.values}
    return [text.removeprefix("; ") for node in whole if id(node) not in parts for text in texts_of(node)]


def messages() -> Iterator[tuple[str, str]]:
    """(text, where it stands) of every message that reaches a person."""
    for path in sources():
        room = path.relative_to(ROOT).parts[0]
        for node in ast.walk(tree_of(path)):
            texts: list[str] = []
            if isinstance(node, ast.Call):
                name = name_of(node.func)
                places = (0,) if name in mistakes() else SAID.get(name, ())
                texts = [text for place in places for arg in node.args[place : place + 1] for text in texts_of(arg)]
                if name in ("print_table", "table", "Tabled"):
                    texts = [text for arg in node.args[:2] for text in (*texts_of(arg), *columns_of(arg))]
                if name == "refused":
                    what, fix = (node.args[0], *node.args[1:2], ast.Constant(""))[:2]
                    texts = [
                        f"{text} ({{}})" + (f"; {way}" if way else "")
                        for text in texts_of(what)
                        for way in texts_of(fix)
                    ]
            elif isinstance(node, ast.Assign) and name_of(node.targets[0]) == "what" and room != "tasks":
                texts = texts_of(node.value)
            elif (
                isinstance(node, ast.Assign)
                and name_of(node.targets[0]) in HEADS
                and room in ("cli", "benchmark", "tasks")
            ):
                texts = [text for text in columns_of(node.value) if re.search("[a-z]{3}", text)]
            elif isinstance(node, ast.Assign) and name_of(node.targets[0]) in TABLES:
                texts = [text for table in ast.walk(node) for text in values_of(table)]
            elif isinstance(node, ast.FunctionDef) and node.name in LINES:
                texts = [text for text in lines_of(node) if " " in text]
            yield from ((text, f"{path.name}:{node.lineno}") for text in texts if WORDS.search(text.replace("{}", "")))


def test_no_message_lacks_its_translation():
    places = dict(messages())
    lacking = {text: place for text, place in places.items() if text not in speech.catalogue()}
    assert len(places) > 1000
    assert lacking == {}


def test_no_word_of_the_lists_of_corpora_and_suites_lacks_its_translation():
    from tuwen.benchmark import suites
    from tuwen.data.corpora.published import formats

    kinds = ("title", "records", "needs", "ask", "licence")
    texts = {getattr(form, kind) for form in formats().values() for kind in kinds}
    texts |= {suites.read_suite(name).what for name in suites.suite_names()}
    same = {"apt-get install tuxpaint-stamps-default"}  # names, licences and addresses are the same in both
    words = {text for text in texts - same if re.search(r"[a-z]{2,} |, [a-z]", text)}
    assert len(words) > 100
    assert sorted(words - speech.catalogue().keys()) == []


def test_every_message_with_values_is_said_with_them_in_their_places(chinese):
    """Each by its own line, not by that of another, and with every value of it."""
    for english, in_chinese in speech.catalogue().items():
        values = [f"v{k}" for k in range(english.count("{}"))]
        text = english
        for value in values:
            text = text.replace("{}", value, 1)
        if values and "-" not in english[:1]:
            told = speech.spoken(text)
            assert speech.spoken(text) != text, english
            assert sorted(re.findall(r"v\d+", told)) == sorted(values), (english, told)
            assert re.sub(r"v\d+", "{}", told) == re.sub(r"\{\d\}", "{}", in_chinese), english


def test_a_message_is_said_within_another_and_behind_its_place(chinese):
    nothing = "没有文字；请写上，或去掉这一行"
    assert speech.spoken("pairs.csv:3: no text; write one or remove the row") == f"pairs.csv:3: {nothing}"
    inner = "picture of 'x': no bytes; replace it or remove the row"
    outer = f"corpus a, split b, row 3 (x): {inner}; mend it, remove it, or set data.on_bad to skip"
    told = "'x' 的图片：没有字节；请更换，或去掉这一行"
    assert speech.spoken(outer) == f"语料 a，划分 b，第 3 行（x）：{told}；请修正、去掉，或把 data.on_bad 设为 skip"
    assert speech.spoken("a.jpg: no such picture") == "a.jpg：没有这张图片"
    gone = "picture 'a.jpg': missing: there is no such file under b; put the file there or mend its path"
    assert (
        speech.spoken(f"c.csv:3: {gone}")
        == "c.csv:3: 图片 'a.jpg'：缺文件：没有这个文件，在 b；把文件放到那里，或改正路径"
    )
    assert speech.spoken("text: no text; write one or remove the row") == f"text: {nothing}", "a field's name"
    assert speech.spoken("nobody's message") == "nobody's message"
    assert speech.spoken("no picture mean in rows") == "rows 里没有图片 mean", "a word of a value is a name"


def test_a_hostile_value_takes_no_time(chinese):
    import time

    began = time.process_time()  # a busy neighbour's time is not its own
    speech.spoken("x: " * 100_000)
    speech.spoken("{} " * 1000 + ": cannot be read (" * 1000)
    assert time.process_time() - began < 2


def test_the_catalogue_keeps_options_defaults_and_names():
    """What is typed, and every number, is the same in both languages."""
    typed = re.compile(r"--[a-z][a-z-]+|`[^`]+`|\d+|\.(?:csv|tsv|xlsx|parquet|jsonl|yaml|json|txt)\b")
    for english, in_chinese in speech.catalogue().items():
        if english[:3] in ("i2t", "t2i"):  # headings
            continue
        lost = set(typed.findall(english)) - set(typed.findall(re.sub(r"\{\d\}", "{}", in_chinese)))
        assert not lost, (english[:80], lost)


def test_no_message_stands_twice_in_the_catalogue():
    lines = (Path(speech.__file__).parent / "chinese.tsv").read_text(encoding="utf-8").splitlines()
    names = [line.split("\t")[0] for line in lines]
    assert all(line.count("\t") == 1 for line in lines)
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_help_and_usage_errors_are_chinese(chinese, capsys):
    with pytest.raises(SystemExit):
        cli.main(["search", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("用法：tuwen search")
    assert "按文字、图片或两者搜索索引。" in text
    assert "例子：" in text
    assert "结果数（默认 10）" in text
    with pytest.raises(SystemExit) as stop:
        cli.main(["search", "index", "--candidate", "5"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("用法：tuwen search")
    assert "是不是 --candidates？" in error


def test_the_language_is_the_environment_s_unless_it_is_named(monkeypatch, capsys):
    for name in ("TUWEN_LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    for lang, expected in (("zh_CN.UTF-8", "zh"), ("en_US.UTF-8", "en"), ("C", "en"), ("", "en")):
        monkeypatch.setenv("LANG", lang)
        assert speech.chosen_language() == expected
    monkeypatch.setenv("TUWEN_LANG", "en")
    assert speech.choose_language(["eval", "--lang", "zh", "RUN"]) == ["eval", "RUN"]
    assert speech.chosen_language() == "zh"
    assert speech.choose_language(["--lang=en", "eval"]) == ["eval"]
    assert speech.chosen_language() == "en"
    with pytest.raises(SystemExit):
        cli.main(["--lang", "zz"])
    assert "invalid choice: 'zz'" in capsys.readouterr().err


def test_headings_of_a_retrieval_table_are_chinese(chinese, capsys):
    from tuwen.cli.output import print_table

    head = ["language", "stage", "i2t R@1", "i2t R@5", "i2t R@10", "t2i R@1", "t2i R@5", "t2i R@10", "mean"]
    print_table("", head, [["zh", "first", *["1.0"] * 7]])
    ways = [f"{way} R@{k}" for way in ("图搜文", "文搜图") for k in (1, 5, 10)]
    assert capsys.readouterr().out.splitlines()[0].split() == " ".join(["语言", "阶段", *ways, "平均"]).split()
