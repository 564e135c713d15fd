"""Launch tokens: for how long, and how often."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain.launch_token import fingerprint, used
from tests.domain.records import NOW, make_launch_token


def test_a_launch_token_lives_until_it_expires() -> None:
    assert make_launch_token().is_usable(NOW + 29.9)
    assert not make_launch_token().is_usable(NOW + 30)


@pytest.mark.parametrize("max_uses", [1, 2, 5])
def test_a_launch_token_is_used_as_often_as_its_policy_says(max_uses: int) -> None:
    token, uses = make_launch_token(max_uses=max_uses), 0
    while token.is_usable(NOW) and uses < 10:
        token, uses = used(token), uses + 1
    assert uses == max_uses


def test_one_without_a_limit_is_used_for_as_long_as_it_lives() -> None:
    token = make_launch_token(max_uses=0, uses=10**6)
    assert token.is_usable(NOW)
    assert not token.is_usable(NOW + 30)


def test_use_changes_the_count_and_nothing_else() -> None:
    assert used(make_launch_token(uses=1, max_uses=3)) == make_launch_token(uses=2, max_uses=3)


@given(st.text(max_size=70))
def test_any_text_has_a_fingerprint_and_is_not_in_it(text: str) -> None:
    assert len(fingerprint(text)) == 32


def test_a_fingerprint_is_the_sha_256_of_the_secrets_characters() -> None:
    assert fingerprint("ab" * 32) == hashlib.sha256(b"ab" * 32).digest()
    assert len(fingerprint("\ud800")) == 32
