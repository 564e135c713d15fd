"""The sample apps that have a page in docs/, and how to run them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.cli.support import CLEAN
from tests.pages import blocks

ROOT = Path(__file__).parents[2]
SAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "order_worker")

_PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def page(name: str) -> str:
    return (ROOT / f"docs/{name}.md").read_text()


def program(name: str) -> str:
    return (ROOT / f"examples/{name}.py").read_text()


def command(name: str) -> str:
    """How a page says that its sample is run."""
    return _commands(name)[0]


def ceiling(name: str) -> list[str]:
    """The scopes that a page says its sample needs: those of the app that it has registered."""
    return re.findall(r"--scope '([^']+)'", _commands(name)[1])


def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as it stands on a page. Its environment has no settings but those given."""
    return subprocess.run(
        shlex.split(command),
        cwd=ROOT,
        env={**CLEAN, "PATH": _PATH, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def run_without_dev(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a sample as its page says, with the broker that the environment names."""
    return run(command(name).removeprefix("agentwrit dev -- "), **environment)


def _commands(name: str) -> tuple[str, str]:
    of_dev, of_app = re.findall(r"^\$ (.*)$", "".join(blocks(page(name), "console")), re.MULTILINE)
    assert of_dev.startswith(f"agentwrit dev -- python examples/{name}.py")
    assert of_app.startswith(f"agentwrit app register {name.replace('_', '-')} --scope ")
    return of_dev, of_app
