"""RFC 8785: its own examples, and an implementation that shares no code with ours."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import canonical

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "rfc8785.json").read_text(encoding="utf-8"))

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.one_of(
    st.integers(min_value=-canonical.MAX_SAFE_INTEGER, max_value=canonical.MAX_SAFE_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False),
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


@given(json_values)
def test_an_independent_implementation_writes_the_same_bytes(value: Any) -> None:
    assert canonical.encode(value) == rfc8785.dumps(value)


@given(json_values)
def test_the_bytes_are_json_for_the_same_value(value: Any) -> None:
    assert json.loads(canonical.encode(value), parse_int=_as_number) == value


@given(json_values)
def test_canonicalizing_twice_changes_nothing(value: Any) -> None:
    once = canonical.encode(value)
    assert canonical.encode(json.loads(once, parse_int=_as_number)) == once


@pytest.mark.parametrize("case", VECTORS["appendix_b"], ids=lambda case: str(case["ieee754"]))
def test_numbers_of_rfc_8785_appendix_b(case: dict[str, str]) -> None:
    [number] = struct.unpack(">d", bytes.fromhex(case["ieee754"]))
    if case["json"] == "":
        with pytest.raises(ValueError, match="finite"):
            canonical.encode(number)
    else:
        assert canonical.encode(number).decode() == case["json"]


@pytest.mark.parametrize("case", VECTORS["values"], ids=lambda case: str(case["section"]))
def test_the_worked_examples_of_rfc_8785(case: dict[str, Any]) -> None:
    assert canonical.encode(json.loads(case["input"])) == bytes.fromhex(case["output_hex"])


def test_members_are_sorted_by_utf_16_code_units() -> None:
    # §3.2.3: U+1F600 is a surrogate pair from D83D on, which sorts before U+FB33.
    order = ["\r", "1", "\x80", "ö", "€", "\U0001f600", "\ufb33"]
    written = canonical.encode(dict.fromkeys(reversed(order), 0))
    assert list(json.loads(written)) == order


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        2**53,
        -(2**53),
        "\ud800",
        {"\ud800": 1},
        {1: 2},
        {None: 1},
        b"bytes",
        bytearray(b"bytes"),
        {"a"},
        Path(),
        [float("nan")],
    ],
    ids=repr,
)
def test_what_has_no_exact_json_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the messages differ)
        canonical.encode(value)


def test_true_is_not_one() -> None:
    assert canonical.encode([True, 1, False, 0, None]) == b"[true,1,false,0,null]"


def test_a_tuple_is_a_list() -> None:
    assert canonical.encode({"b": (1, 2), "a": ()}) == b'{"a":[],"b":[1,2]}'


def _as_number(text: str) -> int | float:
    # A float such as 1e20 is written as an integer; read back it is the same double.
    number = int(text)
    return number if abs(number) <= canonical.MAX_SAFE_INTEGER else float(text)


plain = st.recursive(
    st.text() | st.integers(-(2**53) + 1, 2**53 - 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("aZ_09\x00~"), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text("aZ_09\x00~"), plain))
def test_the_quick_way_writes_the_same_bytes(value: dict[str, object]) -> None:
    assert canonical.encode_plain(value) == canonical.encode(value)


def test_the_quick_way_writes_every_character_the_same() -> None:
    text = "".join(chr(number) for number in range(0x110000) if not 0xD800 <= number <= 0xDFFF)
    assert canonical.encode_plain({"text": text}) == canonical.encode({"text": text})


def test_the_quick_way_refuses_a_lone_surrogate() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        canonical.encode_plain({"text": "\ud800"})
