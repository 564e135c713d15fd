"""A broker for a benchmark, with the settings that users run, and an app at it."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from agentwrit import AgentWritApp
from agentwrit.client import steps
from agentwrit.client.operator import OperatorClient
from agentwrit.client.secrecy import Secret

SCOPES = ["read:data:*", "write:data:*"]


@dataclass(frozen=True)
class Running:
    """A broker's process. `seconds_to_ready`: from its start to when it listened."""

    url: str
    pid: int
    seconds_to_ready: float
    app: AgentWritApp
    operator: OperatorClient
    operator_secret: str
    client_secret: str

    @property
    def rss(self) -> int:
        """The memory that it holds, in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def app_token(self) -> str:
        """A token of the app's own, as requests that were prepared beforehand need it."""
        login = steps.app_login(self.app.client_id, Secret(self.client_secret))
        return self.app._driver.run(login).access_token.reveal()

    def operator_token(self) -> str:
        """A token of the operator's, likewise."""
        return self.app._driver.run(steps.operator_login(Secret(self.operator_secret))).access_token.reveal()


@contextlib.contextmanager
def running(
    directory: Path | None = None,
    *,
    operator_secret: str = "",
    settings: Mapping[str, str] | None = None,
    module: Sequence[str] = ("agentwrit.broker",),
) -> Iterator[Running]:
    """A broker of its own, on the data in `directory`, or on none. `settings`: more of its environment.

    `operator_secret`: one that several brokers share; a new one if not given. `module`: what runs it, and what that
    takes before the broker's own arguments.
    """
    secret = operator_secret or secrets.token_hex(16)
    read_end, write_end = os.pipe()
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentwrit-bench-")))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AGENTWRIT_")}
        own = {"AGENTWRIT_DATA_DIR": str(directory), "AGENTWRIT_ADMIN_SECRET": secret, "AGENTWRIT_PORT": "0"}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *module, "serve", "--ready-fd", str(write_end)],
            env={**clean, **own, **(settings or {})},
            pass_fds=[write_end],
            stderr=subprocess.DEVNULL,
        )
        stack.callback(_end, process)
        os.close(write_end)
        with os.fdopen(read_end) as ready:
            url = json.loads(ready.readline())["url"]
        seconds_to_ready = time.perf_counter() - started
        operator = stack.enter_context(OperatorClient(url, secret))
        made = operator.register_app(f"bench-{secrets.token_hex(4)}", SCOPES)
        app = stack.enter_context(AgentWritApp(url, made["client_id"], made["client_secret"]))
        yield Running(url, process.pid, seconds_to_ready, app, operator, secret, made["client_secret"])


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()
