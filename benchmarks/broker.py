"""A broker for a benchmark, with the settings that users run, and an app at it."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from agentwrit import AgentWritApp
from agentwrit.client.operator import OperatorClient


@contextlib.contextmanager
def running() -> Iterator[tuple[AgentWritApp, OperatorClient]]:
    """An app at a broker of its own, and the operator of that broker."""
    secret = secrets.token_hex(16)
    read_end, write_end = os.pipe()
    with tempfile.TemporaryDirectory(prefix="agentwrit-bench-") as directory:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AGENTWRIT_")}
        settings = {"AGENTWRIT_DATA_DIR": directory, "AGENTWRIT_ADMIN_SECRET": secret, "AGENTWRIT_PORT": "0"}
        process = subprocess.Popen(
            [sys.executable, "-m", "agentwrit.broker", "serve", "--ready-fd", str(write_end)],
            env={**clean, **settings},
            pass_fds=[write_end],
            stderr=subprocess.DEVNULL,
        )
        os.close(write_end)
        try:
            with os.fdopen(read_end) as ready:
                url = json.loads(ready.readline())["url"]
            with OperatorClient(url, secret) as operator:
                app = operator.register_app("bench", ["read:data:*", "write:data:*"])
                with AgentWritApp(url, app["client_id"], app["client_secret"]) as as_app:
                    yield as_app, operator
        finally:
            process.terminate()
            process.wait()
