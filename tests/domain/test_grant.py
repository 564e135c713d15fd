"""Grants: the decision table of renewal, and what renewal may not move."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain.grant import (
    MAX_RENEWALS_AT_ONCE,
    EndReason,
    Grant,
    Renewal,
    decide_renewal,
    ended,
    permit_used,
    renewable_at,
    renewed,
)
from tests.domain.records import NOW, make_grant

# A grant whose first token was replaced at NOW + 100.
RENEWED = renewed(make_grant(), "jti-2", NOW + 100)
TWICE = renewed(RENEWED, "jti-3", NOW + 110)
RELEASED = ended(RENEWED, EndReason.RELEASED, NOW + 120)
LASTING = make_grant(exp=NOW + 86_400)
SHORT = make_grant(ttl=10, exp=NOW + 10)
SHORT_RENEWED = renewed(SHORT, "jti-2", NOW + 5)


@pytest.mark.parametrize(
    ("grant", "jti", "after", "decision"),
    [
        pytest.param(make_grant(), "jti-1", 0, Renewal.SUCCEED, id="current"),
        pytest.param(RENEWED, "jti-2", 101, Renewal.SUCCEED, id="successor"),
        pytest.param(RENEWED, "jti-1", 101, Renewal.REPEAT, id="retry"),
        pytest.param(RENEWED, "jti-1", 130, Renewal.REPEAT, id="retry-in-its-last-second"),
        pytest.param(RENEWED, "jti-1", 130.1, Renewal.REUSE, id="too-late-for-a-retry"),
        pytest.param(TWICE, "jti-2", 111, Renewal.REPEAT, id="retry-of-the-second"),
        pytest.param(TWICE, "jti-1", 111, Renewal.REUSE, id="successor-was-renewed-itself"),
        pytest.param(SHORT_RENEWED, "jti-1", 14, Renewal.REPEAT, id="successor-lives"),
        pytest.param(SHORT_RENEWED, "jti-1", 15, Renewal.REUSE, id="successor-is-over"),
        pytest.param(RENEWED, "jti-0", 101, Renewal.REUSE, id="older-than-the-predecessor"),
        pytest.param(make_grant(), "", 1, Renewal.REUSE, id="nothing-is-no-predecessor"),
        pytest.param(RELEASED, "jti-2", 121, Renewal.REFUSE, id="ended-current"),
        pytest.param(RELEASED, "jti-1", 121, Renewal.REFUSE, id="ended-predecessor"),
        pytest.param(LASTING, "jti-1", 86_399, Renewal.SUCCEED, id="last-second"),
        pytest.param(LASTING, "jti-1", 86_399.5, Renewal.SUCCEED, id="in-its-last-second"),
        pytest.param(LASTING, "jti-1", 86_400, Renewal.REFUSE, id="end-of-life"),
        pytest.param(make_grant(), "jti-1", 300, Renewal.REFUSE, id="its-token-is-over"),
    ],
)
def test_what_is_done_with_a_token_presented_to_renew(grant: Grant, jti: str, after: float, decision: Renewal) -> None:
    assert decide_renewal(grant, jti, NOW + after) is decision


@given(st.lists(st.floats(0, 500), max_size=12), st.integers(1, 400), st.integers(0, 1000))
def test_no_run_of_renewals_outlives_the_grant(waits: list[float], ttl: int, lifetime: int) -> None:
    grant = make_grant(ttl=ttl, exp=NOW + min(ttl, lifetime), ends_at=NOW + lifetime)
    now = float(NOW)
    for number, wait in enumerate(waits):
        now += wait
        if decide_renewal(grant, grant.jti, now) is not Renewal.SUCCEED:
            continue
        after = renewed(grant, f"renewal-{number}", now)
        assert after.exp <= after.ends_at == NOW + lifetime
        assert 1 <= after.exp - after.iat <= ttl
        assert after.previous_jti == grant.jti
        grant = after


def test_renewal_changes_the_token_and_nothing_else() -> None:
    before, after = msgspec.structs.asdict(make_grant()), msgspec.structs.asdict(RENEWED)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"jti", "iat", "exp", "previous_jti", "renewed_at"}
    assert (after["iat"], after["exp"]) == (NOW + 100, NOW + 400)


def test_a_grant_lives_until_its_token_is_over_or_it_is_ended() -> None:
    grant = make_grant()
    assert grant.is_live(NOW + 299.9)
    assert not grant.is_live(NOW + 300)
    assert not ended(grant, EndReason.RELEASED, NOW).is_live(NOW)


def test_an_end_at_the_epoch_is_still_an_end() -> None:
    assert ended(make_grant(), EndReason.RELEASED, 0.0).is_ended
    assert ended(make_grant(), EndReason.RELEASED, NOW).end_reason == "released"


def test_a_grant_is_renewed_so_often_at_once_and_then_as_its_permits_come_back() -> None:
    grant, now, done = make_grant(ttl=640, exp=NOW + 640, ends_at=NOW + 100_000), float(NOW), 0
    while decide_renewal(grant, grant.jti, now) is Renewal.SUCCEED:
        grant, done = renewed(permit_used(grant, now), f"renewal-{done}", now), done + 1
    assert done == MAX_RENEWALS_AT_ONCE
    assert decide_renewal(grant, grant.jti, now) is Renewal.TOO_SOON
    assert renewable_at(grant, now) == now + 10
    assert decide_renewal(grant, grant.jti, now + 9.9) is Renewal.TOO_SOON
    assert decide_renewal(grant, grant.jti, now + 10) is Renewal.SUCCEED
    assert decide_renewal(grant, grant.previous_jti, now) is Renewal.REPEAT  # a retry needs none


@given(st.lists(st.floats(0, 700), max_size=300), st.integers(1, 3600))
def test_no_run_of_renewals_leaves_more_than_twice_as_many_tokens_behind(waits: list[float], ttl: int) -> None:
    grant, now = make_grant(ttl=ttl, exp=NOW + ttl, ends_at=NOW + 10**9), float(NOW)
    superseded: list[int] = []
    for number, wait in enumerate(waits):
        now += wait * ttl / 10_000
        if decide_renewal(grant, grant.jti, now) is Renewal.SUCCEED:
            superseded.append(grant.exp)
            grant = renewed(permit_used(grant, now), f"renewal-{number}", now)
        assert sum(exp > now for exp in superseded) <= 2 * MAX_RENEWALS_AT_ONCE
