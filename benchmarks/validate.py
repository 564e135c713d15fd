"""/v1/token/validate under load, against a bare ASGI echo of the same bytes under the same server.

The load comes from wrk, a compiled generator, over 32 connections.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2

from benchmarks.broker import running
from benchmarks.measuring import Comparison, Series

CONNECTIONS = 32


def run(*, rounds: int = 5, seconds: int = 3) -> list[Comparison]:
    """`rounds` of `seconds` of load on each in turn. The series are mean seconds for each request of a round."""
    if shutil.which("wrk") is None:
        raise SystemExit("benchmarks: wrk is needed: install it, for example with `apt-get install wrk`")
    mine: list[float] = []
    floor: list[float] = []
    with running() as (app, _), tempfile.TemporaryDirectory() as directory:
        token = app.create_agent("bench", "t", ["read:data:1"], max_ttl=3600).access_token
        url = f"{app.broker_url}/v1/token/validate"
        answer = httpx2.post(url, json={"token": token})
        script = Path(directory, "post.lua")
        body = json.dumps({"token": token})
        script.write_text(f"wrk.method='POST'\nwrk.body='{body}'\nwrk.headers['content-type']='application/json'\n")
        with _echo(answer) as echo:
            for _ in range(rounds):
                mine.append(1 / _rate(url, script, seconds))
                floor.append(1 / _rate(echo, script, seconds))
    title = f"validate a token seen before, {CONNECTIONS} connections, mean for each request"
    return [Comparison(title, Series("validate", mine), Series("bare echo", floor), target="ratio at most 1.33")]


def _rate(url: str, script: Path, seconds: int) -> float:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script), url]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in printed:
        raise RuntimeError(printed)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", printed)[1])  # type: ignore[index]  # wrk always says it


@contextlib.contextmanager
def _echo(answer: httpx2.Response) -> Iterator[str]:
    """A server of uvicorn's that answers everything with these bytes."""
    shown = {name: value for name, value in answer.headers.items() if name != "date"}
    program = [sys.executable, "-m", "benchmarks.echo", json.dumps(shown), answer.text]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("the echo has no output")
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
