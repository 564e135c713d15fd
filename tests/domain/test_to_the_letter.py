"""Rules at their edges: the second in which they change, the first and the last of a chain, and what is kept."""

import msgspec
import pytest

from agentwrit.domain import authorization, challenge, jws, limits, signing_key
from agentwrit.domain.access import Receipt
from agentwrit.domain.authorization import SeveralCredentials
from agentwrit.domain.errors import InvalidChallenge, InvalidRequest, InvalidTTL
from agentwrit.domain.grant import (
    EndReason,
    GrantKind,
    GrantStatus,
    Renewal,
    decide_renewal,
    ended,
    kind_of_subject,
    renewed,
)
from agentwrit.domain.idempotency import RETENTION_SECONDS, identify
from agentwrit.domain.jws import Ed25519Signer
from agentwrit.domain.limits import AppUsage, WantedLimits
from agentwrit.domain.revocation import Revocation, RevocationIndex, RevocationKind
from agentwrit.domain.signing_key import KeyPurpose, KeyState, StoredKey
from tests.domain.records import NOW, make_claims, make_grant, make_hop

# -- grants -----------------------------------------------------------------------------------------------------------


def test_whose_token_it_is_its_subject_says() -> None:
    assert kind_of_subject("admin") is GrantKind.OPERATOR
    assert kind_of_subject("app:app-1") is GrantKind.APP
    for subject in ("administrator", "", "application", make_grant().subject):
        assert kind_of_subject(subject) is GrantKind.AGENT


def test_a_grant_is_of_the_key_that_signed_its_token_or_any_delegation_in_it() -> None:
    assert make_grant(kid="kid-1").is_signed_by("kid-1")
    assert not make_grant(kid="kid-1").is_signed_by("kid-2")
    assert make_grant(kid="").is_signed_by("kid-2")  # from before it was written down: it may be
    delegated = make_grant(kid="kid-2", chain=(make_hop("sid-0"),))
    assert delegated.is_signed_by("kid-1")
    assert delegated.is_signed_by("kid-2")
    assert not delegated.is_signed_by("kid-3")


def test_where_a_grant_is_in_its_life_it_says_to_the_second() -> None:
    grant = make_grant(exp=NOW + 300)
    assert grant.status(NOW + 299.9) is GrantStatus.LIVE
    assert grant.status(NOW + 300) is GrantStatus.EXPIRED
    assert ended(grant, EndReason.RELEASED, NOW).status(NOW) is GrantStatus.ENDED


def test_a_successor_lives_for_its_ttl_and_never_beyond_the_grants_end() -> None:
    grant = make_grant(ttl=300, exp=NOW + 300, ends_at=NOW + 500)
    assert renewed(grant, "jti-2", NOW + 100).exp == NOW + 400
    assert renewed(grant, "jti-2", NOW + 250).exp == NOW + 500


def test_a_grant_whose_end_has_come_is_not_renewed_whatever_its_token_says() -> None:
    grant = make_grant(exp=NOW + 300, ends_at=NOW + 10)
    assert decide_renewal(grant, grant.jti, NOW + 9.5) is Renewal.SUCCEED
    assert decide_renewal(grant, grant.jti, NOW + 10) is Renewal.REFUSE


def test_an_end_is_an_end_at_the_beginning_of_time_too() -> None:
    for now, at in ((0, 1), (0.9, 1), (1, 1), (2, 2)):
        gone = ended(make_grant(), EndReason.REVOKED, now)
        assert (gone.ended_at, gone.is_ended, gone.end_reason) == (at, True, "revoked")


# -- revocations ------------------------------------------------------------------------------------------------------


def entry(kind: RevocationKind, name: str, effective_at: int, last_exp: int) -> Revocation:
    return Revocation(kind=kind, id=name, effective_at=effective_at, last_exp=last_exp)


