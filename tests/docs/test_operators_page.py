"""What docs/operators.md shows is what happens."""

import os
import subprocess
import sys
from pathlib import Path

from agentwrit.broker.passwords import COST
from tests.cli.support import CLEAN
from tests.docs.test_documentation import shown
from tests.pages import check_printed
from tests.support import ADMIN_SECRET, BrokerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()


def test_the_page_on_operators_can_be_followed(tmp_path: Path) -> None:
    steps = shown(PAGE)
    named, offline = steps[:6], steps[6:]
    assert len(offline) == 4
    environment = {**CLEAN, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(script: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, ""), script
        return done.stdout.splitlines()

    with BrokerProcess(tmp_path / "agentwrit-data") as broker:
        first = {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}
        environment |= first
        for step in named:
            if "remove" in step.command:
                environment |= {**first, "AGENTWRIT_OPERATOR": ""}
            printed = run(step.command)
            check_printed(
                [line.replace(broker.url, "http://127.0.0.1:8080") for line in printed], step.output, step.command
            )
            exports = [line.removeprefix("export ") for line in printed if line.startswith("export ")]
            environment |= dict(line.split("=", 1) for line in exports)  # "with these three variables"
        broker.stop()
    variables = ""
    for step in offline:
        if step.command.startswith("export "):
            variables = f"{step.command}; "
        check_printed(run(variables + step.command), step.output, step.command)
    key = (tmp_path / "master-key-of-may").read_text().strip()
    with BrokerProcess(tmp_path / "agentwrit-data", AGENTWRIT_MASTER_KEY=key) as broker:
        assert broker.app().token()


def test_the_cost_of_the_page_is_that_of_the_code() -> None:
    assert f"(`{COST}`)" in PAGE
