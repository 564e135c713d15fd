"""The page on frameworks shows each sample whole, how it is run, and what it prints."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from kombu.utils.json import register_type

from tests.examples.samples import ROOT, run
from tests.pages import blocks, check_printed

PAGE = (ROOT / "docs/frameworks.md").read_text()
SECTIONS = [section for section in re.split(r"^(?=## )", PAGE, flags=re.MULTILINE) if "```python" in section]
SAMPLES = sorted((ROOT / "examples/frameworks").glob("*.py"))


def command(section: str) -> str:
    [shown] = blocks(section, "console")
    return shown.strip().removeprefix("$ ")


def sample(section: str) -> Path:
    return ROOT / command(section).split()[-1]


def test_each_sample_has_its_section() -> None:
    assert sorted(map(sample, SECTIONS)) == SAMPLES


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: sample(section).stem)
def test_it_is_the_program_on_the_page_and_prints_what_the_page_shows(section: str) -> None:
    assert blocks(section, "python") == [sample(section).read_text()]
    done = run(command(section))
    assert done.returncode == 0, (done.stdout, done.stderr)
    [shown] = blocks(section)
    check_printed(done.stdout.splitlines(), shown.splitlines(), command(section))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: sample(section).stem)
def test_the_extra_that_it_needs_is_named(section: str) -> None:
    [extra] = re.findall(r"`pip install 'agentwrit\[([a-z-]+)\]'`", section)
    module = extra.replace("-", "_")
    assert f"from agentwrit.integrations.{module} import" in sample(section).read_text()


def test_what_celery_is_still_writing_is_not_in_the_queue_yet() -> None:
    """A worker takes whatever file it finds there, and ends if that is no message."""
    example = runpy.run_path(str(ROOT / "examples/frameworks/celery_orders.py"))
    queue, celery = example["QUEUE"], example["celery"]
    seen: list[list[Path]] = []

    class Looking:
        """Has to be written like the rest of a message, and tells what is there meanwhile."""

    def write(_: Any) -> str:
        seen.append(list(queue.glob("*.msg")))
        return ""

    register_type(Looking, "looking", write, lambda _: Looking())
    with celery.connection_for_write() as connection, connection.SimpleQueue("orders") as orders:
        orders.put("whole", headers={"looking": Looking()})
        assert seen == [[]]
        assert orders.get(timeout=30).payload == "whole"
