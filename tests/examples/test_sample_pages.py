"""Each sample app is the program on its page, and prints what the page shows."""

import pytest

from agentwrit.cli.dev import SAMPLE_CEILING
from tests.examples.samples import SAMPLES, ceiling, command, page, program, run
from tests.pages import blocks, check_printed


@pytest.mark.parametrize("name", SAMPLES)
def test_it_prints_what_its_page_shows(name: str) -> None:
    done = run(command(name))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    shown = blocks(page(name))[-1]
    check_printed(done.stdout.splitlines(), shown.splitlines(), name)


@pytest.mark.parametrize("name", SAMPLES)
def test_its_page_shows_the_whole_program(name: str) -> None:
    assert blocks(page(name), "python") == [program(name)]


def test_dev_grants_what_the_samples_need_and_nothing_else() -> None:
    of_the_order_worker = {"read:data:*", "write:data:*"}
    assert set(SAMPLE_CEILING) == of_the_order_worker.union(*map(ceiling, SAMPLES))
