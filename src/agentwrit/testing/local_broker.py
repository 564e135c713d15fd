"""A broker in a thread of this process, listening on a loopback port."""

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self

import argon2
import uvloop

from agentwrit.broker import bootstrap, config, server
from agentwrit.broker.clock import Clock as BrokerClock
from agentwrit.broker.config import Config
from agentwrit.broker.http.server import HttpServer
from agentwrit.client.app import AgentWritApp
from agentwrit.client.async_app import AsyncAgentWritApp
from agentwrit.client.clock import Clock
from agentwrit.client.operator import OperatorClient
from agentwrit.domain.errors import ConfigurationError

CEILING: Final = ("read:data:*", "write:data:*")

# The secret is random, lives only for the test and is never stored, so it needs no expensive hash.
_QUICK_HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class LocalBroker:
    """A broker that starts empty and leaves nothing behind. It starts in some tens of milliseconds.

    `url`: its URL, for services, verifiers and other processes; `clock`: its clock, for
    `Verifier(broker.url, clock=broker.clock)`. The agents of its apps use the same clock.

        with LocalBroker(default_ttl=60) as broker:
            app = broker.app("read:data:*")
    """

    def __init__(self, **settings: Any) -> None:
        """Start the broker. `settings`: the broker's settings in lower case without the prefix, such as `max_ttl`.

        Raises:
            ConfigurationError: a setting is unknown or invalid.
        """
        self._ahead = 0.0
        self.clock = Clock(lambda: time.time() + self._ahead, lambda: time.monotonic() + self._ahead)
        self._secret = secrets.token_hex(32)
        self._config = _config({"port": 0, "admin_secret": _QUICK_HASHER.hash(self._secret), **settings})
        self._opened: list[AgentWritApp] = []
        self._operator: OperatorClient | None = None
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        listening: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="agentwrit-broker", daemon=True)
        self._thread.start()
        self.url = listening.result()

    @property
    def operator(self) -> OperatorClient:
        """A client with the operator's permissions: to register apps, revoke, and rotate keys."""
        if self._operator is None:
            self._operator = OperatorClient(self.url, self._secret)
        return self._operator

    def advance(self, seconds: float) -> None:
        """Move the clock forward by `seconds`. It also runs by itself, and never backwards.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError("a broker's time never runs backwards")
        self._ahead += seconds

    def app(self, *ceiling: str, audiences: Sequence[str] = (), require_bound: bool = False) -> AgentWritApp:
        """Register a new app. The broker closes it.

        `ceiling`: its scopes, by default `read:data:*` and `write:data:*`; `audiences`: the audiences that its agents'
        tokens may have; `require_bound`: whether its agents' tokens must be bound to their keys.

        Raises:
            ProblemResponseError: the ceiling or an audience is malformed.
        """
        app = AgentWritApp(*self._registered(ceiling, audiences, require_bound), clock=self.clock)
        self._opened.append(app)
        return app

    def async_app(self, *ceiling: str, audiences: Sequence[str] = (), require_bound: bool = False) -> AsyncAgentWritApp:
        """Like `app`, for use on an event loop. Its connections end with the event loop."""
        return AsyncAgentWritApp(*self._registered(ceiling, audiences, require_bound), clock=self.clock)

    def revoke(self, level: str, target: str) -> int:
        """Revoke as the operator. Returns how many live tokens it ended.

        `level`: token, agent, task, chain, grant or app; `target`: the name that the level takes, such as an agent's
        SPIFFE ID:

            assert broker.revoke("agent", agent.agent_id) == 1

        Raises:
            ProblemResponseError: there is no such level.
        """
        return int(self.operator.revoke(level, target)["count"])

    def close(self) -> None:
        """Stop the broker and close its apps. Further calls do nothing."""
        for app in self._opened:
            app.close()
        if self._operator is not None:
            self._operator.close()
        if self._stop is not None:
            loop, stop = self._stop
            self._stop = None
            loop.call_soon_threadsafe(stop.set)
        self._thread.join()

    def _registered(
        self, ceiling: Sequence[str], audiences: Sequence[str], require_bound: bool
    ) -> tuple[str, str, str]:
        app = self.operator.register_app(
            f"app-{secrets.token_hex(4)}", ceiling or CEILING, audiences=audiences, require_bound=require_bound
        )
        return self.url, app["client_id"], app["client_secret"]

    def _run(self, listening: "Future[str]") -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve(listening))
        except BaseException as error:
            if listening.done():
                raise
            listening.set_exception(error)

    async def _serve(self, listening: "Future[str]") -> None:
        stop = asyncio.Event()
        clock = BrokerClock(*self.clock)
        async with (
            bootstrap.open_in_memory(self._config, clock, is_stopping=stop.is_set) as broker,
            contextlib.AsyncExitStack() as sockets,
        ):
            http = HttpServer(broker.metrics)
            listeners = sockets.enter_context(server.listening(self._config.host, self._config.port, "port"))
            for listener in listeners:
                await http.listen(listener, broker.app, server.tls_context(self._config))
            self._stop = asyncio.get_running_loop(), stop
            listening.set_result(server.url_of(self._config, listeners))
            await stop.wait()
            await http.stop(grace_seconds=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalBroker({self.url!r})"


def _config(settings: Mapping[str, object]) -> Config:
    """The settings, validated as a broker process validates its environment."""
    environ = {config.PREFIX + name.upper(): _text(value) for name, value in settings.items()}
    if unknown := config.unknown_variables(environ):
        raise ConfigurationError(unknown[0])
    return config.load(environ)


def _text(value: object) -> str:
    return ",".join(value) if isinstance(value, list | tuple) else str(value)
