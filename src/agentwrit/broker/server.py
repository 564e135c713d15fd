"""Running a broker: its sockets, its signals and its shutdown."""

import asyncio
import contextlib
import errno
import gc
import http.client
import json
import os
import resource
import socket
import ssl
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

import structlog
import uvloop

from agentwrit._version import __version__
from agentwrit.broker import bootstrap, logs, memory, stores
from agentwrit.broker.config import UNIX, Config, doubts, from_environment, unknown_variables
from agentwrit.broker.counts import SharedCounts
from agentwrit.broker.ending_process import EndingProcess
from agentwrit.broker.http.server import BACKLOG, HttpServer
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.shutdown import Shutdown
from agentwrit.broker.workers import Workers
from agentwrit.domain.errors import ConfigurationError

MAX_UNSENT_BYTES: Final = 128 * 1024  # per connection in the kernel, which would take megabytes for a slow reader
HEALTH_SECONDS: Final = 3
GRACE_SECONDS: Final = 10  # for requests in progress at shutdown
YOUNG_OBJECTS: Final = 10_000  # before the garbage collector runs: requests leave it no work

log = structlog.get_logger("agentwrit.server")


def serve(
    file: Path | None,
    *,
    ready_fd: int | None = None,
    stop_fd: int | None = None,
    listen_fds: Sequence[int] = (),
    counts_fds: Sequence[int] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, or until `stop_fd` reaches its end: see `shutdown`.

    When the broker listens, it writes one line of JSON with its `url` and `pid` to `ready_fd`, and closes it.
    `listen_fds`: sockets that already listen. A process that is given some is a worker, and has no workers itself.
    `counts_fds`: see `SharedCounts`.

    Raises:
        ConfigurationError: it cannot start with these settings.
    """
    memory.give_back_large_blocks()
    config = from_environment(file)
    logs.configure(level=config.log_level, log_format=config.log_format)
    has_workers = config.workers > 1 and not listen_fds
    ending = None if has_workers else EndingProcess.fork(config)  # while there are no threads
    for line in [*unknown_variables(os.environ), *doubts(config)]:
        log.warning(line)
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if has_workers:
            runner.run(_serve_with_workers(config, file, ready_fd, stop_fd))
            return
        try:
            runner.run(_serve(config, ready_fd, stop_fd, listen_fds, counts_fds, ending))
        finally:
            if ending is not None:
                ending.close()


async def _serve_with_workers(config: Config, file: Path | None, ready_fd: int | None, stop_fd: int | None) -> None:
    shutdown = Shutdown(config.drain_seconds)
    shutdown.heed(stop_fd)
    async with stores.open_store(config, is_to_serve=True):
        pass  # reports what is wrong with it, once
    with listening(config.host, config.port, "AGENTWRIT_PORT") as listeners:
        workers = Workers(config, file, listeners)
        keeping: asyncio.Task[None] | None = None
        try:
            await workers.start()
            keeping = asyncio.create_task(workers.keep())
            url = url_of(config, listeners)
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


async def _serve(
    config: Config,
    ready_fd: int | None,
    stop_fd: int | None,
    listen_fds: Sequence[int],
    counts_fds: Sequence[int],
    ending: EndingProcess | None,
) -> None:
    shutdown = Shutdown(config.drain_seconds)
    shutdown.heed(stop_fd)
    async with (
        bootstrap.open_broker(
            config,
            is_draining=shutdown.is_draining,
            is_stopping=shutdown.is_stopping,
            ending_elsewhere=None if ending is None else ending.see_through,
        ) as broker,
        contextlib.AsyncExitStack() as sockets,
    ):
        tls = tls_context(config)
        publishing = _share_counts(broker.metrics, counts_fds)
        http = HttpServer(broker.metrics)
        listeners: Sequence[socket.socket] = [socket.socket(fileno=each) for each in listen_fds]
        if not listeners:
            listeners = sockets.enter_context(listening(config.host, config.port, "AGENTWRIT_PORT"))
        for listener in listeners:
            await http.listen(listener, broker.app, tls)
        if config.metrics_port is not None:
            of_metrics = listening(config.metrics_host, config.metrics_port, "AGENTWRIT_METRICS_PORT")
            for listener in sockets.enter_context(of_metrics):
                await http.listen(listener, broker.metrics_app, tls)
        url = url_of(config, listeners)
        # Objects loaded for startup remain: no garbage collection needs to examine them again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        store = "PostgreSQL" if config.database_url is not None else str(config.data_dir)
        log.info("listening", url=url, version=__version__, store=store)
        _announce(ready_fd, url)
        await shutdown.wait()
        log.info("stopping")
        await http.stop(GRACE_SECONDS)
        if publishing is not None:
            publishing.cancel()
    log.info("stopped")


def _share_counts(metrics: Metrics, files: Sequence[int]) -> asyncio.Task[None] | None:
    """Make each worker report the counts of all workers, if there are any."""
    if not files:
        return None
    shared = SharedCounts(files, metrics.counts)
    metrics.of_all = shared.of_all
    return asyncio.create_task(shared.run())


def check_health(config: Config) -> str | None:
    """Ask the broker with these settings, on this machine, for its health. For container health checks.

    If it requires client certificates, `client_cert` is shown, or else the broker's own. Returns why it is unhealthy,
    or None.

    Raises:
        ConfigurationError: a certificate cannot be loaded.
    """
    connection = _to_itself(config)
    try:
        connection.request("GET", "/v1/health")
        status = connection.getresponse().status
        return None if status == HTTPStatus.OK else f"/v1/health is answered with {status}"
    except (OSError, http.client.HTTPException) as error:
        shown = f"; was shown {config.client_cert or config.tls_cert}" if config.tls_client_ca is not None else ""
        return f"{config.host[0]} port {config.port} does not answer: {error}{shown}"
    finally:
        connection.close()


def _to_itself(config: Config) -> http.client.HTTPConnection:
    """A connection to the first address that the broker listens on."""
    first = config.host[0]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)  # noqa: S104  # looked up, not bound
    context: ssl.SSLContext | None = None
    if config.tls_cert is not None:
        # The broker asks itself: the server on this machine's own port need not prove its identity.
        context = ssl._create_unverified_context()  # noqa: S323
        if config.tls_client_ca is not None:
            _show_certificate(context, config)
    if first.startswith(UNIX):
        return _AtPath(first.removeprefix(UNIX), context)
    if context is None:
        return http.client.HTTPConnection(host, config.port, timeout=HEALTH_SECONDS)
    return http.client.HTTPSConnection(host, config.port, timeout=HEALTH_SECONDS, context=context)


class _AtPath(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str, context: ssl.SSLContext | None) -> None:
        super().__init__("localhost", timeout=HEALTH_SECONDS)
        self._path = path
        self._context = context

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(HEALTH_SECONDS)
        self.sock.connect(self._path)
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock)


def _show_certificate(context: ssl.SSLContext, config: Config) -> None:
    if config.client_cert is None:
        certificate, key, prefix = config.tls_cert, config.tls_key, "AGENTWRIT_TLS"
    else:
        certificate, key, prefix = config.client_cert, config.client_key, "AGENTWRIT_CLIENT"
    try:
        context.load_cert_chain(certificate or "", key, "")  # no passphrase is prompted for
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"the certificate to show cannot be loaded ({error}): check {prefix}_CERT and {prefix}_KEY"
        ) from error


def tls_context(config: Config) -> ssl.SSLContext | None:
    """The TLS settings, or None without TLS.

    Raises:
        ConfigurationError: the certificate or a key cannot be loaded.
    """
    if config.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
        if config.tls_client_ca is not None:
            context.load_verify_locations(config.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the TLS certificate, key or client CA cannot be loaded ({error}):"
            " check AGENTWRIT_TLS_CERT, AGENTWRIT_TLS_KEY and AGENTWRIT_TLS_CLIENT_CA"
        ) from error
    return context


@contextlib.contextmanager
def listening(hosts: Sequence[str], port: int, setting: str) -> Iterator[Sequence[socket.socket]]:
    """Listening sockets, one for each address of each host, all on one port. `setting`: the setting that gave the port.

    A host `unix:/a/path` is a socket at that path, to which the process's group may connect. It is removed on exit.

    Raises:
        ConfigurationError: an address, the port or a path cannot be used.
    """
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        for host in hosts:
            if host.startswith(UNIX):
                path = Path(host.removeprefix(UNIX))
                listeners.append(stack.enter_context(_listen_at(path)))
                stack.callback(_remove, path, path.stat().st_ino)
                continue
            for listener in _listen_on(host, port, setting, with_ipv4="0.0.0.0" not in hosts):  # noqa: S104
                listeners.append(stack.enter_context(listener))
                port = port or listener.getsockname()[1]  # chosen by the system, and used for the others too
        for listener in listeners:
            listener.setblocking(False)
        yield listeners


def _listen_on(host: str, port: int, setting: str, *, with_ipv4: bool) -> Iterator[socket.socket]:
    """`with_ipv4`: whether `::` also stands for all IPv4 addresses."""
    error: OSError | None = None
    count = 0
    try:
        for family, _, _, _, location in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            is_dual = with_ipv4 and host == "::" and socket.has_dualstack_ipv6()
            try:
                listener = socket.create_server(
                    (location[0], port, *location[2:]), family=family, backlog=BACKLOG, dualstack_ipv6=is_dual
                )
            except OSError as missing:  # a name may have an address that this machine does not have
                if missing.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                error = missing
                continue
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # its connections inherit it
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)
            count += 1
            port = port or listener.getsockname()[1]
            yield listener
        if error is not None and not count:
            raise error
    except socket.gaierror as unknown:
        raise ConfigurationError(
            f"cannot listen on {host} ({unknown.strerror}): it is no address, and no name that is known here;"
            f" correct {setting.replace('PORT', 'HOST')}"
        ) from unknown
    except OSError as refusal:
        raise ConfigurationError(
            f"cannot listen on {host} port {port} ({refusal.strerror}):"
            f" stop whatever uses it, or set {setting} to another port"
        ) from refusal


def _listen_at(path: Path) -> socket.socket:
    """A Unix socket, in place of one that a dead process left."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket() and not _is_answered(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o660)  # nobody can connect yet
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {path} ({error.strerror or error}): stop whatever uses it, or set another path"
        ) from error
    return listener


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(HEALTH_SECONDS)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True


def _remove(path: Path, number: int) -> None:
    """Remove a socket file, if it is still this process's."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == number:
            path.unlink()


def url_of(config: Config, listeners: Sequence[socket.socket]) -> str:
    """The URL of the first of these sockets; for a Unix socket, its path."""
    scheme = "https" if config.tls_cert is not None else "http"
    of_network = [each for each in listeners if each.family != socket.AF_UNIX]
    if not of_network:
        return f"{UNIX}{listeners[0].getsockname()}"
    host, port = of_network[0].getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _announce(ready_fd: int | None, url: str) -> None:
    if ready_fd is not None:
        with os.fdopen(ready_fd, "w", encoding="ascii") as ready:
            ready.write(json.dumps({"url": url, "pid": os.getpid()}) + "\n")


def _raise_file_limit() -> None:
    """Raise the limit on open files to the maximum: the usual soft limit of 1024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
