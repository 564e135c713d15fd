"""Where the time of a request goes: `python -m benchmarks.profile [NAME…]`.

A broker in this process, over SQLite, is asked by 64 callers at once, without HTTP below ASGI, under cProfile. What is
printed is the time of each part for one request, and how many function calls it makes there. The profiler makes calls
look dearer than they are, and leaves what runs in C alone: the shares are for finding out where to look.
"""

import argparse
import asyncio
import base64
import cProfile
import io
import json
import os
import pstats
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from nacl.signing import SigningKey

from agentwrit.broker import bootstrap, logs, stores
from agentwrit.broker.config import Config
from agentwrit.broker.http.edge import Edge
from agentwrit.broker.http.exchange import Pieces
from agentwrit.broker.http.http1 import Scope
from agentwrit.broker.keystore import SIGNED_REMEMBERED
from agentwrit.broker.services.operators import set_secret
from agentwrit.domain import proof

CALLERS = 64
COUNT = 3_000
SCOPE = ["read:data:1"]

PARTS = {
    "_sodium": "Ed25519, in C",
    "sqlite3": "SQLite, in C",
    "domain/proof": "domain: proofs",
    "domain/jws": "domain: tokens",
    "domain/claims": "domain: tokens",
    "domain/audit": "domain: events",
    "domain/": "domain: the rest",
    "broker/storage": "storage",
    "broker/services": "services",
    "broker/http": "the edge",
    "structlog": "the log",
    "broker/logs": "the log",
    "TextIOWrapper": "the log",
    "msgspec": "JSON",
    "json": "JSON",
    "nacl": "PyNaCl",
}


