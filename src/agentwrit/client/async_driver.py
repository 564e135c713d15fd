"""The asynchronous driver: carries out calls on an event loop.

Connections, locks and tasks belong to the loop on which they were created, so each loop has its own `_Home`. It ends
with `aclose`, or at the latest when the loop shuts down its asynchronous generators.

The number of calls in progress is limited; further calls wait in order of arrival. The wait does not count towards a
call's timeout as long as the broker answers others.
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from agentwrit.client.event_stream import AsyncEventStream
from agentwrit.client.exchange import AnswerTooLarge, HttpRequest, HttpResponse, Plan, Turn
from agentwrit.client.policy import Calling, Login, Policy, Send, Take, Wait
from agentwrit.client.secrecy import discreet
from agentwrit.errors import AgentWritError, TransportError

if TYPE_CHECKING:
    import httpx2

    from agentwrit.client.async_connections import AsyncConnections

T = TypeVar("T")

CALLS_AT_ONCE: Final = 16


class _Home:
    """The state of a driver on one event loop: its own connections, and an httpx2 client if one is needed."""

    def __init__(self, given: "httpx2.AsyncClient | None") -> None:
        self.slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self.turns: weakref.WeakKeyDictionary[Turn, asyncio.Lock] = weakref.WeakKeyDictionary()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.heard_at = float("-inf")  # when any call last heard from the broker
        self.client = given
        self.connections: AsyncConnections | None = None
        self._is_ours = given is None
        self._stay = self._until_the_end()

    async def settle(self) -> None:
        """Tie this to the loop. The end of the loop calls `leave` if nothing else did."""
        await anext(self._stay)

    async def leave(self) -> None:
        """Let tasks in progress finish, and close the connections."""
        await self._stay.aclose()

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self.tasks:
                await asyncio.wait(self.tasks)
            if self.connections is not None:
                await self.connections.close()
            if self.client is not None and self._is_ours:
                await self.client.aclose()


class AsyncDriver(Policy):
    """Runs steps against one broker, for the tasks of several event loops in turn.

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
        self._is_direct = http_client is None
        self._homes: dict[asyncio.AbstractEventLoop, _Home] = {}

    @discreet
    async def run(self, steps: Plan[T], *, timeout: float | None = None) -> T:
        """Carry out steps within the timeout, or within `timeout` seconds from now, including the wait for a slot.

        Raises:
            TransportError: the broker was not reached in time.
            AgentWritError: what the steps raise.
        """
        home = await self._home()
        deadline = None if timeout is None else self.deadline(timeout)
        await self._enter(home, deadline)
        try:
            return await self._carry_out(self.calling(steps, deadline or self.deadline()), home)
        finally:
            home.slots.release()

    @discreet
    async def run_through(self, steps: Plan[T]) -> T:
        """As `run`, in a task of its own that continues to its end if the caller is cancelled."""
        return await asyncio.shield(await self.start(steps))

    @discreet
    async def run_to_the_end(self, steps: Plan[T]) -> T:
        """As `run`, but the caller waits until it is done: a cancellation takes effect afterwards."""
        task = await self.start(steps)
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return task.result()

    @discreet
    async def send(self, request: HttpRequest) -> HttpResponse:
        """Make one request, once.

        Raises:
            TransportError: the broker was not reached in time.
        """
        return await self._send(request, self.deadline(), await self._home())

    async def event_stream(self, *, silence: float) -> AsyncEventStream:
        """An object that opens event streams, over this driver's connections on this loop."""
        return AsyncEventStream(self._client(await self._home()), silence=silence)

    async def aclose(self) -> None:
        """Close the connections that were opened on this loop. A later call opens new ones."""
        home = self._homes.pop(asyncio.get_running_loop(), None)
        if home is not None:
            await home.leave()

    async def _home(self) -> _Home:
        loop = asyncio.get_running_loop()
        home = self._homes.get(loop)
        if home is None:
            for other in [other for other in self._homes if other.is_closed()]:
                del self._homes[other]
            home = self._homes[loop] = _Home(self._given_client)
            await home.settle()  # completes without suspending: nothing else runs meanwhile
        if home.client is not None:
            self.check_open(home.client)
        return home

    def _client(self, home: _Home) -> "httpx2.AsyncClient":
        if home.client is None:
            import httpx2  # here, so that importing the SDK does not load it

            # One additional connection for each event stream.
            home.client = httpx2.AsyncClient(**self.client_options(2 * CALLS_AT_ONCE))
        return home.client

    def _connections(self, home: _Home) -> "AsyncConnections | None":
        """The driver's own connections, or None if httpx2 has to be used."""
        if home.connections is None and self._is_direct:
            from agentwrit.client.async_connections import AsyncConnections
            from agentwrit.client.connections import is_proxied

            self._is_direct = not is_proxied(self.broker_url)
            if self._is_direct:
                home.connections = AsyncConnections(self.broker_url, self.tls_context)
        return home.connections

    async def _enter(self, home: _Home, deadline: float | None) -> None:
        """Wait for a slot, as long as the broker answers the calls that have one, and no longer than the deadline."""
        entered = self._monotonic()
        while True:
            latest = max(entered, home.heard_at) + self._timeout
            try:
                async with asyncio.timeout(self.remaining(latest if deadline is None else min(latest, deadline))):
                    await home.slots.acquire()
            except TimeoutError:
                continue
            return

    async def start(self, steps: Plan[T]) -> asyncio.Task[T]:
        """Start running steps in a task of its own. A failure that nobody retrieves is not an error."""
        home = await self._home()
        task = asyncio.get_running_loop().create_task(self.run(steps))
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
                turn = home.turns.setdefault(needed.turn, asyncio.Lock())
                try:
                    async with asyncio.timeout(self.remaining(needed.deadline)):
                        await turn.acquire()
                except TimeoutError as error:
                    failure = self.failure(error)
                else:
                    try:
                        return await self._carry_out(needed.calling, home)
                    finally:
                        turn.release()
                raise failure

    async def _send(self, request: HttpRequest, deadline: float, home: _Home) -> HttpResponse:
        connections = self._connections(home)
        if connections is None:
            return await self._send_with_httpx2(request, deadline, home)
        from http.client import HTTPException

        try:
            answer = await connections.send(
                request.method,
                request.path,
                self.headers(request),
                request.content(),
                remaining=lambda: self.remaining(deadline),
                max_bytes=request.max_bytes,
            )
        except (OSError, HTTPException, ValueError, TransportError) as error:
            failure = self.failure(error)
        else:
            home.heard_at = self._monotonic()
            return answer
        raise failure

    async def _send_with_httpx2(self, request: HttpRequest, deadline: float, home: _Home) -> HttpResponse:
        import httpx2

        from agentwrit.client import through_httpx2

        client, remaining = self._client(home), self.remaining(deadline)
        try:
            answer = await through_httpx2.send(
                client,
                lambda: self.arguments(request, remaining),
                timeout=remaining,
                max_bytes=request.max_bytes,
                tasks=home.tasks,
            )
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, AnswerTooLarge) as error:
            failure = self.failure(error)
        else:
            home.heard_at = self._monotonic()
            return answer
        raise failure

    def __repr__(self) -> str:
        return f"AsyncDriver({self.broker_url!r})"


class AsyncConnected:
    """An object that talks to a broker through its own driver, and can be closed."""

    _driver: AsyncDriver

    @property
    def broker_url(self) -> str:
        """The broker's URL, without a trailing slash."""
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
    """Retrieve the task's exception, because the caller may be gone."""
    if not task.cancelled():
        task.exception()
