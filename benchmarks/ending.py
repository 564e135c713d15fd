"""How long a release and a revocation take while the broker is busy validating, against an empty request meanwhile."""

import json
import subprocess
import tempfile
from functools import partial
from pathlib import Path

from agentwrit.client.exchange import HttpRequest
from benchmarks.broker import running
from benchmarks.load import Generator, parse
from benchmarks.measuring import Comparison, in_turns

CONNECTIONS = 16
MOST_SECONDS = 60


def run(*, rounds: int = 10) -> list[Comparison]:
    """`rounds` of 20 releases and of 20 revocations."""
    with running() as broker, tempfile.TemporaryDirectory() as directory:
        app = broker.app
        agents = [app.create_agent("bench", f"t-{number}", ["read:data:1"]) for number in range(40 * rounds + 1)]
        body = json.dumps({"token": agents.pop().access_token})
        generator = Generator(f"{app.broker_url}/v1/token/validate", [body])
        command = generator.command(Path(directory), seconds=MOST_SECONDS, connections=CONNECTIONS)
        load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            empty = [[partial(app._driver.send, HttpRequest("GET", "/livez"))] * 20] * rounds
            released = [[agents.pop().release for _ in range(20)] for _ in range(rounds)]
            revoked = [
                [partial(broker.operator.revoke, "agent", agents.pop().agent_id) for _ in range(20)]
                for _ in range(rounds)
            ]
            name = "an empty request"
            found = [
                in_turns("release while validating", ("release", released), (name, empty), target="none is set"),
                in_turns("revoke while validating", ("revoke", revoked), (name, empty), target="none is set"),
            ]
        finally:
            load.send_signal(2)  # as by Ctrl-C: wrk then says what it has found
            printed, _ = load.communicate()
    parse(printed)  # an answer that was an error is one
    return found
