"""`--where`: what is typed, and the filter it means."""

import pytest

from tuwen.cli.search import parse_where
from tuwen.errors import UserError

COLUMNS = {"brand": "text", "price": "number", "sale": "flag", "tags": "tags"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("brand=A", {"brand": ["A"]}),
        ("brand=A|B", {"brand": ["A", "B"]}),
        (r"brand=A\|B", {"brand": ["A|B"]}),
        (r"brand=A\|B|C", {"brand": ["A|B", "C"]}),
        (r"tags=\||x", {"tags": ["|", "x"]}),
        (r"brand=C:\dir", {"brand": [r"C:\dir"]}),
        ("price=20|30.5", {"price": [20, 30.5]}),
        ("price=10..", {"price": {"min": 10}}),
        ("sale=true|false", {"sale": [True, False]}),
        ("标签=促销|包邮", {"tags": ["促销", "包邮"]}),  # as the table's header called the column
        ("tags=", {"tags": [""]}),
    ],
)
def test_what_is_typed_is_what_is_meant(typed, meant):
    assert parse_where([typed], COLUMNS) == meant


@pytest.mark.parametrize("typed", ["brand", "price=a|b", r"price=1\|2", "sale=1"])
def test_what_cannot_be_meant_is_told_with_the_right_form(typed):
    with pytest.raises(UserError, match=r"write|holds") as caught:
        parse_where([typed], COLUMNS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("typed", ["颜色=红", "文案=红", "Tags=a"])
def test_an_unknown_column_is_told_with_those_there_are(typed):
    with pytest.raises(UserError, match=r"this index has brand, price, sale, tags$"):
        parse_where([typed], COLUMNS)


def test_a_column_of_the_header_s_own_name_goes_before_what_the_header_means():
    assert parse_where(["标签=a"], {**COLUMNS, "标签": "text"}) == {"标签": ["a"]}


def test_a_column_asked_about_twice_is_told():
    with pytest.raises(UserError, match="price is asked about twice; write one condition"):
        parse_where(["price=10..", "brand=A", "price=..20"], COLUMNS)
