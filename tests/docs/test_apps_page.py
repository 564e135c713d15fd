"""What docs/apps.md shows is what happens."""

import os
import subprocess
import sys
from pathlib import Path

from agentwrit.domain import limits
from tests.cli.support import CLEAN
from tests.docs.test_documentation import shown
from tests.pages import check_printed
from tests.support import ADMIN_SECRET, BrokerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "apps.md").read_text()


def test_the_page_on_apps_can_be_followed(tmp_path: Path) -> None:
    steps = shown(PAGE)
    assert len(steps) == 5
    with BrokerProcess(tmp_path / "data") as broker:
        environment = {
            **CLEAN,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AGENTWRIT_BROKER_URL": broker.url,
            "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET,
        }
        for step in steps:
            done = subprocess.run(
                ["bash", "-c", step.command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (step.command, done.stderr)
            check_printed(done.stdout.splitlines(), step.output, step.command)


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    assert f"is told {limits.FULL_SECONDS} seconds" in " ".join(PAGE.split())