class Asked:
    """The broker, asked as its server asks it."""

    def __init__(self, app: Edge) -> None:
        self._app = app

    async def post(self, path: str, body: object, token: str | None = None) -> dict[str, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        headers = [(b"host", b"broker"), (b"content-length", str(len(content)).encode())]
        if token is not None:
            headers.append((b"authorization", f"Bearer {token}".encode()))
        return await self.send(path, content, headers)

    async def send(self, path: str, content: bytes, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
        scope = Scope(
            http_version="1.1",
            method="POST",
            scheme="http",
            path=path,
            query_string=b"",
            headers=headers,
            client=("127.0.0.1", 5),
            server=("broker", 80),
        )
        reply = _Kept()
        task = self._app.start(scope, content, reply, asyncio.get_running_loop())
        if task is not None:
            await task
        if reply.status >= 400:
            raise RuntimeError(reply.body.decode())
        return dict(json.loads(reply.body or b"{}"))


class _Kept:
    """An answer."""

    def __init__(self) -> None:
        self.status, self.body = 0, b""

    def send(self, status: int, head: bytes, body: bytes, *, is_last: bool) -> None:
        self.status, self.body = status, body

    async def stream(self, status: int, head: bytes, first: bytes, rest: Pieces) -> None:
        raise NotImplementedError  # none of what is profiled


async def profiled(calls: Iterable[Callable[[], Awaitable[object]]]) -> pstats.Stats:
    """The profile of these calls, made by many callers at once."""
    waiting: Iterator[Callable[[], Awaitable[object]]] = iter(calls)

    async def caller() -> None:
        for call in waiting:
            await call()

    profile = cProfile.Profile()
    profile.enable()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    profile.disable()
    return pstats.Stats(profile, stream=io.StringIO())


async def measure(names: list[str], count: int = COUNT) -> None:
    """Profile `count` requests of each kind, and print what was found."""
    with tempfile.TemporaryDirectory(prefix="agentwrit-bench-") as directory:
        config, secret = Config(data_dir=Path(directory)), secrets.token_hex(16)
        async with stores.open_store(config) as (store, clock, master_key):
            await set_secret(store, secret)
            async with bootstrap.open_on(
                store, clock, config, master_key, is_draining=lambda: False, is_stopping=lambda: False
            ) as broker:
                ask = Asked(broker.app)
                operator = (await ask.post("/v1/admin/auth", {"secret": secret}))["access_token"]
                app = await ask.post("/v1/admin/apps", {"name": "bench", "scopes": ["read:data:*"]}, operator)
                login = {name: app[name] for name in ("client_id", "client_secret")}
                token = (await ask.post("/v1/app/auth", login))["access_token"]
                found = {name: await OPERATIONS[name](ask, token, count) for name in names}
    for name, stats in found.items():
        show(name, stats, count)


async def _created(ask: Asked, token: str, count: int) -> list[str]:
    """Tokens that the broker made, and does not know any more as its own without a look at their signatures."""
    bodies = _bodies(token, count + SIGNED_REMEMBERED)
    return [(await ask.post("/v1/agents", body, token))["access_token"] for body in bodies][:count]


def _bodies(token: str, count: int) -> list[dict[str, Any]]:
    key = SigningKey.generate()
    public_key, now = bytes(key.verify_key), int(time.time())

    def body(number: int) -> dict[str, Any]:
        made = proof.make(
            lambda message: key.sign(message).signature,
            public_key,
            htm="POST",
            htu="http://broker/v1/agents",
            iat=now,
            jti=secrets.token_hex(16),
            token=token,
        )
        return {
            "orch_id": "bench",
            "task_id": f"t-{number}",
            "requested_scope": SCOPE,
            "public_key": base64.b64encode(public_key).decode(),
            "proof": made,
        }

    return [body(number) for number in range(count)]


async def create(ask: Asked, token: str, count: int) -> pstats.Stats:
    return await profiled([partial(ask.post, "/v1/agents", body, token) for body in _bodies(token, count)])


async def renew(ask: Asked, token: str, count: int) -> pstats.Stats:
    held = await _created(ask, token, count)
    return await profiled([partial(ask.post, "/v1/token/renew", None, agent) for agent in held])


async def release(ask: Asked, token: str, count: int) -> pstats.Stats:
    held = await _created(ask, token, count)
    return await profiled([partial(ask.post, "/v1/token/release", None, agent) for agent in held])


async def validate_new(ask: Asked, token: str, count: int) -> pstats.Stats:
    held = await _created(ask, token, count)
    return await profiled([partial(ask.post, "/v1/token/validate", {"token": agent}) for agent in held])


async def validate_seen(ask: Asked, token: str, count: int) -> pstats.Stats:
    [agent] = await _created(ask, token, 1)
    return await profiled([partial(ask.post, "/v1/token/validate", {"token": agent})] * count)


OPERATIONS = {
    "create": create,
    "renew": renew,
    "release": release,
    "validate-new": validate_new,
    "validate-seen": validate_seen,
}


def show(name: str, stats: pstats.Stats, requests: int) -> None:
    """Print where the time went, by part."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    entries: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = stats.stats  # type: ignore[attr-defined]
    for (file, _, function), (_, count, own, _, _) in entries.items():
        place = f"{file} {function}"
        if __file__ in place:
            continue
        part = next((part for mark, part in PARTS.items() if mark in place), "Python and its libraries")
        seconds[part] += own
        calls[part] += count
    total = sum(seconds.values())
    print(f"{name}: {total / requests * 1e6:.0f} µs under the profiler, {sum(calls.values()) / requests:.0f} calls")
    for part in sorted(seconds, key=seconds.__getitem__, reverse=True):
        share = seconds[part] / total
        print(
            f"  {part:26} {share:5.0%}  {seconds[part] / requests * 1e6:7.1f} µs  {calls[part] / requests:6.1f} calls"
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description="Where a request's time goes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which requests: {', '.join(OPERATIONS)}")
    names = parser.parse_args().names or list(OPERATIONS)
    unknown = set(names) - set(OPERATIONS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # the log goes somewhere, as it would
    logs.configure(level="info", log_format="console")
    uvloop.run(measure(names))


if __name__ == "__main__":
    main()
