"""An argument parser that names the nearest right word when one is wrong."""

import argparse
import difflib
import re
import sys
from typing import NoReturn

from tuwen import speech
from tuwen.errors import printable


class Parser(argparse.ArgumentParser):
    """argparse with examples kept as written, no abbreviated options, and near names in errors (status 2)."""

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None):
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            # the command's own parser knows the options the user may have meant
            (getattr(known, "parser", None) or self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return known

    def format_help(self) -> str:
        """The help in the user's language; examples stay as they are typed."""
        if speech.chosen_language() == "en":
            return super().format_help()
        self.description = self.description and speech.spoken(self.description)
        self.epilog = self.epilog and self.epilog.replace("examples:", speech.spoken("examples:"), 1)
        listed = [one for action in self._actions for one in getattr(action, "_choices_actions", ())]
        for action in (*self._actions, *listed):
            if action.help and action.help != argparse.SUPPRESS:
                action.help = speech.spoken(action.help)
        for group in self._action_groups:
            group.title = group.title and speech.spoken(group.title)
        return super().format_help().replace("usage: ", speech.spoken("usage: "), 1)

    def format_usage(self) -> str:
        return super().format_usage().replace("usage: ", speech.spoken("usage: "), 1)

    def error(self, message: str) -> NoReturn:
        near = self._near(message)
        hint = speech.spoken("; did you mean {}?").format(near) if near else ""
        self.print_usage(sys.stderr)
        more = speech.spoken(" (`{} --help` shows all)").format(self.prog)
        self.exit(2, f"{self.prog}: {printable(speech.spoken(message))}{hint}{more}\n")

    def _near(self, message: str) -> str:
        """What the user probably meant by an unknown option or choice, or nothing."""
        if wrong := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            known = [name for name in self._option_string_actions if name.startswith("--")]
        elif wrong := re.search(r"invalid choice: '([^']*)'", message):
            choices = [action.choices for action in self._actions if action.choices is not None]
            known = list(dict.fromkeys(str(choice) for group in choices for choice in group))
        else:
            return ""
        return " or ".join(difflib.get_close_matches(wrong[1], known, n=2))


def add_command(commands, name: str, run, summary: str, examples: str = "") -> Parser:
    """A subcommand that calls `run(args)`, which gives an exit status or None for 0."""
    description = summary[0].upper() + summary[1:] + "."
    epilog = f"examples:\n{examples}" if examples else None
    command = commands.add_parser(name, help=summary, description=description, epilog=epilog)
    command.set_defaults(run=run, parser=command)
    return command


def add_columns(command) -> None:
    """The option that says what a table's columns mean; `Parser` users hand it on by `with_columns`."""
    columns = (
        "what columns of a table mean, as 主图=image 品名=title (image, text, title, id, split, tags, text_zh, ...)"
    )
    command.add_argument("--columns", metavar="COLUMN=NAME", nargs="+", default=[], help=columns)


def with_columns(location: str, columns: list[str]) -> str:
    """The location of a table whose columns are called otherwise."""
    return f"columns:{','.join(columns)}:{location}" if columns else location


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def whole(text: str) -> int:
    """A whole number of at least 0."""
    return 0 if text == "0" else positive(text)


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and up to 1")
    return value


def ratio(text: str) -> float:
    """A number of at least 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return value
