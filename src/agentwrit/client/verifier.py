"""Verifying tokens in a resource server, without asking the broker for each."""

import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from agentwrit.client.acceptance import Acceptance, OnStale
from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.client.driver import Driver
from agentwrit.client.event_stream import EventStream
from agentwrit.client.exchange import HttpRequest
from agentwrit.client.following import FEED, SILENCE_SECONDS, Needed, NextPage, OpenFeed, Pause
from agentwrit.client.reporter import Reporter
from agentwrit.client.reporting import UNNAMED, Done, reporter_login
from agentwrit.client.steps import ShownProof
from agentwrit.errors import AgentWritError
from agentwrit.models import AgentClaims

if TYPE_CHECKING:
    import httpx2

START_SECONDS: Final = 5.0  # how long the first call waits for keys and revocations


class Verifier:
    """Checks tokens of one broker in microseconds. Safe to share between threads; make one, and keep it.

    A thread follows the broker's revocations. What it knows is relied on for `max_staleness` seconds after it was last
    known to be all: then the broker is asked for each token (`on_stale="online"`), or none is accepted ("refuse").
    """

    def __init__(
        self,
        broker_url: str,
        *,
        audience: str | Iterable[str] | None = None,
        max_staleness: float = 5.0,
        on_stale: OnStale = "online",
        client_id: str | None = None,
        client_secret: str | None = None,
        timeout: float = 10.0,
        http_client: "httpx2.Client | None" = None,
        verify: Any = None,
        cert: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`audience`: whom tokens must be for; None for the broker's default. `timeout`: seconds for asking the broker.

        `http_client`, `verify` and `cert` are as for `AgentWritApp`. `clock`: what time it is. `client_id` and
        `client_secret`: those of an app that the operator lets report on tokens for this audience (`--reports-for`),
        to `report` as.

        Raises:
            AgentWritError: `broker_url` is no URL, or one of `client_id` and `client_secret` was left out.
        """
        login = reporter_login(client_id, client_secret)
        self._driver = Driver(
            broker_url, timeout=timeout, login=login, http_client=http_client, verify=verify, cert=cert
        )
        self._reporter = None if login is None else Reporter(self._driver, clock)
        self._acceptance = Acceptance(
            self.broker_url, audience=audience, max_staleness=max_staleness, on_stale=on_stale, clock=clock
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
        htu: str | None = None,
    ) -> AgentClaims:
        """What a token says, if it holds, is for us, and covers `scope`: one that is needed, or several.

        A token that is bound to its agent's key (RFC 9449) holds with its `proof` alone: what came in the request's
        one DPoP header, while `htm` and `htu` are the request's own method and URL. A proof is good once. One that is
        not bound holds without.

        Raises:
            InvalidToken: it does not hold.
            ScopeDenied: it does not cover `scope`.
            Unverifiable: revocations may be missing, and the broker is not to be asked.
            TransportError: the broker was to be asked, and was not reached.
        """
        if self._follower is None or self._follower.is_over:
            self._start()
        shown = None if proof is None else ShownProof(proof, htm, htu)
        claims = self._acceptance.accept(token, scope, shown)
        return claims if claims is not None else self._driver.run(self._acceptance.ask(token, scope, shown))

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

    def _start(self) -> None:
        with self._lock:
            if self._follower is None or self._follower.is_over:
                follower = _Follower(self._acceptance, self._driver)
                if self._forgotten is not None:
                    self._forgotten.detach()
                self._forgotten = weakref.finalize(self, follower.interrupt)
                follower.thread.start()
                follower.tried.wait(START_SECONDS)
                self._follower = follower

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
        self.thread.join(SILENCE_SECONDS + 1)

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
                    if self._acceptance.known_until > known_before:
                        self.tried.set()
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
                    self._stream = self._driver.event_stream(silence=SILENCE_SECONDS)
                self._stream.open(f"{self._driver.broker_url}{FEED}?after={needed.after}")
            case NextPage():
                assert self._stream is not None  # noqa: S101  # pages come after the feed was opened
                return self._stream.next_data()
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
