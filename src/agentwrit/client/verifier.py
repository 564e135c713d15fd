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

VERIFY_SECONDS: Final = 1.0  # how long a check may take, if nothing else was said
START_SECONDS: Final = 5.0  # how long the first call waits for keys and revocations, if the broker answers
FETCH_SECONDS: Final = 10.0  # how long it may take to fetch any of them, which nobody waits for
JOIN_SECONDS: Final = 5.0  # how long `close` waits for the thread, which may wait for an answer


class Verifier:
    """Checks tokens of one broker in microseconds. Safe to share between threads; make one, and keep it.

    A thread follows the broker's revocations. What it knows is relied on for `max_staleness` seconds after it was last
    known to be all: then the broker is asked for each token (`on_stale="online"`), or none is accepted ("refuse").

    A check takes `timeout` seconds at most; only the first one waits longer, for a broker that answers and has not told
    all yet. Whether the broker is out of reach is remembered: while it is, checks that need it fail at once, and one of
    them asks now and then. When it is lost, and when it is back, is logged ("agentwrit"), once each.
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
        """`audience`: whom tokens must be for; None for the broker's default. `timeout`: seconds that a check may take.

        `subjects`: whose tokens are taken, of "agent", "app" and "operator": those of agents alone by default.

        `http_client`, `verify` and `cert` are as for `AgentWritApp`. `clock`: what time it is. `client_id` and
        `client_secret`: those of an app that the operator lets report on tokens for this audience (`--reports-for`),
        to `report` as. Where the broker has no place for strangers, it has one for that app.

        Raises:
            AgentWritError: `broker_url` is no URL, or one of `client_id` and `client_secret` was left out.
            ValueError: `on_stale` or `subjects` is none.
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
        """The broker's URL, without a slash at its end."""
        return self._driver.broker_url

    @property
    def staleness(self) -> float:
        """How many seconds ago all revocations were known; infinite before the first time."""
        return self._acceptance.staleness

    @property
    def can_report(self) -> bool:
        """Whether it was made with an app to `report` as."""
        return self._reporter is not None

    @property
    def unreported(self) -> int:
        """How many accesses could not be reported, and never will be."""
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
        """What a token says, if it holds, is for us, and covers `scope`: one that is needed, or several.

        A token that is bound to its agent's key (RFC 9449) holds with its `proof` alone: what came in the request's
        one DPoP header, while `htm` is the request's method and `htu` its URL, or several URLs where the service is
        known by several names. The names are those of the service's own settings: the request's Host may be that of
        another service, to which the proof was shown. A proof is good once. A token that is not bound holds without.

        Raises:
            InvalidToken: it does not hold.
            ScopeDenied: it does not cover `scope`.
            Unverifiable: revocations may be missing, and the broker is not to be asked.
            TransportError: the broker was to be asked, and was not reached.
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
        except BaseException as error:  # as `discreet` does it, which would double what a check costs beside the rules
            del token, proof
            forget_variables(error, handled)
            raise

    def report(
        self, claims: AgentClaims, *, scope: str | Sequence[str], resource: str, outcome: Done = "success"
    ) -> None:
        """Report to the broker what was done with a token, for its audit log: nothing is awaited.

        `claims`: what `verify` returned; `scope`: one that was used, or several; `resource`: what was asked for, such
        as "GET /orders/1", cut to 256 characters; `outcome`: "denied" for what was refused. A thread tells the
        broker, soon and in batches; the same thing done again is counted. What cannot be reported is counted too, as
        `unreported`: nobody waits, and memory stays bounded.

        Raises:
            AgentWritError: the verifier was made without `client_id`, or `scope` is none.
            ScopeDenied: something was done that the token did not cover.
            ValueError: there is no such outcome, or `resource` is empty.
        """
        if self._reporter is None:
            raise AgentWritError(UNNAMED)
        self._reporter.note(claims, scope, resource, outcome)

    def close(self) -> None:
        """Report what is still to be reported, stop following, and close the connections. A later call begins anew."""
        if self._reporter is not None:
            self._reporter.stop()
        with self._lock:
            follower, self._follower = self._follower, None
        if follower is not None:
            follower.stop()
        self._driver.close()

    def after_fork(self) -> None:
        """The parent's thread is not in the child: begin anew there."""
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
        """Wait for the first knowledge, as long as it may come. Returns how many seconds are left to ask the broker.

        Raises:
            TransportError: the broker has answered nothing.
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
    """The thread that follows the feed. It does not hold the verifier, which may be forgotten without being closed."""

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
        """Have the thread end. It may be waiting for a page."""
        self._stopping.set()
        stream = self._stream
        if stream is not None and self._pid == os.getpid():  # after a fork the connection is the parent's
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
                    self.tried.set()  # from here on it waits for what is new
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
