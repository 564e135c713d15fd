"""What docs/postgresql.md shows is what happens."""

import os
import subprocess
import sys
from pathlib import Path

from agentwrit.broker.storage import postgres_link, postgres_readers, postgres_schema, postgres_writer
from agentwrit.broker.storage.postgres import WRITE_SECONDS
from tests.cli.support import CLEAN
from tests.docs.test_documentation import shown
from tests.pages import check_printed
from tests.support import BrokerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "postgresql.md").read_text()


def test_the_page_on_postgresql_can_be_followed(tmp_path: Path, database_url: str) -> None:
    [step] = shown(PAGE)
    with BrokerProcess(tmp_path / "agentwrit-data") as broker:
        app = broker.app()
        broker.release(app.agent()["access_token"])
        broker.stop()
    environment = {
        **CLEAN,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AGENTWRIT_DATABASE_URL": database_url,
    }
    done = subprocess.run(
        ["bash", "-c", step.command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    check_printed([*done.stdout.splitlines(), *done.stderr.splitlines()], step.output, step.command)


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    page = " ".join(PAGE.split())
    assert f"({postgres_schema.OLDEST_SERVER} or newer)" in page
    assert (postgres_link.STATEMENT_MS, postgres_link.LOCK_MS, postgres_readers.READERS) == (4000, 3000, 5)
    assert "A statement may take 4 seconds, a lock 3; what takes longer than 6 in all" in page
    assert (WRITE_SECONDS, postgres_readers.READ_SECONDS) == (6, 6)
    assert "and five that read" in page
    assert postgres_writer.IDLE_SESSION_MS == 30_000
    assert "loses its session after 30 seconds (`idle_session_timeout`)" in page