def test_of_two_entries_for_one_thing_the_earlier_end_holds_for_the_longer_time() -> None:
    early = entry(RevocationKind.GRANT, "sid-1", NOW, NOW + 10)
    late = entry(RevocationKind.GRANT, "sid-1", NOW + 5, NOW + 20)
    for first, second in ((early, late), (late, early)):
        assert first.joined(second) == entry(RevocationKind.GRANT, "sid-1", NOW, NOW + 20)


def test_whoever_is_anywhere_in_a_chain_takes_it_along_and_its_first_agent_only_by_the_grant() -> None:
    chain = tuple(
        msgspec.structs.replace(make_hop(f"sid-{number}"), agent=f"agent-{number}", kid=f"kid-{number}")
        for number in range(3)
    )
    claims = make_claims(sub="agent-3", sid="sid-3", delegation_chain=chain)
    meant = [
        *((RevocationKind.GRANT, f"sid-{number}") for number in range(4)),
        *((RevocationKind.KEY, f"kid-{number}") for number in range(4)),
        *((RevocationKind.SUBJECT, f"agent-{number}") for number in (1, 2, 3)),
    ]
    # The first one delegated from what it holds itself, which ends by its own name.
    others = [(RevocationKind.SUBJECT, "agent-0"), (RevocationKind.GRANT, "sid-4"), (RevocationKind.KEY, "kid-4")]
    for is_dead, names in ((True, meant), (False, others)):
        for kind, name in names:
            index = RevocationIndex()
            index.add([entry(kind, name, NOW, NOW + 10)])
            assert index.is_grant_dead("kid-3", claims, NOW) is is_dead, (kind, name)
            assert not index.is_grant_dead("kid-3", claims, NOW - 1)


# -- limits -----------------------------------------------------------------------------------------------------------


def test_what_is_asked_of_limits_is_checked_one_by_one_and_what_is_not_stays_as_it_is() -> None:
    assert WantedLimits().checked() == {}
    asked = WantedLimits(max_live_agents=5, max_ttl=60, creates_per_second=None)
    assert asked.checked() == {"max_live_agents": 5, "max_ttl": 60, "creates_per_second": None}
    assert WantedLimits(max_ttl=limits.MAX_LIMIT + 1).checked() == {"max_ttl": limits.MAX_LIMIT + 1}
    for name in ("max_live_agents", "creates_per_second"):
        for limit in (0, limits.MAX_LIMIT + 1):
            with pytest.raises(InvalidRequest, match=name):
                WantedLimits(**{name: limit}).checked()
    with pytest.raises(InvalidTTL):
        WantedLimits(max_ttl=0).checked()


def test_a_permit_comes_after_a_share_of_a_second_and_who_waits_waits_whole_ones() -> None:
    usage = AppUsage(app_id="app-1", permits=0.0, refilled_at=NOW)
    assert limits.permit_at(usage, 4) == NOW + 0.25
    assert limits.permit_at(limits.created(usage, agents=0, permits=-1), 4) == NOW
    assert [limits.seconds_until(NOW + wait, NOW) for wait in (-1.0, 0.0, 0.2, 1.0, 1.2)] == [1, 1, 1, 1, 2]


# -- nonces and first answers -----------------------------------------------------------------------------------------


def test_the_use_of_a_nonce_is_remembered_until_the_second_in_which_it_is_fresh_no_more() -> None:
    key = b"k" * 32
    nonce = challenge.mint(key, NOW + 0.5, b"\xff" * 11)
    raw = challenge.verify(key, nonce, NOW + challenge.LIFETIME_SECONDS - 0.1)
    assert raw.hex() == nonce
    assert challenge.expires_at(raw) == NOW + challenge.LIFETIME_SECONDS
    with pytest.raises(InvalidChallenge, match="fresh"):
        challenge.verify(key, nonce, challenge.expires_at(raw))
    assert nonce[2:10] == f"{NOW:08x}"  # the most significant byte first, as the wire has it


