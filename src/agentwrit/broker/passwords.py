"""Passwords, which only the operator has: argon2id (RFC 9106), off the event loop and few at a time."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from agentwrit.domain.errors import Unavailable

AT_ONCE: Final = 2
WAITING: Final = 2

# OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes, one lane.
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


def hash_password(password: str) -> str:
    """The PHC form (`$argon2id$…`) that a password is stored in."""
    return _HASHER.hash(password)


def is_password_hash(text: str) -> bool:
    """Whether `text` is an argon2id hash in PHC form."""
    try:
        return argon2.extract_parameters(text).type is argon2.Type.ID
    except InvalidHashError:
        return False


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
        if self._busy >= AT_ONCE + WAITING:
            raise Unavailable("too many logins at the same time")
        self._busy += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, matches, password_hash, password)
        finally:
            self._busy -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
