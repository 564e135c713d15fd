"""Brokers that share a PostgreSQL database.

The floors: validating without the barrier is a broker on SQLite; creating without HTTP is the same rows in the same
batches through the same store; and what the server itself can do is pgbench, with the statements of such a batch.
"""

import asyncio
import contextlib
import json
import multiprocessing
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from tests import postgres

from agentwrit.broker.config import Config
from benchmarks.broker import SCOPES, Running, running
from benchmarks.create import CONNECTIONS, in_one_trip, without_http
from benchmarks.load import Generator
from benchmarks.measuring import Comparison, Series

MASTER_KEY = secrets.token_hex(32)
OPERATOR_SECRET = secrets.token_hex(16)
VALIDATING_CONNECTIONS = 128  # enough that some are served while others wait for the database
AGENTS_AT_ONCE = 50

# As a server is set up that is to lose nothing. Its size is that of a small one.
SETTINGS = ("shared_buffers=256MB", "max_connections=200")

# What a batch of new agents writes, with rows like those that are there: a transaction for CONNECTIONS of them.
_PREPARE = "CREATE SEQUENCE pgbench_events START 1000000000"
_OF_ONE = """\
INSERT INTO grants (sid, kind, app_id, ended_at, exp, subject, task_id, orch_id, jti, parent_sid, kid, body, mac)
 SELECT gen_random_uuid(), kind, app_id, ended_at, exp, subject || random(), task_id, orch_id, gen_random_uuid(),
 parent_sid, kid, body, mac FROM grants WHERE place = {place};
INSERT INTO nonces (nonce, expires_at) VALUES (decode(md5(random()::text), 'hex'), 0);
{event}{event}"""
_EVENT = """\
INSERT INTO events SELECT nextval('pgbench_events'), version, timestamp, event_type, outcome, detail, resource,
 principal, app_id, agent_id || random(), task_id, orch_id, sid, deleg_depth, deleg_chain_hash, client_address,
 request_id, trace_id, data, prev_hash, hash FROM events WHERE sequence = {sequence};
"""
_SCRIPT = """\
\\startpipeline
BEGIN;
SELECT state FROM cluster WHERE one = 1 FOR UPDATE;
{of_all}UPDATE cluster SET state = state WHERE one = 1;
COMMIT;
\\endpipeline
"""


def run(*, rounds: int = 3, seconds: int = 3, reads: int = 5_000) -> list[Comparison]:
    """`rounds` of `seconds` of each in turn, and so many `reads` that might be stale."""
    server = postgres.PostgresServer(SETTINGS)
    try:
        with postgres.database(server.url) as url:
            return [
                _validating(url, rounds, seconds),
                *_creating(server, url, rounds, seconds),
                stale(url, reads),
            ]
    finally:
        server.close()


@contextlib.contextmanager
def _member(url: str, *, workers: int = 1) -> Iterator[Running]:
    shared = {
        "AGENTWRIT_DATABASE_URL": url,
        "AGENTWRIT_MASTER_KEY": MASTER_KEY,
        "AGENTWRIT_WORKERS": str(workers),
    }
    with running(operator_secret=OPERATOR_SECRET, settings=shared) as broker:
        yield broker


def _validating(url: str, rounds: int, seconds: int) -> Comparison:
    taken: dict[str, list[float]] = {"on PostgreSQL, with the barrier": [], "on SQLite, without": []}
    with _member(url) as behind, running() as alone:
        generators = [_validations(broker) for broker in (behind, alone)]
        for _ in range(rounds):
            for generator, series in zip(generators, taken.values(), strict=True):
                series.append(1 / generator.run(seconds=seconds, connections=VALIDATING_CONNECTIONS).rate)
    behind_barrier, without = (Series(name, series) for name, series in taken.items())
    return Comparison(
        f"validate a token seen before, {VALIDATING_CONNECTIONS} connections, mean for each request",
        behind_barrier,
        without,
        target="ratio at most 1.25",
    )


def _validations(broker: Running) -> Generator:
    token = broker.app.create_agent("bench", "t", SCOPES).access_token
    return Generator(f"{broker.url}/v1/token/validate", [json.dumps({"token": token})])


