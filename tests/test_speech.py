"""The command line in Chinese: nothing of the help lacks its translation, and what is typed stays as it is typed."""

import argparse

import pytest

from tuwen import cli
from tuwen.cli import speech


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


def test_the_catalogue_keeps_options_defaults_and_names():
    """What is typed, and every number, is the same in both languages."""
    import re

    typed = re.compile(r"--[a-z][a-z-]+|`[^`]+`|\d+|\.(?:csv|tsv|xlsx|parquet|jsonl|yaml|json|txt)\b")
    for english, chinese_text in speech.catalogue().items():
        if english[:3] in ("i2t", "t2i"):  # headings
            continue
        lost = set(typed.findall(english)) - set(typed.findall(chinese_text))
        assert not lost, (english[:80], lost)


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
