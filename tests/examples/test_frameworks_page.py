"""The page on frameworks shows each sample whole, how it is run, and what it prints."""

import re
from pathlib import Path

import pytest

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
