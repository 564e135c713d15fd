"""Verifying tokens in a resource server, without asking the broker for each."""

import os
import sys
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from agentwrit.client.acceptance import Acceptance, OnStale, Subject
from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.client.driver import Driver
from agentwrit.client.event_stream import EventStream
from agentwrit.client.exchange import HttpRequest, LoginNeeded
from agentwrit.client.following import (
    CloseFeed,
    Needed,
    NextPage,
    OpenFeed,
    Pause,
    token_to_show,
)
from agentwrit.client.reporter import Reporter
from agentwrit.client.reporting import UNNAMED, Done, reporter_login
from agentwrit.client.secrecy import discreet, forget_variables
from agentwrit.client.steps import ShownProof
from agentwrit.errors import AgentWritError
from agentwrit.models import AgentClaims

if TYPE_CHECKING:
    import httpx2

VERIFY_SECONDS: Final = 1.0  # the default time for a check
START_SECONDS: Final = 5.0  # how long the first call waits for keys and revocations, if the broker answers
FETCH_SECONDS: Final = 10.0  # how long fetching any of them may take; no caller waits for it
JOIN_SECONDS: Final = 5.0  # how long `close` waits for the thread, which may wait for an answer


class Verifier:
    """Checks the tokens of one broker in microseconds. Safe to share between threads; create one, and keep it.

        verifier = Verifier("https://broker.example", audience="https://orders.example")
        claims = verifier.verify(token, scope="read:data:customer-7291")

    A thread follows the broker's revocation feed. Its knowledge is relied on for `max_staleness` seconds after it was
    last known to be complete. After that, the broker is asked about each token (`on_stale="online"`), or no token is
    accepted ("refuse").

    A check takes at most `timeout` seconds. Only the first one waits longer, if the broker answers but has not sent
    everything yet. While the broker is out of reach, checks that need it fail at once, and one of them asks from time
    to time. The logger "agentwrit" reports when the broker is lost and when it is back, once each.
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
        http_client: "httpx2.Client | None" = None,
        verify: Any = None,
        cert: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Set up a verifier, without making a call.

        - `audience`: the audience that tokens must have; None for the broker's default.
        - `timeout`: seconds for a check.
        - `subjects`: the token holders to accept, of "agent", "app" and "operator"; by default agents only.
        - `http_client`, `verify`, `cert`: as for `AgentWritApp`.
        - `clock`: the clock; tests may replace it.
        - `client_id`, `client_secret`: the credentials of an app that the operator permits to report on tokens for this
          audience (`--reports-for`). `report` uses them. If the broker has no feed place left for anonymous verifiers,
          it has one for that app.

        Raises:
            AgentWritError: `broker_url` is not a valid URL, or only one of `client_id` and `client_secret` was given.
            ValueError: `on_stale` or `subjects` has an unknown value.
        """
        login = reporter_login(client_id, client_secret)
        self._driver = Driver(
            broker_url,
            timeout=max(timeout, FETCH_SECONDS),
            login=login,
            http_client=http_client,
            verify=verify,
            cert=cert,
        )
        self._timeout = timeout
        self._reporter = None if login is None else Reporter(self._driver, clock)
        self._acceptance = Acceptance(
            self.broker_url,
            audience=audience,
            max_staleness=max_staleness,
            on_stale=on_stale,
            subjects=subjects,
            can_log_in=login is not None,
            clock=clock,
        )
        self._lock = threading.Lock()
        self._follower: _Follower | None = None
        self._forgotten: weakref.finalize[[], Verifier] | None = None
        _verifiers.add(self)

    @property
    def broker_url(self) -> str:
        """The broker's URL, without a trailing slash."""
        return self._driver.broker_url

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

    def verify(
        self,
        token: str,
        *,
        scope: str | Sequence[str] | None = None,
        proof: str | None = None,
        htm: str | None = None,
        htu: str | Collection[str] | None = None,
    ) -> AgentClaims:
        """The claims of a token, if it is valid, has the right audience, and covers `scope`: one scope, or several.

        A bound token (RFC 9449) is valid only with its `proof`: the value of the request's single DPoP header. `htm` is
        the request's method and `htu` its URL, or several URLs if the service has several names. Take the names from
        the service's own settings, not from the request's Host, which may be that of another service that received the
        proof. Each proof can be used once. A token that is not bound needs no proof.

        Raises:
            InvalidToken: the token is not valid.
            ScopeDenied: the token does not cover `scope`.
            Unverifiable: revocations may be missing, and the settings forbid asking the broker.
            TransportError: the broker had to be asked, and was not reached.
        """
        handled = sys.exception()
        try:
            follower = self._follower
            if follower is None or follower.is_over:
                follower = self._start()
            timeout = self._timeout
            if not follower.tried.is_set():
                timeout = self._wait(follower)
            shown = None if proof is None else ShownProof(proof, htm, htu)
            claims = self._acceptance.accept(token, scope, shown)
            if claims is None:
                claims = self._driver.run(self._acceptance.ask(token, scope, shown), timeout=timeout)
            return claims
        except BaseException as error:  # as `discreet` does, whose wrapper would double the cost of a check
            del token, proof
            forget_variables(error, handled)
            raise

    def report(
        self, claims: AgentClaims, *, scope: str | Sequence[str], resource: str, outcome: Done = "success"
    ) -> None:
        """Report to the broker's audit log what was done with a token. Returns without waiting.

        `claims`: the result of `verify`; `scope`: the used scope, or several; `resource`: what was requested, such as
        "GET /orders/1", cut to 256 characters; `outcome`: "denied" for a request that was refused. A thread sends the
        reports soon, in batches, and repeated accesses as a count. Memory is bounded: accesses that cannot be reported
        are counted as `unreported`.

        Raises:
            AgentWritError: the verifier was created without `client_id`, or `scope` is not a scope.
            ScopeDenied: the token did not cover what was done.
            ValueError: the outcome is unknown, or `resource` is empty.
        """
        if self._reporter is None:
            raise AgentWritError(UNNAMED)
        self._reporter.note(claims, scope, resource, outcome)

    def close(self) -> None:
        """Report what is waiting, stop following the feed, and close the connections. A later call starts again."""
        if self._reporter is not None:
            self._reporter.stop()
        with self._lock:
            follower, self._follower = self._follower, None
        if follower is not None:
            follower.stop()
        self._driver.close()

    def after_fork(self) -> None:
        """Start again in the child, which does not have the parent's thread."""
        self._lock = threading.Lock()
        self._follower = None

    def _start(self) -> "_Follower":
        with self._lock:
            if self._follower is None or self._follower.is_over:
                follower = _Follower(self._acceptance, self._driver)
                if self._forgotten is not None:
                    self._forgotten.detach()
                self._forgotten = weakref.finalize(self, follower.interrupt)
                follower.thread.start()
                self._follower = follower
            return self._follower

    def _wait(self, follower: "_Follower") -> float:
        """Wait for the first knowledge, as long as it may arrive. Returns how many seconds are left to ask the broker.

        Raises:
            TransportError: the broker has sent no answer.
        """
        reach, began = self._acceptance.reach, time.monotonic()
        reach.check()
        if not follower.tried.wait(self._timeout):
            reach.check_heard()
            follower.tried.wait(max(0.0, START_SECONDS - self._timeout))
        return reach.left_to_ask(self._timeout, time.monotonic() - began, more=START_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Verifier({self.broker_url!r})"


class _Follower:
    """The thread that follows the feed. It holds no reference to the verifier, which may be dropped without `close`."""

    def __init__(self, acceptance: Acceptance, driver: Driver) -> None:
        self.tried = threading.Event()
        self.is_over = False
        self.thread = threading.Thread(target=self._run, name="agentwrit-revocations", daemon=True)
        self._stopping = threading.Event()
        self._pid = os.getpid()
        self._acceptance = acceptance
        self._driver = driver
        self._stream: EventStream | None = None

    def interrupt(self) -> None:
        """Make the thread end. It may be waiting for a page."""
        self._stopping.set()
        stream = self._stream
        if stream is not None and self._pid == os.getpid():  # after a fork the connection belongs to the parent
            stream.interrupt()

    def stop(self) -> None:
        self.interrupt()
        self.thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        following, known_before = self._acceptance.follow(), self._acceptance.known_until
        needed = next(following)
        try:
            while not self._stopping.is_set():
                try:
                    answer = self._carry_out(needed)
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
                self._stream.close()

    def _carry_out(self, needed: Needed) -> object:
        match needed:
            case HttpRequest():
                return self._driver.send(needed)
            case OpenFeed():
                if self._stream is None:
                    self._stream = self._driver.event_stream(silence=needed.silence)
                self._stream.open(f"{self._driver.broker_url}{needed.path}", bearer=needed.bearer)
            case NextPage():
                assert self._stream is not None  # noqa: S101  # pages come after the feed was opened
                return self._stream.next_data()
            case CloseFeed():
                if self._stream is not None:
                    self._stream.close()
            case LoginNeeded():
                return self._driver.run(token_to_show(needed))
            case Pause():
                self.tried.set()
                self._stopping.wait(needed.seconds)
        return None


_verifiers: "weakref.WeakSet[Verifier]" = weakref.WeakSet()


def _after_fork() -> None:
    for verifier in list(_verifiers):
        verifier.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
