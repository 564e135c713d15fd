"""Passwords, which only operators have: argon2id (RFC 9106), off the event loop and few at a time."""

import asyncio
import base64
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from agentwrit.domain.errors import Unavailable

T = TypeVar("T")

AT_ONCE: Final = 2
WAITING: Final = 2

# OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes, one lane.
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
COST: Final = f"m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}"


def hash_password(password: str) -> str:
    """The PHC form (`$argon2id$…`) that a password is stored in."""
    return _HASHER.hash(password)


def is_password_hash(text: str) -> bool:
    """Whether `text` is an argon2id hash in PHC form."""
    try:
        return argon2.extract_parameters(text).type is argon2.Type.ID
    except InvalidHashError:
        return False


def is_of_our_cost(password_hash: str) -> bool:
    """Whether checking a password against this argon2id hash takes what it takes against one of ours."""
    return argon2.extract_parameters(password_hash) == argon2.extract_parameters(unmatched_hash())


def unmatched_hash() -> str:
    """A hash of our cost that no known password has. Making it costs nothing."""
    parts = (base64.b64encode(os.urandom(size)).decode("ascii").rstrip("=") for size in (16, 32))
    return f"$argon2id$v=19${COST}${'$'.join(parts)}"


def matches(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


class PasswordChecker:
    """Checks passwords: `AT_ONCE` at the same time, as many again wait, and the rest are turned away.

    Each check takes 19 MiB and tens of milliseconds, and strangers can ask for it.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "argon2")
        self._busy = 0

    async def matches(self, password_hash: str, password: str) -> bool:
        """Whether this is the password.

        Raises:
            Unavailable: too many checks wait already.
        """
        return await self._run(matches, password_hash, password)

    async def hash(self, password: str) -> str:
        """The form that a password is stored in.

        Raises:
            Unavailable: too many checks wait already.
        """
        return await self._run(hash_password, password)

    async def _run(self, work: Callable[..., T], *arguments: str) -> T:
        if self._busy >= AT_ONCE + WAITING:
            raise Unavailable("too many logins at the same time")
        self._busy += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._busy -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
