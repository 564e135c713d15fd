"""Nonces that authenticate themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import challenge
from agentwrit.domain.errors import InvalidChallenge

KEY = b"k" * 32
NOW = 1_800_000_000.5
NONCE = challenge.mint(KEY, NOW, bytes(range(11)))

keys = st.binary(min_size=32, max_size=32)
moments = st.integers(0, 2**32 - 1)
randoms = st.binary(min_size=11, max_size=11)


@given(keys, moments, randoms, st.integers(0, challenge.LIFETIME_SECONDS - 1))
def test_a_fresh_nonce_is_ours(key: bytes, now: int, random: bytes, age: int) -> None:
    nonce = challenge.mint(key, now, random)
    assert challenge.verify(key, nonce, now + age) == bytes.fromhex(nonce)


def test_a_nonce_is_laid_out_as_version_time_random_and_tag() -> None:
    assert NONCE.startswith("01" + f"{int(NOW):08x}" + bytes(range(11)).hex())
    assert len(NONCE) == 64
    assert NONCE.lower() == NONCE


@pytest.mark.parametrize("at", range(32))
@given(st.integers(1, 255))
def test_a_nonce_with_any_one_byte_changed_is_refused(at: int, difference: int) -> None:
    raw = bytearray.fromhex(NONCE)
    raw[at] ^= difference
    with pytest.raises(InvalidChallenge, match="not ours"):
        challenge.verify(KEY, raw.hex(), NOW)


@pytest.mark.parametrize(
    "nonce",
    ["", NONCE[:-1], NONCE + "0", NONCE.upper(), "0x" + NONCE[2:], " " + NONCE[1:], NONCE + "\n", "０" + NONCE[1:]],
)
def test_another_spelling_is_refused(nonce: str) -> None:
    with pytest.raises(InvalidChallenge, match="hex"):
        challenge.verify(KEY, nonce, NOW)


def test_a_nonce_by_another_key_is_refused() -> None:
    with pytest.raises(InvalidChallenge, match="not ours"):
        challenge.verify(b"K" * 32, NONCE, NOW)


def test_a_nonce_is_fresh_for_thirty_seconds() -> None:
    minted = int(NOW)
    challenge.verify(KEY, NONCE, minted + 29.999)
    with pytest.raises(InvalidChallenge, match="fresh"):
        challenge.verify(KEY, NONCE, minted + 30)


def test_a_nonce_from_the_future_is_refused() -> None:
    with pytest.raises(InvalidChallenge, match="fresh"):
        challenge.verify(KEY, NONCE, NOW - 10)


@given(moments, st.floats(0, 60))
def test_a_used_nonce_is_remembered_for_as_long_as_it_is_fresh(minted: int, age: float) -> None:
    nonce = challenge.mint(KEY, minted, bytes(11))
    is_forgotten = challenge.expires_at(bytes.fromhex(nonce)) <= minted + age
    if is_forgotten:
        with pytest.raises(InvalidChallenge):
            challenge.verify(KEY, nonce, minted + age)


def test_nonces_of_one_second_differ_by_their_random_part() -> None:
    assert challenge.mint(KEY, NOW, bytes(11)) != challenge.mint(KEY, NOW, bytes(10) + b"\1")
