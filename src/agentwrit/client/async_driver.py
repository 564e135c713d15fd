"""The asynchronous driver: carries out calls on an event loop.

Connections, locks and tasks belong to the loop that they were made on, so each loop has a `_Home` of its own, which
ends with it: by `aclose`, or at the latest when the loop lets go of its asynchronous generators.

httpx2 slows down with the number of calls that wait inside it, so they wait outside, in the order they came. That does
not count towards a call's timeout as long as the broker answers others.
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from agentwrit.client.event_stream import AsyncEventStream
from agentwrit.client.exchange import HttpRequest, HttpResponse, Plan, Turn
from agentwrit.client.policy import Calling, Login, Policy, Send, Take, Wait
from agentwrit.errors import AgentWritError

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

CALLS_AT_ONCE: Final = 16


class _Home:
    """What a driver has on one event loop."""

    def __init__(self, client: "httpx2.AsyncClient", *, owns_client: bool) -> None:
        self.client = client
        self.slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self.turns: weakref.WeakKeyDictionary[Turn, asyncio.Lock] = weakref.WeakKeyDictionary()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.heard_at = float("-inf")  # of the broker, by whichever call
        self._owns_client = owns_client
        self._stay = self._until_the_end()

    async def settle(self) -> None:
        """Tie this to the loop. Its end calls `leave` where nobody else did."""
        await anext(self._stay)

    async def leave(self) -> None:
        """Let what is under way come to its end, and close the connections."""
        await self._stay.aclose()

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self.tasks:
                await asyncio.wait(self.tasks)
            if self._owns_client:
                await self.client.aclose()


class AsyncDriver(Policy):
    """Runs steps against one broker, for the tasks of one event loop after another.

    `timeout`: seconds for a whole call.
    """

    def __init__(
        self,
        broker_url: str,
        *,
        timeout: float,
        user_agent: str | None = None,
        login: Login | None = None,
        http_client: "httpx2.AsyncClient | None" = None,
        verify: Any = None,
        cert: Any = None,
    ) -> None:
        super().__init__(broker_url, timeout=timeout, user_agent=user_agent, login=login, verify=verify, cert=cert)
        self._given_client = http_client
        self._homes: dict[asyncio.AbstractEventLoop, _Home] = {}

    async def run(self, steps: Plan[T], *, timeout: float | None = None) -> T:
        """Carry out steps within the timeout, or within `timeout` seconds.

        Raises:
            TransportError: the broker was not reached in time.
            AgentWritError: what the steps raise.
        """
        home = await self._home()
        await self._enter(home)
        try:
            return await self._carry_out(self.calling(steps, self.deadline(timeout)), home)
        finally:
            home.slots.release()

    async def run_through(self, steps: Plan[T]) -> T:
        """The same in a task of its own, which goes on to its end when the caller is cancelled."""
        return await asyncio.shield(await self._start(self.run(steps)))

    async def run_to_the_end(self, steps: Plan[T]) -> T:
        """The same, and the caller stays until it is done: a cancellation takes effect after it."""
        task = await self._start(self.run(steps))
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return task.result()

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Make one request, once.

        Raises:
            TransportError: the broker was not reached in time.
        """
        return await self._send(request, self.deadline(), await self._home())

    async def event_stream(self, *, silence: float) -> AsyncEventStream:
        """Something to open streams of events with, over the connections of this driver on this loop."""
        return AsyncEventStream((await self._home()).client, silence=silence)

    async def aclose(self) -> None:
        """Close the connections that were made on this loop. A later call opens new ones."""
        home = self._homes.pop(asyncio.get_running_loop(), None)
        if home is not None:
            await home.leave()

    async def _home(self) -> _Home:
        loop = asyncio.get_running_loop()
        home = self._homes.get(loop)
        if home is None:
            for other in [other for other in self._homes if other.is_closed()]:
                del self._homes[other]
            home = self._homes[loop] = _Home(self._client(), owns_client=self._given_client is None)
            await home.settle()  # at once: nothing else runs meanwhile
        self.check_open(home.client)
        return home

    def _client(self) -> "httpx2.AsyncClient":
        import httpx2  # here, so that importing the SDK does not pay for it

        # One connection more for each stream of events.
        return self._given_client or httpx2.AsyncClient(**self.client_options(2 * CALLS_AT_ONCE))

    async def _enter(self, home: _Home) -> None:
        """Wait for a slot, as long as the broker answers those who have one."""
        entered = self._monotonic()
        while True:
            silent_since = max(entered, home.heard_at)
            try:
                async with asyncio.timeout(self.remaining(silent_since + self._timeout)):
                    await home.slots.acquire()
            except TimeoutError:
                continue
            return

    async def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        home = await self._home()
        task = asyncio.get_running_loop().create_task(work)
        home.tasks.add(task)
        task.add_done_callback(home.tasks.discard)
        task.add_done_callback(_look_at)
        return task

    async def _carry_out(self, calling: Calling[T], home: _Home) -> T:
        try:
            needed = next(calling)
            while True:
                try:
                    answer = await self._answer_to(needed, home)
                except AgentWritError as error:
                    needed = calling.throw(error)
                else:
                    needed = calling.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            calling.close()

    async def _answer_to(self, needed: Send | Wait | Take, home: _Home) -> object:
        match needed:
            case Send():
                return await self._send(needed.request, needed.deadline, home)
            case Wait():
                await asyncio.sleep(needed.seconds)
                return None
            case Take():
                async with home.turns.setdefault(needed.turn, asyncio.Lock()):
                    return await self._carry_out(needed.calling, home)

    async def _send(self, request: HttpRequest, deadline: float, home: _Home) -> HttpResponse:
        import httpx2

        remaining = self.remaining(deadline)
        try:
            # The arguments hold the secret: no variable does, which a traceback could show.
            async with (
                asyncio.timeout(remaining),
                home.client.stream(**self.arguments(request, remaining)) as response,
            ):
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    self.collect(body, chunk, request, deadline)
                home.heard_at = self._monotonic()
                return HttpResponse(response.status_code, dict(response.headers), bytes(body))
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
            failure = self.failure(error)
        raise failure

    def __repr__(self) -> str:
        return f"AsyncDriver({self.broker_url!r})"


class AsyncConnected:
    """Something that talks to a broker through a driver of its own, and can be closed."""

    _driver: AsyncDriver

    @property
    def broker_url(self) -> str:
        """The broker's URL, without a slash at its end."""
        return self._driver.broker_url

    async def aclose(self) -> None:
        """Close the connections."""
        await self._driver.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _look_at(task: asyncio.Task[Any]) -> None:
    """The caller may be gone, and nobody left to hear how it ended."""
    if not task.cancelled():
        task.exception()
