"""Verifying tokens on an event loop, without asking the broker for each."""

import asyncio
import os
import sys
import time
import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from agentwrit.client.acceptance import Acceptance, OnStale, Subject
from agentwrit.client.async_driver import AsyncConnected, AsyncDriver
from agentwrit.client.async_reporter import AsyncReporter
from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.client.event_stream import AsyncEventStream
from agentwrit.client.exchange import HttpRequest, LoginNeeded
from agentwrit.client.following import (
    CloseFeed,
    Needed,
    NextPage,
    OpenFeed,
    Pause,
    token_to_show,
)
from agentwrit.client.reporting import UNNAMED, Done, reporter_login
from agentwrit.client.secrecy import discreet, forget_variables
from agentwrit.client.steps import ShownProof
from agentwrit.client.verifier import FETCH_SECONDS, START_SECONDS, VERIFY_SECONDS
from agentwrit.errors import AgentWritError
from agentwrit.models import AgentClaims

if TYPE_CHECKING:
    import httpx2


class AsyncVerifier(AsyncConnected):
    """A `Verifier` whose `verify` is awaited. Safe to share between tasks, and to use on several loops in turn.

        async with AsyncVerifier("https://broker.example", audience="https://orders.example") as verifier:
            claims = await verifier.verify(token, scope="read:data:customer-7291")

    A task follows the broker's revocation feed. It starts with the first call on a loop, and ends with `aclose`, with
    the loop, or when the verifier is garbage-collected.
    """

    @discreet
    def __init__(
        self,
        broker_url: str,
        *,
        audience: str | Iterable[str] | None = None,
        max_staleness: float = 5.0,
        on_stale: OnStale = "online",
        subjects: Iterable[Subject] = ("agent",),
        client_id: str | None = None,
        client_secret: str | None = None,
        timeout: float = VERIFY_SECONDS,
        http_client: "httpx2.AsyncClient | None" = None,
        verify: Any = None,
        cert: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """As for `Verifier`. `http_client`: an httpx2.AsyncClient, for use on its own loop only.

        Raises:
            AgentWritError: `broker_url` is not a valid URL, or only one of `client_id` and `client_secret` was given.
            ValueError: `on_stale` or `subjects` has an unknown value.
        """
        login = reporter_login(client_id, client_secret)
        self._driver = AsyncDriver(
            broker_url,
            timeout=max(timeout, FETCH_SECONDS),
            login=login,
            http_client=http_client,
            verify=verify,
            cert=cert,
        )
        self._timeout = timeout
        self._reporter = None if login is None else AsyncReporter(self._driver, clock)
        self._acceptance = Acceptance(
            self.broker_url,
            audience=audience,
            max_staleness=max_staleness,
            on_stale=on_stale,
            subjects=subjects,
            can_log_in=login is not None,
            clock=clock,
        )
        self._follower: _Follower | None = None
        self._forgotten: weakref.finalize[[], AsyncVerifier] | None = None

    @property
    def staleness(self) -> float:
        """The seconds since all revocations were known; infinite before the first time."""
        return self._acceptance.staleness

    @property
    def can_report(self) -> bool:
        """Whether the verifier was created with an app, so that `report` can be used."""
        return self._reporter is not None

    @property
    def unreported(self) -> int:
        """The number of accesses that could not be reported and never will be."""
        return 0 if self._reporter is None else self._reporter.unreported

    async def verify(
        self,
        token: str,
        *,
        scope: str | Sequence[str] | None = None,
        proof: str | None = None,
        htm: str | None = None,
        htu: str | Collection[str] | None = None,
    ) -> AgentClaims:
        """The claims of a token, if it is valid and covers `scope`, as `Verifier.verify`."""
        handled = sys.exception()
        try:
            follower = self._follower
            if follower is None or follower.is_over or follower.loop is not asyncio.get_running_loop():
                follower = self._start()
            timeout = self._timeout
            if not follower.tried.is_set():
                timeout = await follower.wait(self._timeout)
            shown = None if proof is None else ShownProof(proof, htm, htu)
            claims = self._acceptance.accept(token, scope, shown)
            if claims is None:
                claims = await self._driver.run(self._acceptance.ask(token, scope, shown), timeout=timeout)
            return claims
        except BaseException as error:  # as in `Verifier`
            del token, proof
            forget_variables(error, handled)
            raise

    def report(
        self, claims: AgentClaims, *, scope: str | Sequence[str], resource: str, outcome: Done = "success"
    ) -> None:
        """Report to the audit log what was done with a token, as `Verifier.report`.

        It is not awaited: a task on the running loop, which it needs, sends the report.
        """
        if self._reporter is None:
            raise AgentWritError(UNNAMED)
        self._reporter.note(claims, scope, resource, outcome)

    async def aclose(self) -> None:
        """Report what is waiting, stop following the feed, and close the connections. A later call starts again."""
        if self._reporter is not None:
            await self._reporter.stop()
        follower, self._follower = self._follower, None
        if follower is not None:
            await follower.stop()
        await super().aclose()

    def _start(self) -> "_Follower":
        before = self._follower
        if before is not None and not before.is_over:
            if before.is_elsewhere:
                return before  # what it learns is shared
            before.is_stopping = True
        self._follower = follower = _Follower(self._acceptance, self._driver)
        if self._forgotten is not None:
            self._forgotten.detach()  # it would keep a reference to the previous loop
        self._forgotten = weakref.finalize(self, follower.interrupt)
        self._forgotten.atexit = False
        return follower

    def __repr__(self) -> str:
        return f"AsyncVerifier({self.broker_url!r})"


class _Follower:
    """The task that follows the feed. It holds no reference to the verifier, which may be dropped without `aclose`."""

    def __init__(self, acceptance: Acceptance, driver: AsyncDriver) -> None:
        self.loop = asyncio.get_running_loop()
        self.tried = asyncio.Event()
        self.is_stopping = False
        self.is_over = False
        self._pid = os.getpid()
        self._acceptance = acceptance
        self._driver = driver
        self._stream: AsyncEventStream | None = None
        self._task = self.loop.create_task(self._run(), name="agentwrit-revocations")

    @property
    def is_elsewhere(self) -> bool:
        """Whether the task runs on the loop of another thread. After a fork, loops are left behind that seem to run."""
        is_here = self.loop is asyncio.get_running_loop()
        return not is_here and self.loop.is_running() and self._pid == os.getpid()

    async def wait(self, seconds: float) -> float:
        """Wait for the first knowledge, as long as it may arrive. A caller on another loop does not wait.

        Returns how many of these seconds are left to ask the broker.

        Raises:
            TransportError: the broker has sent no answer for `seconds`.
        """
        if self.loop is not asyncio.get_running_loop():
            return seconds
        reach, began = self._acceptance.reach, time.monotonic()
        reach.check()
        if not await self._is_tried_within(seconds):
            reach.check_heard()
            await self._is_tried_within(max(0.0, START_SECONDS - seconds))
        return reach.left_to_ask(seconds, time.monotonic() - began, more=START_SECONDS)

    async def _is_tried_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self.tried.wait()
        except TimeoutError:
            return False
        return True

    def interrupt(self) -> None:
        """Make the task end, from any thread."""
        self.is_stopping = True
        if not self.loop.is_closed() and self._pid == os.getpid():
            self.loop.call_soon_threadsafe(self._task.cancel)

    async def stop(self) -> None:
        self.interrupt()
        if self.loop is asyncio.get_running_loop():
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        following, known_before = self._acceptance.follow(), self._acceptance.known_until
        needed = next(following)
        try:
            while not self.is_stopping:
                try:
                    answer = await self._carry_out(needed)
                except AgentWritError as error:
                    needed = following.throw(error)
                else:
                    needed = following.send(answer)
                if isinstance(needed, NextPage | Pause) and self._acceptance.known_until > known_before:
                    self.tried.set()  # from here on, it waits for news
        finally:
            self.is_over = True
            self.tried.set()
            if self._stream is not None:
                await self._stream.close()

    async def _carry_out(self, needed: Needed) -> object:
        match needed:
            case HttpRequest():
                return await self._driver.send(needed)
            case OpenFeed():
                if self._stream is None:
                    self._stream = await self._driver.event_stream(silence=needed.silence)
                await self._stream.open(f"{self._driver.broker_url}{needed.path}", bearer=needed.bearer)
            case NextPage():
                assert self._stream is not None  # noqa: S101  # pages come after the feed was opened
                return await self._stream.next_data()
            case CloseFeed():
                if self._stream is not None:
                    await self._stream.close()
            case LoginNeeded():
                return await self._driver.run(token_to_show(needed))
            case Pause():
                self.tried.set()
                await asyncio.sleep(needed.seconds)
        return None
