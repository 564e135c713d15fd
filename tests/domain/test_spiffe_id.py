"""SPIFFE identities: nothing that a caller writes reaches outside its segment."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import spiffe_id
from agentwrit.domain.errors import InvalidRequest

ALLOWED = string.ascii_letters + string.digits + "._-"
segments = st.text(ALLOWED, min_size=1, max_size=128).filter(lambda text: text not in (".", ".."))


@given(segments, segments, st.binary(min_size=8, max_size=8))
def test_an_identity_gives_its_segments_back(orch_id: str, task_id: str, instance: bytes) -> None:
    identity = spiffe_id.for_agent(
        "agentwrit.local",
        spiffe_id.check_segment(orch_id, field="orch_id"),
        spiffe_id.check_segment(task_id, field="task_id"),
        instance,
    )
    expected = ["spiffe:", "", "agentwrit.local", "agent", orch_id, task_id, instance.hex()]
    assert identity.split("/") == expected


@given(st.text(max_size=6))
def test_a_segment_has_no_character_outside_the_standards_set(text: str) -> None:
    if not text or set(text) - set(ALLOWED) or text in (".", ".."):
        with pytest.raises(InvalidRequest):
            spiffe_id.check_segment(text, field="task_id")
    else:
        assert spiffe_id.check_segment(text, field="task_id") == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a/b", "../x", "%2e%2e", "a b", "a\n", "a\0", "ａ", "a" * 129, "a?b", "#"]
)
def test_what_would_escape_the_path_is_refused_with_the_fields_name(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^task_id") as refusal:
        spiffe_id.check_segment(text, field="task_id")
    assert refusal.value.hint is not None


@pytest.mark.parametrize("name", ["agentwrit.local", "a", "a_b-c.9", "x" * 255])
def test_a_trust_domain_is_taken(name: str) -> None:
    assert spiffe_id.is_trust_domain(name)


@pytest.mark.parametrize("name", ["", "Agentwrit.local", "a/b", "a:1", "a@b", "a b", "a\n", "x" * 256, "ä"])
def test_what_is_no_trust_domain_is_refused(name: str) -> None:
    assert not spiffe_id.is_trust_domain(name)
