"""The benchmarks run, and say what they measured. What they measure is for `make bench` to find out."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks.__main__ import report
from benchmarks.measuring import Comparison, Series, in_turns

from benchmarks import life, revocation, verify


@pytest.mark.parametrize("run", [verify.run, revocation.run, life.run], ids=["verify", "revocation", "life"])
def test_a_benchmark_compares_each_thing_with_its_floor(
    run: Callable[..., list[Comparison]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(rounds=1)
    report("short", found, tmp_path)
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "short.json").read_text())
    for comparison, shown in zip(found, written["comparisons"], strict=True):
        assert comparison.title in printed
        assert comparison.subject.taken
        assert len(comparison.baseline.taken) > 0
        assert shown["ratio"] == pytest.approx(comparison.ratio, abs=0.001)
    ElementTree.fromstring((tmp_path / "short.svg").read_text())


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
