"""Turns at the store for those who look around in it: at the log and what proves it, and at agents.

One such question may take a second, and whoever asks can ask a great many. The store reads with a few threads, and an
operator's login, the feed and the broker's health need one as well. So the rules are:

- So few look around at a time that one thread is left for all else, and one more for operators.
- Each asker, an app or an address prefix, has one question under way; the others of theirs wait, and so many may.
- Askers take turns, and operators come before all others.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator
from typing import Final, NamedTuple, Self

from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller
from agentwrit.domain.errors import Unavailable
from agentwrit.domain.grant import GrantKind

AT_ONCE: Final = 3  # of the four threads that each store reads with
OTHERS_AT_ONCE: Final = 2  # who are no operators
WAITING: Final = 32  # of one asker
MAX_WAITING: Final = 1024


class Asker(NamedTuple):
    """Who asks. `name`: the principal of an operator, the client id of an app or the address prefix of a stranger."""

    name: str
    is_operator: bool = False

    @classmethod
    def who(cls, principal: Principal) -> Self:
        """Whoever showed a token: an app is one asker with all its tokens."""
        if principal.kind is GrantKind.OPERATOR:
            return cls(principal.name, is_operator=True)
        return cls(principal.claims.client_id)

    @classmethod
    def stranger(cls, caller: Caller) -> Self:
        return cls(caller.network)


class Turns:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._under_way: Counter[Asker] = Counter()
        self._others = 0  # of these
        self._queues: OrderedDict[Asker, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self, asker: Asker) -> AsyncGenerator[None]:
        """Wait for a turn, and have it.

        Raises:
            Unavailable: too many wait already.
        """
        if asker not in self._queues and self._may_begin(asker):
            self._begin(asker)
        else:
            await self._wait(asker)
        try:
            yield
        finally:
            self._end(asker)

    def _may_begin(self, asker: Asker) -> bool:
        if self._under_way.total() >= AT_ONCE:
            return False
        return asker.is_operator or (self._others < OTHERS_AT_ONCE and not self._under_way[asker])

    def _begin(self, asker: Asker) -> None:
        self._under_way[asker] += 1
        self._others += not asker.is_operator

    def _end(self, asker: Asker) -> None:
        self._under_way[asker] -= 1
        self._others -= not asker.is_operator
        self._under_way = +self._under_way
        self._call_next()

    async def _wait(self, asker: Asker) -> None:
        queue = self._queues.get(asker, ())
        if len(queue) >= WAITING or self._waiting >= MAX_WAITING:
            raise Unavailable("too many look around in the store at the same time", cause="busy")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(asker, deque()).append(turn)
        self._waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end(asker)  # it was theirs just now
            else:
                self._take(asker, turn)
            raise

    def _take(self, asker: Asker, turn: asyncio.Future[None]) -> None:
        """Take somebody out of their queue, if they are still there."""
        queue = self._queues.get(asker, deque())
        if turn in queue:
            queue.remove(turn)
            self._waiting -= 1
            if not queue:
                del self._queues[asker]

    def _call_next(self) -> None:
        """Let those begin who may: operators first, and who has waited longest for a turn of theirs."""
        for asker in sorted(self._queues, key=lambda each: not each.is_operator):
            if self._under_way.total() >= AT_ONCE:
                return
            if self._may_begin(asker):
                self._call(asker)

    def _call(self, asker: Asker) -> None:
        self._queues.move_to_end(asker)
        for turn in list(self._queues[asker]):
            self._take(asker, turn)
            if not turn.done():  # else they gave up just now
                self._begin(asker)
                turn.set_result(None)
                return
