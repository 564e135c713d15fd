"""RFC 3339 times."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import timestamps

moments = st.datetimes(timezones=st.just(UTC)).map(datetime.timestamp)


def test_whole_seconds_have_no_fraction() -> None:
    assert timestamps.rfc3339(1_800_000_000) == "2027-01-15T08:00:00Z"
    assert timestamps.rfc3339(1_800_000_000.25) == "2027-01-15T08:00:00.250000Z"
    assert timestamps.rfc3339_micros(1_800_000_000) == "2027-01-15T08:00:00.000000Z"
    assert timestamps.rfc3339_micros(1_800_000_000.999_999_9) == "2027-01-15T08:00:01.000000Z"
    assert timestamps.rfc3339_micros(1_800_000_000.000_001) == "2027-01-15T08:00:00.000001Z"


@given(moments)
def test_a_written_time_is_read_back(at: float) -> None:
    assert timestamps.parse_rfc3339(timestamps.rfc3339(at)) == pytest.approx(at, abs=1e-4)
    assert timestamps.parse_rfc3339(timestamps.rfc3339_micros(at)) == pytest.approx(at, abs=1e-4)


@given(moments, moments)
def test_texts_sort_as_the_times_do(first: float, second: float) -> None:
    texts = [timestamps.rfc3339_micros(first), timestamps.rfc3339_micros(second)]
    assert len(texts[0]) == len(texts[1])
    if first <= second:
        assert texts == sorted(texts)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2027-01-15T08:00:00Z", 1_800_000_000),
        ("2027-01-15T10:30:00.5+02:30", 1_800_000_000.5),
        ("2027-01-15T08:00:00-00:00", 1_800_000_000),
    ],
)
def test_a_time_with_any_offset_is_read(text: str, at: float) -> None:
    assert timestamps.parse_rfc3339(text) == at


@pytest.mark.parametrize("text", ["", "now", "2027-01-15", "2027-01-15T08:00:00", "2027-13-15T08:00:00Z", "1800000000"])
def test_what_names_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any reason is right)
        timestamps.parse_rfc3339(text)
