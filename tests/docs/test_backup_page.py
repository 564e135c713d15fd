"""What docs/backup.md shows is what happens."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests import postgres
from tests.cli.support import CLEAN, run
from tests.cluster.support import MASTER_KEY, member
from tests.docs.test_documentation import Shown, shown
from tests.pages import check_printed
from tests.support import ADMIN_SECRET, BrokerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "backup.md").read_text()
STEPS = shown(PAGE)
OF_DATABASES = next(place for place, step in enumerate(STEPS) if step.command.startswith("pg_dump"))


def follow(steps: list[Shown], directory: Path, **environment: str) -> None:
    """Run the commands in one shell after another, as on the page; what one exports the next has."""
    path = f"{Path(sys.executable).parent}:{postgres.binaries()}:{os.environ['PATH']}"
    exports = ""
    for step in steps:
        if step.command.startswith("export "):
            exports += step.command + "; "
            continue
        done = subprocess.run(
            ["bash", "-c", exports + step.command],
            cwd=directory,
            env={**CLEAN, **environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (step.command, done.stderr)
        check_printed([*done.stdout.splitlines(), *done.stderr.splitlines()], step.output, step.command)


def register_shop(broker: BrokerProcess) -> None:
    operator = {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}
    assert run("app", "register", "shop", "--scope", "read:data:*", **operator).returncode == 0


def test_a_backup_is_made_and_restored_as_the_page_says(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "agentwrit-data") as broker:
        register_shop(broker)
        follow(STEPS[:1], tmp_path)
        broker.stop()
        follow(STEPS[1:OF_DATABASES], tmp_path)
        broker.start()
        assert broker.admin()


def test_a_database_is_restored_as_the_page_says(postgres_server: str, database_url: str, tmp_path: Path) -> None:
    with member(database_url, tmp_path / "broker") as broker:
        register_shop(broker)
        broker.stop()
    with postgres.database(postgres_server) as restored_url:
        urls = {"AGENTWRIT_DATABASE_URL": database_url, "RESTORED_DATABASE_URL": restored_url}
        follow(STEPS[OF_DATABASES:], tmp_path, AGENTWRIT_MASTER_KEY=MASTER_KEY, **urls)


def test_the_commands_that_it_names_are_there() -> None:
    for command in ("backup", "restore", "store restored", "store verify"):
        assert f"agentwrit {command}" in PAGE
        done = run(*shlex.split(command), "--help")
        assert done.returncode == 0
        assert done.stdout.startswith("Usage:")
