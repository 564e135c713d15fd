"""A broker, a queue and a real worker, for tests that publish."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from celery.result import AsyncResult

from agentwrit import AgentWritApp
from agentwrit.testing import LocalBroker
from tests.cli.support import CLEAN
from tests.integrations import celery_jobs

ROOT = Path(__file__).parents[2]


class Shop:
    """A broker, an app, a queue, and a worker with two processes that knows the app by its environment."""

    def __init__(self, directory: Path) -> None:
        self.broker = LocalBroker()
        registered = self.broker.operator.register_app("jobs", ["read:data:*", "write:data:*"])
        self.app = AgentWritApp(self.broker.url, registered["client_id"], registered["client_secret"])
        self.queue = directory
        celery_jobs.use(directory)
        celery_jobs.JobTask.agentwrit = self.app
        with (directory / "worker.log").open("wb") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "tests.integrations.celery_jobs", "worker", "--concurrency=2"],
                cwd=ROOT,
                env={
                    **CLEAN,
                    "AGENTWRIT_BROKER_URL": self.broker.url,
                    "AGENTWRIT_CLIENT_ID": registered["client_id"],
                    "AGENTWRIT_CLIENT_SECRET": registered["client_secret"],
                    "TESTS_QUEUE": str(directory),
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def close(self) -> None:
        self.worker.terminate()
        self.worker.wait()
        self.app.close()
        self.broker.close()

    def ran(self) -> list[list[Any]]:
        """The bodies that ran so far and noted it: what they did, and the scope that they had."""
        ledger = self.queue / "ledger"
        return [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []

    def is_valid(self, token: str) -> bool:
        return self.app.validate(token).valid


def answer(result: Any) -> Any:
    """What came of a job, given as its result or its id."""
    if isinstance(result, str):
        result = AsyncResult(result, app=celery_jobs.jobs)
    return result.get(timeout=60, interval=0.02)
