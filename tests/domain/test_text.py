"""Texts that others chose."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import text
from agentwrit.domain.errors import InvalidRequest

ANY = st.text()
VALUES = st.recursive(
    ANY | st.integers() | st.booleans() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(ANY, inner)
)


@given(ANY)
def test_what_is_shown_is_one_line_that_steers_nothing(value: str) -> None:
    shown = text.escaped(value)
    assert shown.isprintable()
    assert shown.encode().decode() == shown  # no surrogate either
    assert (shown == value) == value.isprintable()


@given(ANY, st.integers(1, 40))
def test_what_is_too_long_is_cut_and_says_so(value: str, longest: int) -> None:
    shown = text.escaped(value, longest)
    assert len(shown) <= longest
    assert shown.isprintable()
    assert shown == text.escaped(value) or shown.endswith(text.CUT)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("GET /orders/é 🙂", "GET /orders/é 🙂"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\r\nb\0", r"a\r\nb\x00"),
        ("\u00a0\u0085\u2028\u202e\u200b", r"\xa0\x85\u2028\u202e\u200b"),
        ("\ud800 \U000e0041", r"\ud800 \U000e0041"),
    ],
)
def test_characters_are_escaped_as_python_writes_them(value: str, shown: str) -> None:
    assert text.escaped(value) == shown


@given(VALUES)
def test_json_says_the_same_and_is_printable(value: object) -> None:
    written = text.to_json(value)
    assert written.isprintable()
    assert json.loads(written) == value
    indented = text.to_json(value, indent=2)
    assert json.loads(indented) == value
    assert all(line.isprintable() for line in indented.split("\n"))
    assert len(indented.splitlines()) == indented.count("\n") + 1


@pytest.mark.parametrize("name", ["", "x" * 9, "a\nb", "a\u00a0b", "a\u202eb", "\x7f", "a\u0085"])
def test_what_is_no_name_is_refused_and_the_field_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match="agent_name takes 1 to 8 printable characters"):
        text.check(name, 8, field="agent_name")


def test_what_may_be_left_out_may_be_empty() -> None:
    assert text.check("", 8, field="reason", shortest=0) == ""
    assert text.check("für ß/é", 8, field="reason") == "für ß/é"
