"""Running a broker: its sockets, its signals and its end."""

import asyncio
import contextlib
import gc
import http.client
import json
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from agentwrit._version import __version__
from agentwrit.broker import bootstrap, logs, memory
from agentwrit.broker.config import Config, from_environment, unknown_variables
from agentwrit.broker.http.protocol import KEEP_ALIVE_SECONDS, BoundedHttpProtocol
from agentwrit.broker.shutdown import Shutdown
from agentwrit.broker.workers import Workers
from agentwrit.domain.errors import ConfigurationError

BACKLOG: Final = 2048
HEALTH_SECONDS: Final = 3
GRACE_SECONDS: Final = 10  # for requests in flight when the broker is told to stop
YOUNG_OBJECTS: Final = 10_000  # before the garbage collector looks at them: requests end without leaving any to it

log = structlog.get_logger("agentwrit.server")


class HttpServer(uvicorn.Server):
    """uvicorn's server, leaving signals to us: it would end the process before the store is closed."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_listening.set()


def serve(
    file: Path | None, *, ready_fd: int | None = None, stop_fd: int | None = None, listen_fd: int | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, or until `stop_fd` reaches its end: see `shutdown`.

    When the broker listens, one line of JSON with its `url` and `pid` is written to `ready_fd`, which is then closed.
    `listen_fd`: a socket that listens already. Who is given one is a worker, and has no workers.

    Raises:
        ConfigurationError: it cannot start as it was told to.
    """
    memory.give_back_large_blocks()
    config = from_environment(file)
    logs.configure(level=config.log_level, log_format=config.log_format)
    for line in unknown_variables(os.environ):
        log.warning(line)
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if config.workers > 1 and listen_fd is None:
            runner.run(_serve_with_workers(config, file, ready_fd, stop_fd))
        else:
            runner.run(logs.gathered(_serve(config, ready_fd, stop_fd, listen_fd)))


async def _serve_with_workers(config: Config, file: Path | None, ready_fd: int | None, stop_fd: int | None) -> None:
    shutdown = Shutdown(config.drain_seconds)
    shutdown.heed(stop_fd)
    async with bootstrap.open_store(config):
        pass  # what is wrong with it is said here, once
    with listen(config.host, config.port, "AGENTWRIT_PORT") as listener:
        workers = Workers(config, file, listener)
        keeping: asyncio.Task[None] | None = None
        try:
            await workers.start()
            keeping = asyncio.create_task(workers.keep())
            url = url_of(config, listener)
            log.info("listening", url=url, version=__version__, workers=config.workers)
            _announce(ready_fd, url)
            await shutdown.wait_to_drain()
            keeping.cancel()
            if not shutdown.is_stopping():
                workers.drain()
            await shutdown.wait()
            log.info("stopping")
        finally:
            if keeping is not None:
                keeping.cancel()
            await workers.stop()
    log.info("stopped")


async def _serve(config: Config, ready_fd: int | None, stop_fd: int | None, listen_fd: int | None) -> None:
    shutdown = Shutdown(config.drain_seconds)
    shutdown.heed(stop_fd)
    async with bootstrap.open_broker(
        config, is_draining=shutdown.is_draining, is_stopping=shutdown.is_stopping
    ) as broker:
        servers = [http_server(config, broker.app)]
        given = None if listen_fd is None else socket.socket(fileno=listen_fd)
        listeners = [given or listen(config.host, config.port, "AGENTWRIT_PORT")]
        if config.metrics_port is not None:
            servers.append(http_server(config, broker.metrics_app))
            listeners.append(listen(config.metrics_host, config.metrics_port, "AGENTWRIT_METRICS_PORT"))
        running = [
            asyncio.create_task(server.serve(sockets=[listener]))
            for server, listener in zip(servers, listeners, strict=True)
        ]
        for server in servers:
            await server.is_listening.wait()
        url = url_of(config, listeners[0])
        # What was loaded to get here stays: no garbage collection needs to look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        store = "PostgreSQL" if config.database_url is not None else str(config.data_dir)
        log.info("listening", url=url, version=__version__, store=store)
        _announce(ready_fd, url)
        await shutdown.wait()
        log.info("stopping")
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*running)
    log.info("stopped")


def is_healthy(config: Config) -> bool:
    """Whether the broker with these settings, on this machine, says that it is well. For container health checks."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104  # looked up, not bound
    if config.tls_cert is None:
        connection = http.client.HTTPConnection(host, config.port, timeout=HEALTH_SECONDS)
    else:
        # It asks itself: who answers on this machine's own port needs no certificate to be believed.
        context = ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection(host, config.port, timeout=HEALTH_SECONDS, context=context)
    try:
        connection.request("GET", "/v1/health")
        return connection.getresponse().status == HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def http_server(config: Config, app: ASGIApp) -> HttpServer:
    """A server for an application. `serve` takes the sockets that it listens on.

    Raises:
        ConfigurationError: the certificate or a key cannot be loaded.
    """
    try:
        settings = uvicorn.Config(
            app,
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            ssl_certfile=config.tls_cert,
            ssl_keyfile=config.tls_key,
            ssl_ca_certs=str(config.tls_client_ca) if config.tls_client_ca is not None else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if config.tls_client_ca is not None else ssl.CERT_NONE,
        )
        settings.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the TLS certificate, key or client CA cannot be loaded ({error}):"
            " check AGENTWRIT_TLS_CERT, AGENTWRIT_TLS_KEY and AGENTWRIT_TLS_CLIENT_CA"
        ) from error
    return HttpServer(settings)


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A socket that listens. `setting`: where the port came from.

    Raises:
        ConfigurationError: the address or the port cannot be had.
    """
    try:
        [address, *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, location = address
        listener = socket.create_server(location, family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port} ({error.strerror}):"
            f" stop whatever uses it, or set {setting} to another port"
        ) from error
    listener.setblocking(False)
    return listener


def url_of(config: Config, listener: socket.socket) -> str:
    """The URL at which a listening socket is reached."""
    scheme = "https" if config.tls_cert is not None else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _announce(ready_fd: int | None, url: str) -> None:
    if ready_fd is not None:
        with os.fdopen(ready_fd, "w", encoding="ascii") as ready:
            ready.write(json.dumps({"url": url, "pid": os.getpid()}) + "\n")


def _raise_file_limit() -> None:
    """As many connections as the system lets us have: the usual soft limit of 1024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
