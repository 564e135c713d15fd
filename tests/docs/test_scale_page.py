"""docs/scale.md shows what the model says, and the model says what can be."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.capacity import Figures, Size, cell_limit, changed, plan, validate_limit, writing

from benchmarks import queueing
from tests.docs.test_documentation import shown

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/scale.md").read_text()
FIGURES = Figures()


def test_the_page_shows_what_the_command_prints() -> None:
    [step] = shown(PAGE)
    program, *arguments = step.command.split()
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == step.output


def test_the_page_has_every_figure_and_where_it_is_from() -> None:
    rows = [
        f"| `{item.name}` | {getattr(FIGURES, item.name):g} {item.metadata['unit']} | {item.metadata['source']} |"
        for item in dataclasses.fields(Figures)
    ]
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert [row.replace("  ", " ") for row in rows] == [line.replace("  ", " ") for line in table]


def test_benchmarks_that_are_named_are_there() -> None:
    documented = (ROOT / "docs/performance.md").read_text()
    sources = {item.metadata["source"] for item in dataclasses.fields(Figures)}
    for named in {name for source in sources for name in re.findall("`(.+?)`", source)}:
        assert f"| `{named}` |" in documented


@pytest.mark.parametrize("brokers", [1, 3, 10])
def test_one_database_takes_no_more_than_its_order_allows(brokers: int) -> None:
    bound = 1e6 / FIGURES.unit_us
    assert writing(FIGURES, 0.5 * bound, brokers).refused == 0
    beyond = writing(FIGURES, 2 * bound, brokers)
    assert beyond.rate < bound
    assert beyond.refused > 0.3
    assert cell_limit(FIGURES, brokers) < bound


def test_a_batch_is_shared_by_all_who_wait() -> None:
    one_by_one = 1e6 / (FIGURES.unit_us + FIGURES.commit_us)
    assert cell_limit(FIGURES) > 3 * one_by_one


def test_the_barrier_costs_the_database_one_query_at_a_time() -> None:
    for rate in (10, 1_000, 10_000):
        waits, queries = queueing.validating(1, rate=rate, work=4e-5, barrier=1e-3, barrier_work=1e-4)
        assert queries <= 1_000
        assert queries <= rate * 1.2
        assert waits.p50 >= 1e-3  # nobody is answered by a query that began before


def test_more_is_served_by_more_and_a_cell_is_never_asked_for_more_than_it_can() -> None:
    units, validations = cell_limit(FIGURES), validate_limit(FIGURES)
    small, large = (plan(FIGURES, Size("x", agents, 1_000), units, validations) for agents in (10_000, 100_000))
    assert 8 < large.cells / small.cells < 12
    assert 2 * 100_000 / large.cells <= units * FIGURES.busy


def test_figures_of_ones_own_take_the_place_of_ours() -> None:
    assert changed(FIGURES, ["unit_us=100", "busy=0.5"]) == dataclasses.replace(FIGURES, unit_us=100, busy=0.5)
    assert cell_limit(changed(FIGURES, ["unit_us=100"])) > 3 * cell_limit(FIGURES)
    for wrong in ("nothing=1", "unit_us=0", "unit_us=nan", "unit_us=x", "unit_us"):
        with pytest.raises(ValueError, match=r".+"):
            changed(FIGURES, [wrong])


def test_where_nearly_nothing_is_asked_nearly_nothing_waits() -> None:
    waits, queries = queueing.validating(1, rate=0.001, work=1, barrier=1, barrier_work=1)
    assert (waits.p99, waits.rate, queries) == (0, 0, 0)
    assert queueing.writing(1, rate=0.001, brokers=1, unit=1, fixed=1).refused == 0


def test_the_same_seed_says_the_same() -> None:
    assert writing(FIGURES, 1_000, 3) == writing(FIGURES, 1_000, 3)
