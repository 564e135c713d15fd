"""HAProxy in front of a database and its brokers: to the server that takes writes, and to brokers that are ready."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from tests import postgres
from tests.proxies import program
from tests.raw_http import SECONDS
from tests.support import SOAK

IS_DEMANDED: Final = sys.platform == "linux" or SOAK > 1  # elsewhere no package has it

# A session of a client that trusts: whether it is a standby is a row of one column, `t` or `f`.
_START: Final = b"\0\3\0\0user\0" + postgres.USER.encode("ascii") + b"\0database\0postgres\0\0"
_QUERY: Final = b"SELECT pg_is_in_recovery()\0"
_PRIMARY: Final = b"D" + (11).to_bytes(4) + (1).to_bytes(2) + (1).to_bytes(4) + b"f"

_CONFIGURATION: Final = f"""
defaults
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout check 3s

listen database
    mode tcp
    bind 127.0.0.1:{{database}}
    option tcp-check
    tcp-check send-binary {((len(_START) + 4).to_bytes(4) + _START).hex()}
    tcp-check expect binary {b"Z".hex()}
    tcp-check send-binary {(b"Q" + (len(_QUERY) + 4).to_bytes(4) + _QUERY).hex()}
    tcp-check expect binary {_PRIMARY.hex()}
    default-server check inter 300ms fall 2 rise 1 on-marked-down shutdown-sessions
{{servers}}

listen brokers
    mode http
    bind 127.0.0.1:{{front}}
    option forwardfor
    option httpchk GET /readyz
    default-server check inter 1s pool-purge-delay 10s
{{brokers}}
"""


class Proxy:
    """One that runs. `database`: the port that leads to the primary; `url`: leads to brokers."""

    def __init__(self, directory: Path, servers: Sequence[int], brokers: Sequence[str]) -> None:
        self.database, front = postgres.free_port(), postgres.free_port()
        self.url = f"http://127.0.0.1:{front}"
        configuration = directory / "haproxy.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                database=self.database,
                front=front,
                servers="\n".join(f"    server db-{port} 127.0.0.1:{port}" for port in servers),
                brokers="\n".join(f"    server at-{urlsplit(url).port} {urlsplit(url).netloc}" for url in brokers),
            )
        )
        with (directory / "haproxy.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(program("haproxy")), "-db", "-f", str(configuration)], stdout=log, stderr=log
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
