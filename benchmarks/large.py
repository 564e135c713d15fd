"""Ending what is large: how long it takes, and what everybody else notices of it.

`python -m benchmarks.large --by task --agents 10000 --store sqlite` ends that many grants once, and prints what was
found. Beside it, validations by a few connections that ask as fast as they are answered.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx2
import msgspec
from tests import postgres

from agentwrit.broker import stores
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap
from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.issuing import TokenIssuer, holder
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import delegation
from agentwrit.domain.audit import EventType
from agentwrit.domain.grant import Grant, GrantKind
from benchmarks.broker import Running, running
from benchmarks.held import Held

TASK: Final = "large"
TTL_SECONDS: Final = 3600
IN_A_UNIT: Final = 250
BRANCHES: Final = 6  # of a tree: with five levels below the root that is 9,330 delegations
BASELINE_SECONDS: Final = 3.0
WAYS: Final = ("task", "app", "key", "tree", "operator")
SETTINGS: Final = ("shared_buffers=256MB", "max_connections=200")


class Load(NamedTuple):
    """Who validates meanwhile: so many connections, with so many seconds between an answer and the next request."""

    connections: int
    pause: float


LOADS: Final = {"full": Load(4, 0.0), "probe": Load(1, 0.005)}


@dataclass(frozen=True)
class Found:
    """What an ending took and cost. Times in seconds, rates in answers a second."""

    ended: int
    answered: float
    refused: float
    held: float
    held_before: float
    longest: float
    longest_before: float
    rate: float
    rate_before: float

    def tell(self) -> str:
        return (
            f"{self.ended} grants: answered after {self.answered:.2f} s, the first refusal after {self.refused:.3f} s,"
            f" the loop held for {self.held * 1e3:.1f} ms ({self.held_before * 1e3:.1f} before),"
            f" a validation {self.longest * 1e3:.1f} ms ({self.longest_before * 1e3:.1f} before),"
            f" {self.rate:.0f} a second ({self.rate / self.rate_before:.2f} of before)"
        )


def once(by: str, agents: int, store: str, load: Load = LOADS["full"]) -> Found:
    """End this many grants by the task, app, key, root or operator that they have in common."""
    with place(store) as (directory, settings), tempfile.NamedTemporaryFile() as shared:
        secret = secrets.token_hex(16)
        with running(directory, operator_secret=secret, settings=settings) as broker:
            app_id = next(each["app_id"] for each in broker.operator.list_apps()["apps"])
            if by == "operator":
                broker.operator.add_operator("large")
        config = Config(
            data_dir=directory,
            master_key=settings["AGENTWRIT_MASTER_KEY"],
            database_url=settings.get("AGENTWRIT_DATABASE_URL"),
        )
        tokens = asyncio.run(fill(config, app_id, by, agents))
        held = Held.make(Path(shared.name))
        module = ("benchmarks.held", shared.name)
        with running(directory, operator_secret=secret, settings=settings, module=module) as broker:
            return _measure(broker, by, app_id, tokens, held, load)


@contextlib.contextmanager
def place(store: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Where a broker keeps what it has, and the settings that say so."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentwrit-bench-")))
        settings = {"AGENTWRIT_MASTER_KEY": secrets.token_hex(32)}
        if store == "postgres":
            server = postgres.PostgresServer(SETTINGS)
            stack.callback(server.close)
            settings["AGENTWRIT_DATABASE_URL"] = stack.enter_context(postgres.database(server.url))
        yield directory, settings


async def fill(config: Config, app_id: str, by: str, agents: int) -> list[str]:
    """Make grants that have one thing in common. Returns the tokens of the first and of the last."""
    async with stores.open_store(config) as (store, _, master_key):
        rings = await KeyRings.load(store, KeyWrap(master_key))
        issuer = TokenIssuer(config, rings.access_tokens)
        app = await store.read(lambda snapshot: snapshot.app(app_id))
        made: list[Grant] = []

        def agent(number: int, now: float, born: int) -> Grant:
            agent_id = f"spiffe://agentwrit.local/agent/bench/{TASK}/{number:016x}"
            grant = issuer.new_grant(
                GrantKind.AGENT, agent_id, ["read:data:1"], ttl=TTL_SECONDS, now=now, born=born, app=app
            )
            return msgspec.structs.replace(grant, orch_id="bench", task_id=TASK, agent_name="bench")

        def new_one(now: float, born: int) -> Grant:
            if by == "operator":
                grant = issuer.new_grant(GrantKind.OPERATOR, "admin", ["admin:a:*"], ttl=3600, now=now, born=born)
                return msgspec.structs.replace(grant, operator="large")
            if by != "tree" or not made:
                return agent(len(made), now, born)
            parent, ends_at = made[(len(made) - 1) // BRANCHES], int(now) + TTL_SECONDS
            return issuer.delegated(parent, made[0], ["read:data:1"], ends_at=ends_at, now=now, born=born)

        def unit(transaction: Transaction) -> None:
            for _ in range(min(IN_A_UNIT, agents - len(made))):
                grant = new_one(transaction.now, transaction.head.sequence)
                made.append(grant)
                transaction.put(grant)
                data: EventData = {"jti": grant.jti, "exp": grant.exp}
                transaction.record(Caller().event(EventType.TOKEN_ISSUED, **holder(grant), data=data))

        while len(made) < agents:
            await store.write(unit)
        if by == "tree":
            assert len(made[-1].chain) <= delegation.MAX_DEPTH
        return [issuer.token(grant, grant.iat).access_token for grant in (made[0], made[-1])]


def _measure(broker: Running, by: str, app_id: str, tokens: Sequence[str], held: Held, load: Load) -> Found:
    first, last = tokens
    other = broker.app.create_agent("bench", "other", ["read:data:1"]).access_token
    bearer = {"authorization": f"Bearer {broker.operator_token()}"}
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    validating = context.Process(target=_validate, args=(broker.url, other, theirs, load), daemon=True)
    validating.start()
    mine.recv()  # it has connected
    time.sleep(BASELINE_SECONDS / 3)  # until it is warm
    held.reset()
    since = time.monotonic()
    time.sleep(BASELINE_SECONDS)
    held_before = held.seconds
    refused = threading.Thread(target=lambda: refusals.append(_until_refused(broker.url, last)))
    refusals: list[float] = []
    with httpx2.Client(base_url=broker.url, timeout=600, trust_env=False) as http:
        http.get("/livez")
        refused.start()
        held.reset()
        begun = time.monotonic()
        answer = _ask(http, by, app_id, first, bearer)
        done = time.monotonic()
        held_while = held.seconds
        assert answer.status_code in (200, 204), answer.text
        mine.send(None)
        validating_found = mine.recv()
        validating.join()
        refused.join()
        ended = sum(
            int(http.get("/v1/audit/events", params={"event_type": name, "limit": "1"}, headers=bearer).json()["total"])
            for name in ("token_revoked", "token_released")
        )
    before = [taken for at, taken in validating_found if since <= at - taken and at <= begun]
    during = [taken for at, taken in validating_found if begun <= at and at - taken <= done]
    return Found(
        ended=ended,
        answered=done - begun,
        refused=refusals[0] - begun,
        held=held_while,
        held_before=held_before,
        longest=max(during, default=0.0),
        longest_before=max(before),
        rate=len(during) / (done - begun),
        rate_before=len(before) / (begun - since),
    )


def _ask(http: httpx2.Client, by: str, app_id: str, token: str, bearer: dict[str, str]) -> httpx2.Response:
    match by:
        case "task":
            return http.post("/v1/revoke", json={"level": "task", "target": TASK}, headers=bearer)
        case "app":
            return http.post(f"/v1/admin/apps/{app_id}/suspend", headers=bearer)
        case "tree":
            return http.post("/v1/token/release", headers={"authorization": f"Bearer {token}"})
        case "operator":
            return http.delete("/v1/admin/operators/large", headers=bearer)
        case _:
            keys = http.get("/v1/admin/keys", headers=bearer).json()["keys"]
            [kid] = [key["kid"] for key in keys if (key["purpose"], key["state"]) == ("access_token", "active")]
            return http.post(f"/v1/admin/keys/{kid}/revoke", json={"reason": "r"}, headers=bearer)


def _request(url: str, token: str) -> bytes:
    body = json.dumps({"token": token}).encode()
    host = url.removeprefix("http://")
    head = f"POST /v1/token/validate HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _answer(connection: socket.socket) -> bytes:
    """The next answer, which comes in one piece: it is a small one."""
    answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return answer


def _until_refused(url: str, token: str) -> float:
    """When a token was refused at last."""
    ask = _request(url, token)
    with _connect(url) as connection:
        while True:
            connection.sendall(ask)
            if b'"valid":false' in _answer(connection):
                return time.monotonic()
            time.sleep(0.002)


def _validate(url: str, token: str, pipe: Any, load: Load) -> None:
    """Validate a token until told to stop. Tells when each answer came, and what it took."""
    ask = _request(url, token)
    found: list[tuple[float, float]] = []
    is_over = threading.Event()

    async def asking() -> None:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        while not is_over.is_set():
            sent = time.monotonic()
            writer.write(ask)
            answer = await reader.read(65536)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            now = time.monotonic()
            found.append((now, now - sent))
            if load.pause:
                await asyncio.sleep(load.pause)

    async def all_of_them() -> None:
        await asyncio.gather(*(asking() for _ in range(load.connections)))

    asker = threading.Thread(target=lambda: asyncio.run(all_of_them()))
    asker.start()
    pipe.send(None)
    pipe.recv()
    is_over.set()
    asker.join()
    pipe.send(found)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description="End what is large.")
    parser.add_argument("--by", choices=WAYS, action="append", help="what they have in common; each if not given")
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--store", choices=("sqlite", "postgres"), action="append", help="both if not given")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--load", choices=LOADS, default="full", help="validations as fast as they can, or a probe")
    given = parser.parse_args()
    for store in given.store or ("sqlite", "postgres"):
        for by in given.by or WAYS:
            for _ in range(given.rounds):
                started = time.perf_counter()
                for _ in range(5_000_000):
                    pass
                slowness = time.perf_counter() - started
                agents = min(given.agents, 9_331) if by == "tree" else given.agents
                found = once(by, agents, store, LOADS[given.load]).tell()
                print(f"{store}, by {by} (an empty loop of 5,000,000: {slowness:.2f} s): {found}", flush=True)


if __name__ == "__main__":
    main()
