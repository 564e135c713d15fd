"""Verifying tokens in a resource server, without asking the broker for each."""

import os
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from agentwrit.client import steps
from agentwrit.client.driver import Driver
from agentwrit.client.event_stream import EventStream
from agentwrit.client.exchange import HttpRequest
from agentwrit.client.following import FEED, SILENCE_SECONDS, Needed, NextPage, OpenFeed, Pause, fetch_keys, follow
from agentwrit.client.verification import Known, TokenChecker, check_scope
from agentwrit.errors import AgentWritError, InvalidToken, Unverifiable
from agentwrit.models import AgentClaims

if TYPE_CHECKING:
    import httpx2

START_SECONDS: Final = 5.0  # how long the first call waits for keys and revocations

OnStale = Literal["online", "refuse"]


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
        timeout: float = 10.0,
        http_client: "httpx2.Client | None" = None,
        verify: Any = None,
        cert: Any = None,
    ) -> None:
        """`audience`: whom tokens must be for; None for the broker's default. `timeout`: seconds for asking the broker.

        `http_client`, `verify` and `cert` are as for `AgentWritApp`.

        Raises:
            AgentWritError: `broker_url` is no URL.
        """
        if on_stale not in ("online", "refuse"):
            raise ValueError('on_stale takes "online" or "refuse"')
        self._driver = Driver(broker_url, timeout=timeout, http_client=http_client, verify=verify, cert=cert)
        self._checker = TokenChecker([audience] if isinstance(audience, str) else audience)
        self._max_staleness = max_staleness
        self._on_stale = on_stale
        self._lock = threading.Lock()
        self._follower: _Follower | None = None
        _verifiers.add(self)

    @property
    def broker_url(self) -> str:
        """The broker's URL, without a slash at its end."""
        return self._driver.broker_url

    @property
    def staleness(self) -> float:
        """How many seconds ago all revocations were known; infinite before the first time."""
        return time.monotonic() - self._checker.revocations.fresh_at

    def verify(self, token: str, *, scope: str | Sequence[str] | None = None) -> AgentClaims:
        """What a token says, if it holds, is for us, and covers `scope`: one that is needed, or several.

        Raises:
            InvalidToken: it does not hold.
            ScopeDenied: it does not cover `scope`.
            Unverifiable: revocations may be missing, and the broker is not to be asked.
            TransportError: the broker was to be asked, and was not reached.
        """
        if self._follower is None:
            self._start()
        revocations = self._checker.revocations
        if time.monotonic() - revocations.fresh_at > self._max_staleness:
            return self._verify_stale(token, scope)
        try:
            known = self._checker.check(token, revocations.now())
        except InvalidToken:
            known = self._check_with_new_keys(token)
        check_scope(scope, known.public.scope)
        return known.shown()

    def close(self) -> None:
        """Stop following, and close the connections. A later call begins anew."""
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
            if self._follower is None:
                follower = _Follower(self._checker, self._driver)
                weakref.finalize(self, follower.stopping.set)
                follower.thread.start()
                follower.tried.wait(START_SECONDS)
                self._follower = follower

    def _verify_stale(self, token: str, scope: str | Sequence[str] | None) -> AgentClaims:
        if self._on_stale == "refuse":
            raise Unverifiable(f"revocations of {self.broker_url} are not known up to now: nothing is accepted")
        result = self._driver.run(steps.validate(token))
        if result.claims is None:
            raise InvalidToken("the broker says that the token does not hold")
        self._checker.check_audience(result.claims.aud, result.claims.iss)
        check_scope(scope, result.claims.scope)
        return result.claims

    def _check_with_new_keys(self, token: str) -> Known:
        """Check a token that was refused once more, if that may be because its key is new."""
        if self._checker.is_by_unknown_key(token):
            with self._lock:  # whoever comes meanwhile waits for the same keys
                self._driver.run(fetch_keys(self._checker))
        return self._checker.check(token, self._checker.revocations.now())

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

    def __init__(self, checker: TokenChecker, driver: Driver) -> None:
        self.stopping = threading.Event()
        self.tried = threading.Event()
        self.thread = threading.Thread(target=self._run, name="agentwrit-revocations", daemon=True)
        self._checker = checker
        self._driver = driver

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(SILENCE_SECONDS + 1)

    def _run(self) -> None:
        following = follow(self._checker)
        stream = self._driver.event_stream(silence=SILENCE_SECONDS)
        needed = next(following)
        while not self.stopping.is_set():
            try:
                answer = self._carry_out(needed, stream)
            except AgentWritError as error:
                needed = following.throw(error)
            else:
                needed = following.send(answer)
                if self._checker.revocations.fresh_at > float("-inf"):
                    self.tried.set()
        stream.close()

    def _carry_out(self, needed: Needed, stream: EventStream) -> object:
        match needed:
            case HttpRequest():
                return self._driver.send(needed)
            case OpenFeed():
                stream.open(f"{self._driver.broker_url}{FEED}?after={needed.after}")
            case NextPage():
                return stream.next_data()
            case Pause():
                self.tried.set()
                self.stopping.wait(needed.seconds)
        return None


_verifiers: "weakref.WeakSet[Verifier]" = weakref.WeakSet()


def _after_fork() -> None:
    for verifier in list(_verifiers):
        verifier.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
