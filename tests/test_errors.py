"""What others wrote, put into a line: nothing a terminal obeys, nothing without end."""

import pytest

from tuwen.errors import UserError, printable, quoted, reason_of, refused


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2J\nb\r\t", "a\\x1b[2J\\nb\\r\\t"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("a\u202eb\u2066c\u2028", "a\\u202eb\\u2066c\\u2028"),
        ("\U000e0041\ud800", "\\U000e0041\\ud800"),
        ("一只\u3000鸟\xa0 é", "一只\u3000鸟\xa0 é"),
        ("👩\u200d🚀 می\u200cخواهم", "👩\u200d🚀 می\u200cخواهم"),
        ("", ""),
        (5, "5"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown


class Endless:
    def __repr__(self):
        return "x" * 10**6


def shared(depth, width):
    """Lists in lists: `width` ** `depth` items, of few objects, as YAML's anchors make them."""
    value = "lol"
    for _ in range(depth):
        value = [value] * width
    return value


@pytest.mark.parametrize(
    "value",
    ["x" * 10**7, 10**5000, shared(9, 10), {str(k): "v" * 999 for k in range(10**4)}, Endless(), b"y" * 10**7],
    ids=["text", "number", "lists", "names", "object", "bytes"],
)
def test_quoted_values_are_bounded(value):
    text = quoted(value)
    assert len(text) <= 200
    assert len(quoted(value, 40)) <= 40


def test_short_values_are_quoted_as_python_writes_them():
    assert quoted("it's") == '"it\'s"'
    assert quoted({"a": [1, 2.5, None]}) == "{'a': [1, 2.5, None]}"
    assert quoted("\x1b鸟") == "'\\x1b鸟'"


def test_a_reason_is_the_first_line_and_bounded():
    assert reason_of(ValueError("\n first \x1b\nsecond")) == "first \\x1b"
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 10**6))) == 200


class PanicException(BaseException):
    """As pyo3 raises it."""


@pytest.mark.parametrize("error", [ValueError("why\nmore"), PanicException("why")])
def test_a_library_that_refuses_or_panics_is_a_users_mistake(error):
    with pytest.raises(UserError) as raised, refused("f.json: not read", "save it anew"):
        raise error
    assert str(raised.value) == "f.json: not read (why); save it anew"


def test_what_is_no_librarys_refusal_goes_through():
    with pytest.raises(KeyboardInterrupt), refused("x"):
        raise KeyboardInterrupt
    with pytest.raises(KeyError), refused("x", kinds=(OSError,)):
        raise KeyError
    with pytest.raises(UserError, match="of its own"), refused("x"):
        raise UserError("of its own")