def _creating(server: postgres.PostgresServer, url: str, rounds: int, seconds: int) -> list[Comparison]:
    names = ("one broker", "one broker of two workers", "three brokers")
    taken: dict[str, list[float]] = {name: [] for name in names}
    parts: dict[str, list[float]] = {name: [] for name in names}
    statements: list[float] = []
    for _ in range(rounds):
        taken[names[0]].append(_of_brokers(url, 1, seconds))
        taken[names[1]].append(_of_brokers(url, 1, seconds, workers=2))
        taken[names[2]].append(_of_brokers(url, 3, seconds))
        for name, processes in zip(names, (1, 2, 3), strict=True):
            parts[name].append(_of_parts(url, processes, seconds))
        statements.append(_by_pgbench(server, url, seconds))
    return [
        *(
            Comparison(
                f"an agent in one round trip by {name}, {CONNECTIONS} connections, mean for each",
                Series("POST /v1/agents", series),
                Series("the parts, without HTTP, by as many processes", parts[name]),
                target="ratio at most 2",
            )
            for name, series in taken.items()
        ),
        Comparison(
            "the rows of an agent, mean for each",
            Series("the parts, without HTTP", parts[names[0]]),
            Series(f"pgbench, {CONNECTIONS} agents in a pipeline", statements),
            target="none is set",
        ),
    ]


def _of_brokers(url: str, count: int, seconds: int, *, workers: int = 1) -> float:
    """Mean seconds for each agent when so many brokers create them at once."""
    with contextlib.ExitStack() as stack:
        brokers = [stack.enter_context(_member(url, workers=workers)) for _ in range(count)]
        generators = [in_one_trip(broker, seconds) for broker in brokers]
        with ThreadPoolExecutor(count) as pool:
            loads = pool.map(lambda each: each.run(seconds=seconds, connections=CONNECTIONS // count), generators)
            rate: float = sum(load.rate for load in loads)
            return 1 / rate


def _of_parts(url: str, processes: int, seconds: int) -> float:
    """Mean seconds for each agent when so many processes write them at once, in batches like those of brokers."""
    config = Config(database_url=url, master_key=MASTER_KEY)
    context = multiprocessing.get_context("spawn")
    all_there = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, initializer=all_there.wait) as pool:
        rates = [pool.submit(_rate, config, seconds, CONNECTIONS // processes) for _ in range(processes)]
        return 1 / sum(rate.result() for rate in rates)


def _rate(config: Config, seconds: int, callers: int) -> float:
    return asyncio.run(without_http(config, seconds, callers)).rate


def _by_pgbench(server: postgres.PostgresServer, url: str, seconds: int) -> float:
    """Mean seconds for each agent when pgbench writes such rows, one batch after the other."""
    [(place, sequence)] = postgres.ask(url, "SELECT max(place), (SELECT max(sequence) FROM events) FROM grants")
    postgres.ask(url, "DROP SEQUENCE IF EXISTS pgbench_events")
    postgres.ask(url, _PREPARE)
    script = server.directory / "batch.sql"
    of_one = _OF_ONE.format(place=place, event=_EVENT.format(sequence=sequence))
    script.write_text(_SCRIPT.format(of_all=CONNECTIONS * of_one))
    command = ["-n", "-c1", f"-T{seconds}", "-Mextended", f"-f{script}", url]
    done = subprocess.run([postgres.binaries() / "pgbench", *command], capture_output=True, text=True, check=True)
    postgres.ask(url, "DELETE FROM events WHERE sequence >= 1000000000")
    postgres.ask(url, "DELETE FROM tallies WHERE last >= 1000000000")
    found = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pgbench said nothing of what it found: {done.stdout}")
    return 1 / float(found[1]) / CONNECTIONS


def stale(url: str, reads: int) -> Comparison:
    """Validate each token at one broker as soon as another one has answered that it was released.

    Raises:
        RuntimeError: one was valid still.
    """
    at_another: list[float] = []
    at_the_same: list[float] = []
    with _member(url) as first, _member(url) as second:
        while len(at_another) < reads:
            for asked, taken in ((second, at_another), (first, at_the_same)):
                taken += [_refused(first, asked) for _ in range(AGENTS_AT_ONCE)]
    return Comparison(
        f"{len(at_another):,} validations right after a release was answered, none of them stale",
        Series("at another broker", at_another),
        Series("at the same", at_the_same),
        target="none is stale",
    )


def _refused(first: Running, asked: Running) -> float:
    """How long it takes to learn at one broker what has ended at another."""
    agent = first.app.create_agent("bench", "t", SCOPES)
    if not asked.app.validate(agent.access_token).valid:
        raise RuntimeError("a live token was refused")
    agent.release()
    started = time.perf_counter()
    if asked.app.validate(agent.access_token).valid:
        raise RuntimeError("a token was valid after its release had been answered")
    return time.perf_counter() - started
