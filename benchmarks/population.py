"""Stores that have seen a great many agents: written through the store's own port, as a broker would have, only faster.

`python -m benchmarks.population DIRECTORY --live N --past N --revoked N` fills a data directory and prints, as JSON,
some of the tokens that hold.
"""

import argparse
import asyncio
import hashlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from agentwrit.broker import stores
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.issuing import TokenIssuer, holder
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain.audit import EventType
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.revocation import Revocation, RevocationKind

AT_ONCE = 250  # agents in a unit of work
TTL_SECONDS = 3600
SPREAD_SECONDS = 5  # over which the last tokens end
EVENTS_OF_A_LIFE = (EventType.AGENT_REGISTERED, EventType.TOKEN_ISSUED, EventType.TOKEN_RELEASED)

_CALLER = Caller(address="192.0.2.1", route="POST /v1/agents", request_id="0" * 32)


def task(number: int) -> str:
    """The task of the agent of this number. As with UUIDs, no task's name stands beside that of the one before."""
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def subject(number: int, task_id: str | None = None) -> str:
    """The SPIFFE id of the agent of this number."""
    return f"spiffe://agentwrit.local/agent/bench/{task_id or task(number)}/{number:016x}"


def new_grant(issuer: TokenIssuer, number: int, *, born: int = 0, task_id: str | None = None) -> Grant:
    """The grant of the agent of this number, whose task is its own, or this one."""
    agent_id = subject(number, task_id)
    grant = issuer.new_grant(GrantKind.AGENT, agent_id, ["read:data:1"], ttl=TTL_SECONDS, now=time.time(), born=born)
    return msgspec.structs.replace(grant, orch_id="bench", task_id=task_id or task(number), agent_name="bench")


def record(transaction: Transaction, grant: Grant, events: tuple[EventType, ...]) -> None:
    """The events of an agent's life, or of its beginning."""
    for event_type in events:
        data: dict[str, str | int | list[str]] = {"jti": grant.jti, "scope": list(grant.scope), "exp": grant.exp}
        transaction.record(_CALLER.event(event_type, detail="as it happens", **holder(grant), data=data))


async def populate(directory: Path, *, live: int, past: int, revoked: int, over_at: int, wanted: int) -> list[str]:
    """Fill a store with agents that live, with events of those that came and went, and with revocations of others.

    `over_at`: when no token can meet those any more (Unix seconds). Returns `wanted` tokens that hold, or a few more.
    """
    tokens: list[str] = []
    async with stores.open_store(Config(data_dir=directory)) as (store, _, master_key):
        rings = await KeyRings.load(store, KeyWrap(master_key))
        issuer = TokenIssuer(Config(data_dir=directory), rings.access_tokens)
        for numbers in _batches(_as_if_at_random(0, live)):
            grants = [new_grant(issuer, number) for number in numbers]
            await store.write(partial(_begin, grants))
            if len(tokens) < wanted:
                tokens += [issuer.token(grant, time.time()).access_token for grant in grants]
        for numbers in _batches(_as_if_at_random(live, past)):
            grants = [new_grant(issuer, number) for number in numbers]
            await store.write(partial(_pass, grants))
        for numbers in _batches(range(revoked)):
            await store.write(partial(_revoke, numbers, over_at))
    return tokens


def _batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), AT_ONCE):
        yield numbers[start : start + AT_ONCE]


def _as_if_at_random(first: int, count: int) -> list[int]:
    """So many numbers, in an order that leaves indexes of their tasks as an order at random would, only sooner.

    Rows that are put in order fill whole pages; a third as many, once more in order, split each, into two of which as
    much is free as there is after a long time.
    """
    numbers = range(first, first + count)
    most = count * 3 // 4
    return sorted(numbers[:most], key=task) + sorted(numbers[most:], key=task)


def _begin(grants: list[Grant], transaction: Transaction) -> None:
    for grant in grants:
        transaction.put(grant)
        record(transaction, grant, EVENTS_OF_A_LIFE[:2])


def _pass(grants: list[Grant], transaction: Transaction) -> None:
    for grant in grants:
        record(transaction, grant, EVENTS_OF_A_LIFE)


def _revoke(numbers: Sequence[int], over_at: int, transaction: Transaction) -> None:
    for number in numbers:
        last_exp = over_at - number % SPREAD_SECONDS
        at = int(transaction.now)
        transaction.revoke(
            Revocation(kind=RevocationKind.GRANT, id=secrets.token_hex(16), effective_at=at, last_exp=last_exp)
        )


def run(
    directory: Path,
    *,
    live: int = 0,
    past: int = 0,
    revoked: int = 0,
    over_at: int = 0,
    wanted: int | None = None,
) -> list[str]:
    """As `populate`, in a process of its own, which leaves no memory behind."""
    counts = {"live": live, "past": past, "revoked": revoked, "over-at": over_at}
    counts["tokens"] = live if wanted is None else wanted
    given = [f"--{name}={count}" for name, count in counts.items()]
    command = [sys.executable, "-m", "benchmarks.population", str(directory), *given]
    tokens: list[str] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.population", description="Fill a data directory.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--live", type=int, default=0, help="agents that are alive")
    parser.add_argument("--past", type=int, default=0, help="agents that have ended, three events each")
    parser.add_argument("--revoked", type=int, default=0, help="revocations that a token can still meet")
    parser.add_argument("--over-at", type=int, default=0, help="until then, in Unix seconds")
    parser.add_argument("--tokens", type=int, default=0, help="how many tokens to print, at least")
    given = parser.parse_args()
    print(
        json.dumps(
            asyncio.run(
                populate(
                    given.directory,
                    live=given.live,
                    past=given.past,
                    revoked=given.revoked,
                    over_at=given.over_at,
                    wanted=given.tokens,
                )
            )
        )
    )


if __name__ == "__main__":
    main()
