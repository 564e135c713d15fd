"""Passwords: what a failed check costs, whoever it is against, and who waits for whom."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from argon2 import PasswordHasher

from agentwrit.broker import passwords
from agentwrit.broker.passwords import AT_ONCE, MAX_STRANGERS_WAITING, WAITING, PasswordChecker
from agentwrit.domain.errors import Unavailable


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


class Queue:
    """Logins that are being checked, in the order in which they were."""

    def __init__(self) -> None:
        self.checker = PasswordChecker()
        self.unmatched = passwords.unmatched_hash()
        self.checked: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, *networks: str) -> None:
        """Let a login come from each of these, and wait until all of them wait."""
        self.tasks += [asyncio.create_task(self._check(network)) for network in networks]
        await asyncio.sleep(0)

    async def _check(self, network: str) -> None:
        await self.checker.matches(self.unmatched, "guess", network)
        self.checked.append(network)

    async def until(self, network: str) -> None:
        while network not in self.checked:
            await asyncio.wait({task for task in self.tasks if not task.done()}, return_when=asyncio.FIRST_COMPLETED)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.checker.close()


def run(claim: Callable[[Queue], Awaitable[None]]) -> None:
    async def main() -> None:
        queue = Queue()
        try:
            await claim(queue)
        finally:
            await queue.end()

    asyncio.run(main())


STRANGERS = [f"198.51.100.{number}" for number in range(40)]


def test_an_operator_who_was_there_before_waits_for_a_stranger_or_two() -> None:
    async def claim(queue: Queue) -> None:
        queue.checker.make_familiar("192.0.2.1")
        await queue.come(*STRANGERS * WAITING)
        await queue.come("192.0.2.1")
        await queue.until("192.0.2.1")
        assert len(queue.checked) <= 2 * AT_ONCE + 1

    run(claim)


def test_who_comes_from_elsewhere_waits_for_one_login_of_each_other_address() -> None:
    async def claim(queue: Queue) -> None:
        await queue.come(*STRANGERS[:5] * WAITING)
        await queue.come("203.0.113.9")
        await queue.until("203.0.113.9")
        assert len(queue.checked) <= AT_ONCE + 5 + 1 + AT_ONCE

    run(claim)


def test_strangers_who_know_where_operators_log_in_from_do_not_keep_all_others_out() -> None:
    async def claim(queue: Queue) -> None:
        for network in STRANGERS:
            queue.checker.make_familiar(network)
        await queue.come(*STRANGERS * WAITING)
        await queue.come("203.0.113.9")
        await queue.until("203.0.113.9")
        assert len(queue.checked) <= 2 * AT_ONCE + 1

    run(claim)


def test_only_so_many_wait_at_one_address_and_in_all() -> None:
    async def claim(queue: Queue) -> None:
        await queue.come(*["192.0.2.1"] * (AT_ONCE + WAITING))
        with pytest.raises(Unavailable):
            await queue.checker.matches(queue.unmatched, "guess", "192.0.2.1")
        strangers = [f"network {number}" for number in range(MAX_STRANGERS_WAITING - WAITING)]
        await queue.come(*strangers)
        with pytest.raises(Unavailable):
            await queue.checker.matches(queue.unmatched, "guess", "203.0.113.9")
        queue.checker.make_familiar("203.0.113.9")
        await queue.come("203.0.113.9")
        await queue.until("203.0.113.9")

    run(claim)


def test_who_gives_up_leaves_the_place_to_others() -> None:
    async def claim(queue: Queue) -> None:
        for _ in range(3):
            await queue.come(*STRANGERS * WAITING)
            for task in queue.tasks:
                task.cancel()
            await asyncio.gather(*queue.tasks, return_exceptions=True)
        await queue.come("203.0.113.9")
        await queue.until("203.0.113.9")
        assert queue.checker._busy == 0
        assert queue.checker._strangers_waiting._count == 0

    run(claim)
