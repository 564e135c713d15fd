"""What the documentation shows is what happens."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from agentwrit.broker.config import Config
from tests.pages import blocks, check_printed
from tests.support import BrokerProcess

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
README = (ROOT / "README.md").read_text()


class Shown(NamedTuple):
    """A command, and what the page says that it prints."""

    command: str
    output: list[str]


def shown(page: str) -> list[Shown]:
    found: list[Shown] = []
    for line in "".join(blocks(page, "console")).splitlines():
        if line.startswith("$ "):
            found.append(Shown(line[2:], []))
        else:
            found[-1].output.append(line)
    return found


def test_the_readme_can_be_followed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }

    def run(command: str) -> list[str]:
        # One shell after another, so what one exports is written down for the next.
        script = f"[ -e exports ] && . ./exports; {command}\nstatus=$?; export -p > exports; exit $status"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout.splitlines()

    steps = shown(README)
    assert [step.command for step in steps[:2]] == ["agentwrit init --print-env > operator.env", "agentwrit serve"]
    run(f"export AGENTWRIT_PORT=0; {steps[0].command}")
    secret = (tmp_path / "operator.env").read_text().partition("=")[2].strip()
    with BrokerProcess(tmp_path / "agentwrit-data", AGENTWRIT_ADMIN_SECRET=secret) as broker:
        run(f"export AGENTWRIT_BROKER_URL={broker.url}")
        for step in steps[2:]:
            printed = [line.replace(broker.url, "http://127.0.0.1:8080") for line in run(step.command)]
            check_printed(printed, step.output, step.command)
            for line in printed:
                if line.startswith("export AGENTWRIT_CLIENT"):
                    run(line)  # "with those three variables set"
        [program] = blocks(README, "python")
        run(f"python - <<'END'\n{program}\nEND")


def test_the_page_on_bound_tokens_shows_what_happens(broker: BrokerProcess) -> None:
    page = (ROOT / "docs/bound_tokens.md").read_text()
    [program], [output] = blocks(page, "python"), blocks(page)
    app = broker.app()
    environment = {
        "AGENTWRIT_BROKER_URL": broker.url,
        "AGENTWRIT_CLIENT_ID": app.client_id,
        "AGENTWRIT_CLIENT_SECRET": app.client_secret,
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == output


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `AGENTWRIT_([A-Z_]+)` \| ([^|]+) \|", README, re.MULTILINE))
    assert set(rows) == {field.name.upper() for field in fields(Config)}
    for field in fields(Config):
        documented = rows[field.name.upper()].strip("` ")
        expected = "the issuer" if field.name == "audience" else field.default
        text = ",".join(expected) if isinstance(expected, tuple) else str(expected)
        assert documented == ("none" if expected in (None, ()) else text), field.name


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    assert README.count("```\nmake demo\nmake test\n```") == 1
    assert not re.search(r"^make (?!demo$|test$)", README, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_architecture_names_what_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for name in re.findall(r"`?((?:domain|services|storage|http)/\w+\.py)`?", text):
        assert list((ROOT / "src/agentwrit").glob(f"**/{name}")), name
    for module in re.findall(r"\b(\w+\.py)\b", text):
        assert list((ROOT / "src/agentwrit").glob(f"**/{module}")), module
