"""Agents created over 64 connections, durably: in one round trip, and registered in the last of three steps.

The floor is the sum of the parts without HTTP: the check of a signature, the same rows in the store's group commit for
64 callers at once, and the signing of a token. What is wanted is said for a machine whose bare ASGI echo makes 42,000
answers a second, so the echo stands beside it too.
"""

import asyncio
import base64
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import httpx2
from nacl.signing import SigningKey

from agentwrit.broker import stores
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap
from agentwrit.broker.services.issuing import TokenIssuer
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.storage.base import Row, Transaction
from agentwrit.client.exchange import HttpRequest
from agentwrit.client.secrecy import Secret
from agentwrit.domain import proof
from agentwrit.domain.grant import Grant
from agentwrit.domain.jws import is_signature
from benchmarks import echo
from benchmarks.broker import Running, running
from benchmarks.load import Generator, Load
from benchmarks.measuring import Comparison, Series
from benchmarks.population import EVENTS_OF_A_LIFE, new_grant, record

CONNECTIONS = 64
AGENTS_A_SECOND = 9_000  # more than can be created
SCOPE = ["read:data:1"]


def run(*, rounds: int = 3, seconds: int = 3) -> list[Comparison]:
    """`rounds` of `seconds` of each in turn. The series are mean seconds for each agent, and p99 of the waits."""
    at_once: list[Load] = []
    registered: list[Load] = []
    parts: list[Load] = []
    echoed: list[Load] = []
    with running() as broker, tempfile.TemporaryDirectory(prefix="agentwrit-bench-") as directory:
        url, token = f"{broker.url}/v1/agents", broker.app_token()
        [body] = bodies_in_one_trip(url, token, 1)
        answer = httpx2.post(url, content=body, headers={"authorization": f"Bearer {token}"})
        with echo.running(answer.headers, answer.text) as bare:
            same = Generator(bare, [body])
            for number in range(rounds):
                at_once.append(in_one_trip(broker, seconds).run(seconds=seconds, connections=CONNECTIONS))
                registered.append(_in_three_steps(broker, seconds))
                parts.append(asyncio.run(without_http(Config(data_dir=Path(directory, str(number))), seconds)))
                echoed.append(same.run(seconds=seconds, connections=CONNECTIONS))
    created = Series("POST /v1/agents", _each(at_once))
    launched = Series("POST /v1/register", _each(registered))
    floor = Series("the parts, without HTTP", _each(parts))
    least = Series("bare echo", _each(echoed))
    one_trip = f"an agent in one round trip, {CONNECTIONS} connections"
    registration = f"a registration with a launch token, {CONNECTIONS} connections"
    return [
        Comparison(
            f"{one_trip}, mean for each", created, floor, target="at most 250 µs, where the echo takes at most 24"
        ),
        Comparison(f"{one_trip}, beside an echo", created, least, target="ratio at most 10.5"),
        Comparison(
            f"the wait for it, p99 at {CONNECTIONS} connections",
            Series("POST /v1/agents", [load.p99 for load in at_once]),
            Series("the parts, without HTTP", [load.p99 for load in parts]),
            target="at most 40 ms",
        ),
        Comparison(
            f"{registration}, mean for each", launched, floor, target="at most 286 µs, where the echo takes at most 24"
        ),
        Comparison(f"{registration}, beside an echo", launched, least, target="ratio at most 12"),
    ]


def _each(loads: Sequence[Load]) -> list[float]:
    return [1 / load.rate for load in loads]


def following_task(number: int) -> str:
    """The name of a task as of one order after the other."""
    return f"order-{number:09}"


def random_task(_number: int) -> str:
    """The name of a task that is a UUID."""
    return secrets.token_hex(16)


def in_one_trip(broker: Running, seconds: int, *, task: Callable[[int], str] = following_task) -> Generator:
    """Requests that create agents, enough for so many seconds."""
    url, token = f"{broker.url}/v1/agents", broker.app_token()
    bodies = bodies_in_one_trip(url, token, AGENTS_A_SECOND * seconds, task=task)
    return Generator(url, bodies, headers={"authorization": f"Bearer {token}"}, is_repeatable=False)


def bodies_in_one_trip(url: str, token: str, count: int, *, task: Callable[[int], str] = following_task) -> list[str]:
    """What is posted to `url` with an app's token for so many agents, each once and within half a minute."""
    now = int(time.time())

    def body(number: int) -> str:
        key = SigningKey.generate()  # as each agent has one of its own
        public_key = bytes(key.verify_key)
        made = proof.make(
            lambda message: key.sign(message).signature,
            public_key,
            htm="POST",
            htu=url,
            iat=now,
            jti=secrets.token_hex(16),
            token=token,
        )
        return _body(task(number), public_key, agent_name="bench", max_ttl=300, proof=made)

    return [body(number) for number in range(count)]


def _in_three_steps(broker: Running, seconds: int) -> Load:
    """The third step, with bodies that the first two have prepared."""
    driver = broker.app._driver
    policy = {"agent_name": "bench", "allowed_scope": SCOPE, "max_ttl": 300, "single_use": False, "ttl": 600}
    launched = driver.send(HttpRequest("POST", "/v1/app/launch-tokens", json=policy, bearer=Secret(broker.app_token())))
    launch_token = json.loads(launched.body)["launch_token"]

    def body(number: int) -> str:
        key = SigningKey.generate()
        nonce = json.loads(driver.send(HttpRequest("GET", "/v1/challenge")).body)["nonce"]
        signature = base64.b64encode(key.sign(bytes.fromhex(nonce)).signature).decode()
        return _body(
            following_task(number), bytes(key.verify_key), launch_token=launch_token, nonce=nonce, signature=signature
        )

    bodies = [body(number) for number in range(AGENTS_A_SECOND * seconds)]
    url = f"{broker.url}/v1/register"
    return Generator(url, bodies, is_repeatable=False).run(seconds=seconds, connections=CONNECTIONS)


def _body(task: str, public_key: bytes, **more: object) -> str:
    key = base64.b64encode(public_key).decode()
    wanted = {"orch_id": "bench", "task_id": task, "requested_scope": SCOPE, "public_key": key}
    return json.dumps(wanted | more)


async def without_http(config: Config, seconds: int, callers: int = CONNECTIONS) -> Load:
    """The parts of creating agents for so many callers at once, in the store of these settings."""
    key = SigningKey.generate()
    message = os.urandom(500)  # as long as what a proof signs
    signature, public_key = key.sign(message).signature, bytes(key.verify_key)
    waits: list[float] = []
    async with stores.open_store(config) as (store, _, master_key):
        issuer = TokenIssuer(config, (await KeyRings.load(store, KeyWrap(master_key))).access_tokens)
        started = time.perf_counter()

        def create(nonce: bytes, transaction: Transaction) -> Grant:
            transaction.spend_nonce(nonce, int(transaction.now) + 60)
            grant = new_grant(issuer, len(waits), task_id=following_task(len(waits)))
            transaction.put(grant)
            record(transaction, grant, EVENTS_OF_A_LIFE[:2])
            return grant

        async def caller() -> None:
            while (begun := time.perf_counter()) < started + seconds:
                if not is_signature(signature, message, public_key):
                    raise RuntimeError("the signature is not one")
                nonce = os.urandom(32)
                issuer.token(await store.write(partial(create, nonce), reads=[Row("nonces", nonce)]), time.time())
                waits.append(time.perf_counter() - begun)

        await asyncio.gather(*(caller() for _ in range(callers)))
        taken = time.perf_counter() - started
    series = Series("waits", waits)
    return Load(rate=len(waits) / taken, p50=series.p50, p99=series.p99)
