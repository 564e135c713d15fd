"""The benchmarks run, and say what they measured. What they measure is for `make bench` to find out."""

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.__main__ import ALL, report
from benchmarks.load import parse
from benchmarks.measuring import Comparison, Series, in_turns
from benchmarks.plot import bars, shares

from benchmarks import cluster, holds, large, life, population, profile, revocation, sampling, scale, verify
from tests.support import SOAK, BrokerProcess

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "run",
    [
        partial(verify.run, rounds=1),
        partial(revocation.run, rounds=1),
        partial(life.run, rounds=1),
        partial(scale.past, rounds=1, many=500),
        partial(scale.ended, many=500, few=10, afterlife=25),
    ],
    ids=["verify", "revocation", "life", "past", "ended"],
)
def test_a_benchmark_compares_each_thing_with_its_floor(
    run: Callable[[], list[Comparison]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run()
    report("short", found, tmp_path)
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "short.json").read_text())
    for comparison, shown in zip(found, written["comparisons"], strict=True):
        assert comparison.title in printed
        assert comparison.subject.taken
        assert len(comparison.baseline.taken) > 0
        assert shown["ratio"] == pytest.approx(comparison.ratio, abs=0.001)
    assert (tmp_path / "short.svg").read_text() == bars(written["comparisons"])
    ElementTree.fromstring((tmp_path / "short.svg").read_text())


def test_a_store_that_was_filled_is_one_that_a_broker_serves(tmp_path: Path) -> None:
    tokens = population.run(tmp_path / "data", live=7, past=5, revoked=3, over_at=int(time.time()) + 60)
    with BrokerProcess(tmp_path / "data") as broker:
        assert all(broker.is_valid(token) for token in tokens)
        events = broker.events(limit=1000, agent_id=population.subject(1))
        assert [event["event_type"] for event in events] == ["agent_registered", "token_issued"]
    with sqlite3.connect(tmp_path / "data/agentwrit.db") as connection:
        [count] = connection.execute("SELECT count(*) FROM events WHERE detail LIKE 'as it happens: %'").fetchone()
        [revoked] = connection.execute("SELECT count(*) FROM revocations").fetchone()
    assert (count, revoked) == (2 * 7 + 3 * 5, 3)
    assert len(tokens) == 7


def test_what_is_large_is_ended_while_others_validate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "BASELINE_SECONDS", 0.2)
    found = large.once("tree", 300, "sqlite")
    assert found.ended == 300
    assert 0 < found.refused <= found.answered + found.longest + 1
    assert found.rate > 0
    assert "300 grants" in found.tell()


def test_what_holds_the_event_loop_is_told_of_each_kind_of_request() -> None:
    found = list(holds.run("sqlite", 20, rounds=1))
    assert len({hold.name for hold in found}) == len(found)
    for hold in found:
        assert hold.worked >= 0
        assert 0 < hold.least <= hold.most
        assert ("more than wanted" in hold.tell()) is (hold.least > holds.WANTED_SECONDS)


def test_what_the_generator_prints_is_read_and_errors_are_errors() -> None:
    load = parse("…\n=> 3000 1500000 20000 40000 0\n")
    assert (load.rate, load.p50, load.p99) == (2000, 0.02, 0.04)
    for printed in ("", "=> 3000 1500000 20000 40000 1\n", "=> 0 1500000 0 0 0\n"):
        with pytest.raises(RuntimeError):
            parse(printed)


def test_a_profile_says_where_the_time_of_each_request_goes(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(profile.measure(list(profile.OPERATIONS), count=64))
    printed = capsys.readouterr().out
    assert re.findall(r"^(\S+): \d+ µs under the profiler", printed, re.MULTILINE) == list(profile.OPERATIONS)
    assert printed.count("Ed25519, in C") >= 4


def test_no_validation_at_another_broker_is_stale(database_url: str) -> None:
    found = cluster.stale(database_url, 50 * SOAK)
    assert len(found.subject.taken) >= 50 * SOAK


def test_the_page_on_performance_names_all_benchmarks() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(ALL)


def test_the_pictures_on_the_page_are_drawn_from_the_figures_beside_them() -> None:
    pictures = re.findall(r"\]\(\.\./(benchmarks/results/\w+)\.svg\)", (ROOT / "docs/performance.md").read_text())
    assert {Path(picture).name for picture in pictures} == {*ALL, "profile"}
    for picture in pictures:
        figures = json.loads((ROOT / f"{picture}.json").read_text())
        draw = partial(shares, figures) if picture.endswith("profile") else partial(bars, figures["comparisons"])
        assert (ROOT / f"{picture}.svg").read_text() == draw()


def test_what_was_seen_of_a_broker_is_counted_by_part() -> None:
    main, commit = "thread (0x1): MainThread", "thread (0x2): sqlite-commit_0"
    seen = (
        f"{main};run (asyncio/runners.py:118);crypto_sign_open (nacl/bindings/crypto_sign.py:98) 7\n"
        f"{main};run (asyncio/runners.py:118) 3\n"
        f"{main};run (asyncio/runners.py:118);append (agentwrit/domain/audit.py:180) 2\n"
        f"{main};run (asyncio/runners.py:118);fullmatch (re.py:1) 1\n"
        f"{commit};_worker (concurrent/futures/thread.py:83);_commit (agentwrit/broker/storage/sqlite.py:1) 5\n"
        "thread (0x3): sqlite-read_0;_worker (concurrent/futures/thread.py:81) 9\n"
    )
    assert sampling.counted(seen) == {
        "Ed25519 (libsodium)": 7,
        "the event loop: polling, reading": 3,
        "domain: events": 2,
        sampling.REST: 1,
        sampling.COMMIT: 5,
    }


def test_quantiles_are_those_of_the_times() -> None:
    series = Series("x", [number / 1000 for number in range(1, 101)])
    assert series.p50 == pytest.approx(0.0505)
    assert series.p99 == 0.1


def test_two_things_are_timed_in_turns() -> None:
    done: list[str] = []
    batches = [[lambda: done.append("mine")] * 2] * 2, [[lambda: done.append("floor")]] * 2
    comparison = in_turns("t", ("mine", batches[0]), ("floor", batches[1]))
    assert done == ["mine", "mine", "floor"] * 2
    assert (len(comparison.subject.taken), len(comparison.baseline.taken)) == (4, 2)