def test_a_first_answer_holds_what_was_answered_for_as_long_as_it_may_be_asked_for_again() -> None:
    identity = identify("key-1", route="POST /v1/delegate", caller="sid-1", body={})
    grant, receipt = make_grant(), Receipt(3)
    of_grant, of_receipt = identity.answered(grant, NOW + 0.9), identity.answered(receipt, NOW + 0.9)
    assert (of_grant.grant, of_grant.receipt) == (grant, None)
    assert (of_receipt.grant, of_receipt.receipt) == (None, receipt)
    for answer in (of_grant, of_receipt):
        assert (answer.key, answer.request) == (identity.key, identity.request)
        assert answer.expires_at == NOW + RETENTION_SECONDS


# -- who presents what ------------------------------------------------------------------------------------------------


def test_a_request_shows_one_token_or_none_that_counts() -> None:
    assert authorization.read([]) is None
    assert authorization.read(["Bearer abc"]) == ("bearer", "abc")
    assert authorization.read(["DPoP  abc.def ghi "]) == ("dpop", "abc.def ghi")
    assert authorization.read(["Bearer"]) == ("bearer", "")
    assert authorization.read([""]) == ("", "")
    for fields in (["Bearer a", "Bearer a"], ["Bearer a", "Bearer b", ""]):
        with pytest.raises(SeveralCredentials):
            authorization.read(fields)
    assert "abc" not in repr(authorization.read(["Bearer abc"]))
    assert repr(authorization.read(["Bearer abc"])) == "Authorization(scheme='bearer')"


# -- signing keys -----------------------------------------------------------------------------------------------------


def test_a_key_that_signs_no_more_has_no_private_half_and_is_published_until_it_is_gone() -> None:
    key = StoredKey(
        kid="kid-1",
        purpose=KeyPurpose.ACCESS_TOKEN,
        state=KeyState.ACTIVE,
        public_key=b"p" * 32,
        wrapped=b"private",
        created_at=NOW,
    )
    assert key.wrapped
    assert not key.is_known_to_verifiers(NOW + signing_key.PUBLISHED_SECONDS - 0.1)
    assert key.is_known_to_verifiers(NOW + signing_key.PUBLISHED_SECONDS)
    retired = signing_key.retired(key, verifies_until=NOW + 60)
    assert (retired.state, retired.wrapped, retired.verifies_until) == (KeyState.RETIRED, b"", NOW + 60)
    assert retired.is_published
    for at in (0, NOW):
        gone = signing_key.gone(retired, revoked_at=at)
        assert (gone.state, gone.wrapped, gone.revoked_at, gone.is_published) == (KeyState.GONE, b"", at, False)
        assert (gone.kid, gone.purpose, gone.public_key) == (key.kid, key.purpose, key.public_key)
    assert signing_key.gone(key).revoked_at == 0
    assert signing_key.gone(key).wrapped == b""


def test_no_part_of_a_message_is_taken_for_the_end_of_its_signature() -> None:
    signer, message = Ed25519Signer(b"k" * 32), b"what was signed"
    signature = signer.sign(message)
    assert jws.is_signature(signature, message, signer.public_key)
    assert not jws.is_signature(signature + message[:1], message[1:], signer.public_key)
    assert not jws.is_signature(signature[:-1], signature[-1:] + message, signer.public_key)
    assert not jws.is_signature(signature, message, signer.public_key[:-1])


def test_a_nonce_of_a_clock_that_is_ahead_is_fresh_for_less_than_a_second() -> None:
    key = b"k" * 32
    nonce = challenge.mint(key, NOW, bytes(11))
    assert challenge.verify(key, nonce, NOW - 0.9).hex() == nonce
    for before in (1, 1.5):
        with pytest.raises(InvalidChallenge, match="fresh"):
            challenge.verify(key, nonce, NOW - before)


def test_no_more_is_forgotten_at_once_than_is_asked_for() -> None:
    index = RevocationIndex()
    index.add(entry(RevocationKind.GRANT, f"sid-{number}", NOW, NOW + 1 + number % 2) for number in range(10))
    assert [(index.forget(NOW + 2, limit=3), len(index)) for _ in range(5)] == [(3, 7), (3, 4), (3, 1), (1, 0), (0, 0)]
