"""Turns at the store for those who look around in it: at the log and what proves it, at agents, and at the feed.

Some such questions take a second, and whoever asks can ask a great many. The store reads with a few threads, and an
operator's login and the broker's health need one as well. So the rules are:

- So few look around at a time that one thread is left for the feed, one for operators, and one for all else.
- Each asker, an app or an address prefix, has one question under way; the others of theirs wait, and so many may.
- Askers take turns, and operators come before all others.
- Where too many wait, room is made at the asker of whom most do. Operators are not among them.
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

AT_ONCE: Final = 3
OTHERS_AT_ONCE: Final = 2  # who are no operators
FEED_AT_ONCE: Final = 1  # page of the feed that is made for somebody; most are shared
WAITING: Final = 128  # of one asker
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
    """Whose turn it is, where there are so many at once."""

    def __init__(self, at_once: int = AT_ONCE, others_at_once: int = OTHERS_AT_ONCE) -> None:
        self._at_once = at_once
        self._others_at_once = others_at_once
        self._under_way: Counter[Asker] = Counter()
        self._others = 0  # of these
        self._queues: OrderedDict[Asker, deque[asyncio.Future[None]]] = OrderedDict()
        self._waiting = 0  # of those who are no operators

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
        if self._under_way.total() >= self._at_once:
            return False
        return asker.is_operator or (self._others < self._others_at_once and not self._under_way[asker])

    def _begin(self, asker: Asker) -> None:
        self._under_way[asker] += 1
        self._others += not asker.is_operator

    def _end(self, asker: Asker) -> None:
        self._under_way[asker] -= 1
        self._others -= not asker.is_operator
        self._under_way = +self._under_way
        self._call_next()

    async def _wait(self, asker: Asker) -> None:
        count = len(self._queues.get(asker, ()))
        if count >= WAITING or (self._waiting >= MAX_WAITING and not asker.is_operator and not self._make_room(count)):
            raise _too_many()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(asker, deque()).append(turn)
        self._waiting += not asker.is_operator
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end(asker)  # it was theirs just now
            else:
                self._take(asker, turn)
            raise

    def _make_room(self, count: int) -> bool:
        """Turn somebody away for an asker of whom `count` wait, if more do of another."""
        others = [each for each in self._queues if not each.is_operator]
        greediest = max(others, key=lambda each: len(self._queues[each]))
        last = self._queues[greediest][-1]
        if len(self._queues[greediest]) <= count + 1:
            return False
        self._take(greediest, last)
        if not last.done():
            last.set_exception(_too_many())
        return True

    def _take(self, asker: Asker, turn: asyncio.Future[None]) -> None:
        """Take somebody out of their queue, if they are still there."""
        queue = self._queues.get(asker, deque())
        if turn in queue:
            queue.remove(turn)
            self._waiting -= not asker.is_operator
            if not queue:
                del self._queues[asker]

    def _call_next(self) -> None:
        """Let those begin who may: operators first, and who has waited longest for a turn of theirs."""
        for asker in sorted(self._queues, key=lambda each: not each.is_operator):
            if self._under_way.total() >= self._at_once:
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


def _too_many() -> Unavailable:
    return Unavailable("too many look around in the store at the same time", cause="busy")
