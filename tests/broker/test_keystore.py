"""Keys at rest: wrapped, bound to what they are, and shown to nobody."""

import asyncio
import base64
import pickle

import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.broker.clock import Clock
from agentwrit.broker.keystore import SIGNED_REMEMBERED, KeyWrap, MasterKey, SigningKeys, new_seed
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.storage.base import EventQuery
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.domain import audit, base64url, jws
from agentwrit.domain.errors import ConfigurationError, InvalidToken, TamperedRecord
from agentwrit.domain.signing_key import KeyPurpose, KeyState
from tests.domain.records import NOW

MASTER = MasterKey.parse("5a" * 32)
WRAP = KeyWrap(MASTER)
SEED = bytes(range(32))
STORED = WRAP.wrap(SEED, purpose=KeyPurpose.ACCESS_TOKEN, state=KeyState.ACTIVE, created_at=NOW)


@pytest.mark.parametrize("text", ["5a" * 32, "5A" * 32, base64.b64encode(b"Z" * 32).decode()])
def test_a_master_key_is_taken_in_hex_and_base64(text: str) -> None:
    assert MasterKey.parse(text) == MASTER


@pytest.mark.parametrize("text", ["", "5a" * 31, "5a" * 33, "not a key", "ä" * 32, "5a" * 31 + "5 ", "Wg==", "=" * 44])
def test_what_is_no_master_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigurationError, match="AGENTWRIT_MASTER_KEY") as refusal:
        MasterKey.parse(text)
    assert not text or text not in str(refusal.value)


def test_a_master_key_is_neither_shown_nor_pickled() -> None:
    assert "Z" * 32 not in repr(MASTER)
    assert "5a" * 8 not in repr(MASTER)
    with pytest.raises(TypeError):
        pickle.dumps(MASTER)


def test_keys_of_different_purposes_differ() -> None:
    derived = [MASTER.derive(purpose) for purpose in ("row-mac", "nonce", "key-wrap")]
    assert len(set(derived)) == 3
    assert MASTER.derive("nonce") == MasterKey.parse("5a" * 32).derive("nonce")
    assert MasterKey.parse("5b" * 32).derive("nonce") != MASTER.derive("nonce")


def test_a_wrapped_key_is_opened_as_it_was() -> None:
    signer = WRAP.unwrap(STORED)
    assert signer.kid == STORED.kid
    assert signer.public_key == STORED.public_key == jws.Ed25519Signer(SEED).public_key
    assert SEED not in STORED.wrapped


def test_a_key_is_wrapped_differently_each_time() -> None:
    assert (
        WRAP.wrap(SEED, purpose=KeyPurpose.ACCESS_TOKEN, state=KeyState.ACTIVE, created_at=NOW).wrapped
        != STORED.wrapped
    )


@given(st.integers(0, len(STORED.wrapped) - 1), st.integers(1, 255))
def test_a_wrapped_key_with_any_one_byte_changed_is_refused(at: int, difference: int) -> None:
    wrapped = bytearray(STORED.wrapped)
    wrapped[at] ^= difference
    with pytest.raises(TamperedRecord):
        WRAP.unwrap(msgspec.structs.replace(STORED, wrapped=bytes(wrapped)))


@pytest.mark.parametrize("length", [0, 5, 12, 20, 28, 59])
def test_a_wrapped_key_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(TamperedRecord):
        WRAP.unwrap(msgspec.structs.replace(STORED, wrapped=STORED.wrapped[:length]))


def test_a_retired_key_cannot_be_made_active_again_by_its_record() -> None:
    retired = WRAP.wrap(SEED, purpose=KeyPurpose.ACCESS_TOKEN, state=KeyState.RETIRED, created_at=NOW)
    with pytest.raises(TamperedRecord):
        WRAP.unwrap(msgspec.structs.replace(retired, state=KeyState.ACTIVE))


def test_a_key_of_one_purpose_signs_nothing_of_another() -> None:
    for purpose in set(KeyPurpose) - {STORED.purpose}:
        with pytest.raises(TamperedRecord):
            WRAP.unwrap(msgspec.structs.replace(STORED, purpose=purpose))


def test_a_key_is_not_opened_under_another_name_or_another_master_key() -> None:
    other = WRAP.wrap(bytes(32), purpose=KeyPurpose.ACCESS_TOKEN, state=KeyState.ACTIVE, created_at=NOW)
    with pytest.raises(TamperedRecord):
        WRAP.unwrap(msgspec.structs.replace(STORED, kid=other.kid))
    with pytest.raises(TamperedRecord, match=STORED.kid):
        KeyWrap(MasterKey.parse("5b" * 32)).unwrap(STORED)


