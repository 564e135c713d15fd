"""Passwords: what a failed check costs, whoever it is against."""

from argon2 import PasswordHasher

from agentwrit.broker import passwords


def test_checking_against_nobody_costs_what_checking_against_somebody_does() -> None:
    nobody = passwords.unmatched_hash()
    assert passwords.is_password_hash(nobody)
    assert passwords.is_of_our_cost(nobody)
    assert passwords.is_of_our_cost(passwords.hash_password("a secret"))
    assert not passwords.matches(nobody, "")
    assert nobody != passwords.unmatched_hash()


def test_a_hash_of_another_cost_is_told() -> None:
    for other in (
        PasswordHasher(time_cost=1, memory_cost=19 * 1024, parallelism=1),
        PasswordHasher(time_cost=2, memory_cost=8, parallelism=1),
        PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=2),
        PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1, hash_len=16),
    ):
        hashed = other.hash("a secret")
        assert passwords.is_password_hash(hashed)
        assert not passwords.is_of_our_cost(hashed)
