"""A real broker behaves as a few-line reference says, whatever is done to it, and a broker with a bug does not."""

import ast
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Final, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model import mutants, reference
from tests.model.machine import Machine
from tests.model.subject import Disagreement, MovableBroker, Outlived, Revived
from tests.support import SOAK

EVERYTHING = {
    *(f"depth {depth}" for depth in range(1, 6)),
    "too deep",
    "cut",
    "another app's",
    "retry",
    "theft",
    "renewed delegation",
    "used launch token",
    "cascade",
    "narrowed",
    "restarted with dead tokens",
    "looked",
}
"""What random histories have to come by to be worth anything."""

ATTEMPTS: Final = 8  # to come by all of that

D = TypeVar("D", bound=Disagreement)


def run(broker: MovableBroker, *, examples: int, phases: Sequence[Phase] = tuple(Phase), attempt: int = 0) -> set[str]:
    """Run histories: for each attempt the same ones each time, but in a soak others, by a seed that is printed.

    Returns what came about in them.
    """
    number = random.randrange(2**32) if SOAK > 1 else attempt
    print(f"seed {number}")
    limits = settings(
        max_examples=examples * SOAK,
        stateful_step_count=25,
        phases=phases,
        deadline=None,
        derandomize=SOAK == 1 and not attempt,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )

    @seed(number)
    class OfThisBroker(Machine):
        subject = broker
        reached: ClassVar[set[str]] = set()

    run_state_machine_as_test(OfThisBroker, settings=limits)
    return OfThisBroker.reached


def find(mutant: Callable[[], None], directory: Path, kind: type[D]) -> D:
    """How histories show that a bug was planted."""
    with MovableBroker(directory, mutant.__name__) as broker, pytest.raises(kind) as found:
        run(broker, examples=100, phases=[Phase.generate])
    return found.value


def test_a_broker_does_what_the_reference_says(tmp_path: Path) -> None:
    with MovableBroker(tmp_path) as broker:
        reached: set[str] = set()
        # What Hypothesis tries depends on the modules that are loaded, and so on the tests that ran before.
        for attempt in range(ATTEMPTS):
            if reached != EVERYTHING:
                reached |= run(broker, examples=17, attempt=attempt)
    assert reached == EVERYTHING


def test_an_ancestor_that_is_overlooked_is_found(tmp_path: Path) -> None:
    found = find(mutants.forget_the_second_ancestor, tmp_path, Revived)
    assert found.token
    first, second, *others = found.token.grant.lineage()
    assert second.is_dead()
    assert not first.is_dead()
    assert others
    assert not any(grant.is_ended for grant in others)


def test_a_delegation_that_is_cut_to_the_wrong_end_is_found(tmp_path: Path) -> None:
    found = find(mutants.cut_delegations_to_the_grants_end, tmp_path, Outlived)
    assert found.token
    assert found.token.grant.parent


def test_revocations_that_a_restart_loses_are_found(tmp_path: Path) -> None:
    found = find(mutants.start_without_revocations, tmp_path, Revived)
    assert found.step == "restart"


def test_the_reference_is_short_and_knows_nothing_of_the_broker() -> None:
    source = Path(reference.__file__).read_text(encoding="utf-8")
    lines = [line for line in source.splitlines() if line.strip()]
    assert len(lines) < 100
    imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "dataclasses"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(ast.parse(source)))