def test_the_first_start_makes_an_active_and_a_next_key_for_each_purpose_and_later_starts_use_them() -> None:
    async def start_twice() -> None:
        store = MemoryStore(Clock())
        first = await KeyRings.load(store, WRAP)
        second = await KeyRings.load(store, WRAP)
        for one, other in (
            (first.access_tokens, second.access_tokens),
            (first.feed, second.feed),
            (first.checkpoints, second.checkpoints),
        ):
            assert one.signer.kid == other.signer.kid
            assert one.jwks == other.jwks
            assert len(one.jwks["keys"]) == 2
        events = await store.read(lambda snapshot: snapshot.events(EventQuery()))
        assert [event.event_type for event in events] == ["signing_key_created"] * 6
        assert events[0].data == {"kid": first.access_tokens.signer.kid, "purpose": "access_token"}
        assert audit.verify(events) == 6

    asyncio.run(start_twice())


def test_the_published_keys_verify_what_the_signer_signs() -> None:
    keys = SigningKeys(KeyPurpose.ACCESS_TOKEN, [STORED], WRAP)
    token = jws.sign(b'{"sub":"x"}', keys.signer, typ=jws.ACCESS_TOKEN)
    [published] = keys.jwks["keys"]
    assert jwt.PyJWS().decode(token, jwt.PyJWK(dict(published)), algorithms=["EdDSA"]) == b'{"sub":"x"}'
    assert base64url.decode(published["x"]) == STORED.public_key
    assert keys.verifier.verify(token)[0] == published["kid"]


def test_a_retired_key_verifies_and_one_that_is_gone_does_not() -> None:
    retired = WRAP.wrap(bytes(32), purpose=KeyPurpose.ACCESS_TOKEN, state=KeyState.RETIRED, created_at=NOW)
    gone = WRAP.wrap(b"g" * 32, purpose=KeyPurpose.ACCESS_TOKEN, state=KeyState.GONE, created_at=NOW)
    keys = SigningKeys(KeyPurpose.ACCESS_TOKEN, [STORED, retired, gone], WRAP)
    assert keys.signer.kid == STORED.kid
    assert [key["kid"] for key in keys.jwks["keys"]] == [STORED.kid, retired.kid]
    keys.verifier.verify(jws.sign(b"{}", jws.Ed25519Signer(bytes(32)), typ=jws.ACCESS_TOKEN))
    with pytest.raises(InvalidToken):
        keys.verifier.verify(jws.sign(b"{}", jws.Ed25519Signer(b"g" * 32), typ=jws.ACCESS_TOKEN))


def test_what_was_signed_here_of_late_is_genuine_without_another_look_at_its_signature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = SigningKeys(KeyPurpose.ACCESS_TOKEN, [STORED], WRAP)
    forgotten, *remembered = [keys.sign(b"%d" % number) for number in range(SIGNED_REMEMBERED + 1)]
    assert forgotten == jws.sign(b"0", keys.signer, typ=jws.ACCESS_TOKEN)
    looks: list[bytes] = []

    def is_signature(signature: bytes, message: bytes, public_key: bytes) -> bool:
        looks.append(message)
        return False

    monkeypatch.setattr(jws, "is_signature", is_signature)
    assert [keys.verifier.verify(token) for token in remembered] == [
        (STORED.kid, b"%d" % number) for number in range(1, SIGNED_REMEMBERED + 1)
    ]
    assert looks == []
    last = remembered[-1]
    altered = f"{last[:-6]}AAAAAA"
    for token in (forgotten, altered):
        with pytest.raises(InvalidToken):
            keys.verifier.verify(token)
    assert looks == [text.rpartition(".")[0].encode() for text in (forgotten, altered)]


def test_what_was_signed_here_is_genuine_no_more_when_its_key_is_gone() -> None:
    keys = SigningKeys(KeyPurpose.ACCESS_TOKEN, [STORED], WRAP)
    token = keys.sign(b"{}")
    other = WRAP.wrap(bytes(32), purpose=KeyPurpose.ACCESS_TOKEN, state=KeyState.ACTIVE, created_at=NOW)
    retired = msgspec.structs.replace(STORED, state=KeyState.RETIRED)
    keys.replace([other, retired])
    assert keys.verifier.verify(token) == (STORED.kid, b"{}")
    keys.replace([other])
    with pytest.raises(InvalidToken):
        keys.verifier.verify(token)


def test_no_kid_can_be_taken_for_an_option() -> None:
    assert not any(jws.Ed25519Signer(new_seed()).kid.startswith("-") for _ in range(1000))
