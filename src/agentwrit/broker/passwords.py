"""Passwords, which only operators have: argon2id (RFC 9106), off the event loop and a few at a time."""

import asyncio
import base64
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from agentwrit.domain.errors import Unavailable

T = TypeVar("T")

AT_ONCE: Final = 2
WAITING: Final = 2  # for each address prefix
MAX_STRANGERS_WAITING: Final = 128
MAX_FAMILIAR: Final = 256  # prefixes that are remembered as operators'

_OPERATORS: Final = "operators"  # the queue of operators who have logged in; no address prefix has this name

# OWASP Password Storage Cheat Sheet: argon2id with 19 MiB, two passes, one lane.
_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
COST: Final = f"m={_HASHER.memory_cost},t={_HASHER.time_cost},p={_HASHER.parallelism}"


def hash_password(password: str) -> str:
    """The PHC form (`$argon2id$…`) in which a password is stored."""
    return _HASHER.hash(password)


def is_password_hash(text: str) -> bool:
    """Whether `text` is an argon2id hash in PHC form."""
    try:
        return argon2.extract_parameters(text).type is argon2.Type.ID
    except InvalidHashError:
        return False


def is_of_our_cost(password_hash: str) -> bool:
    """Whether checking a password against this argon2id hash costs as much as against the broker's own hashes."""
    return argon2.extract_parameters(password_hash) == argon2.extract_parameters(unmatched_hash())


def unmatched_hash() -> str:
    """A hash of the broker's cost that no known password has. Creating it costs nothing."""
    parts = (base64.b64encode(os.urandom(size)).decode("ascii").rstrip("=") for size in (16, 32))
    return f"$argon2id$v=19${COST}${'$'.join(parts)}"


def matches(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


class TooManyLogins(Unavailable):
    """Too many passwords are waiting to be checked."""

    def __init__(self) -> None:
        super().__init__("too many logins at the same time")


class _Lane:
    """Waiting logins, by address prefix: each prefix gets its turn, however many wait in it."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._count = 0

    def enter(self, network: str) -> asyncio.Future[None]:
        """Wait. The returned future is set when it is this login's turn.

        Raises:
            TooManyLogins: there is no place.
        """
        queue = self._queues.get(network, ())
        if self._count >= self._places or len(queue) >= WAITING:
            raise TooManyLogins
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(network, deque()).append(turn)
        self._count += 1
        return turn

    def leave(self, network: str, turn: asyncio.Future[None]) -> None:
        """Stop waiting, if still waiting."""
        queue = self._queues.get(network)
        if queue is not None and turn in queue:
            queue.remove(turn)
            self._left(network, queue)

    def call_next(self) -> bool:
        """Give the next login its turn. Returns whether one was waiting."""
        while self._queues:
            network, queue = next(iter(self._queues.items()))
            turn = queue.popleft()
            self._queues.move_to_end(network)
            self._left(network, queue)
            if not turn.done():  # otherwise it has just given up
                turn.set_result(None)
                return True
        return False

    def _left(self, network: str, queue: "deque[asyncio.Future[None]]") -> None:
        self._count -= 1
        if not queue:
            del self._queues[network]


class PasswordChecker:
    """Checks passwords: `AT_ONCE` at a time. Others wait for their turn, or are refused.

    Each check takes 19 MiB and tens of milliseconds, and anonymous clients can request it from as many addresses as
    they have. So turns alternate between address prefixes, however many logins wait in each, and every second turn is
    for prefixes from which an operator has logged in before. There an operator waits for one or two anonymous clients,
    not for all of them.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "argon2")
        self._busy = 0
        self._familiar: OrderedDict[str, None] = OrderedDict()
        self._known_waiting = _Lane(WAITING * MAX_FAMILIAR)
        self._strangers_waiting = _Lane(MAX_STRANGERS_WAITING)
        self._is_strangers_turn = False

    async def matches(self, password_hash: str, password: str, network: str) -> bool:
        """Whether this is the password. `network`: the caller's address prefix.

        Raises:
            TooManyLogins: too many are already waiting.
        """
        return await self._run(network, matches, password_hash, password)

    async def hash(self, password: str) -> str:
        """The form in which a password is stored, for an operator who has logged in.

        Raises:
            TooManyLogins: too many are already waiting.
        """
        return await self._run(_OPERATORS, hash_password, password)

    def make_familiar(self, network: str) -> None:
        """Remember that a right password came from this address prefix."""
        self._familiar[network] = None
        self._familiar.move_to_end(network)
        if len(self._familiar) > MAX_FAMILIAR:
            self._familiar.popitem(last=False)

    async def _run(self, network: str, work: Callable[..., T], *arguments: str) -> T:
        await self._turn(network)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._call_next()

    async def _turn(self, network: str) -> None:
        if self._busy < AT_ONCE:
            self._busy += 1
            return
        is_known = network in self._familiar or network == _OPERATORS
        lane = self._known_waiting if is_known else self._strangers_waiting
        turn = lane.enter(network)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._call_next()  # it had just got its turn
            else:
                lane.leave(network, turn)
            raise

    def _call_next(self) -> None:
        lanes = self._strangers_waiting, self._known_waiting
        self._is_strangers_turn = not self._is_strangers_turn
        if not any(lane.call_next() for lane in (lanes if self._is_strangers_turn else reversed(lanes))):
            self._busy -= 1

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
