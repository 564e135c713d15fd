"""/v1/token/validate under load, against a bare ASGI echo of the same bytes under the same server."""

import json
import tempfile
from pathlib import Path

import httpx2

from benchmarks import echo, population
from benchmarks.broker import running
from benchmarks.load import Generator
from benchmarks.measuring import Comparison, Series

CONNECTIONS = 32
NEW_TOKENS_A_SECOND = 16_000  # more than can be validated


def run(*, rounds: int = 5, seconds: int = 3) -> list[Comparison]:
    """`rounds` of `seconds` of load on each in turn. The series are mean seconds for each request of a round."""
    seen: list[float] = []
    unseen: list[float] = []
    floor: list[float] = []
    with tempfile.TemporaryDirectory(prefix="agentwrit-bench-") as directory:
        count = NEW_TOKENS_A_SECOND * seconds
        bodies = [json.dumps({"token": token}) for token in population.run(Path(directory), live=count * rounds)]
        with running(Path(directory)) as broker:
            url = f"{broker.url}/v1/token/validate"
            again = Generator(url, bodies[:1])
            answer = httpx2.post(url, content=bodies[0])
            with echo.running(answer.headers, answer.text) as bare:
                for number in range(rounds):
                    of_this_round = bodies[1 + count * number : count * (number + 1)]
                    seen.append(1 / again.run(seconds=seconds, connections=CONNECTIONS).rate)
                    floor.append(1 / Generator(bare, bodies[:1]).run(seconds=seconds, connections=CONNECTIONS).rate)
                    new = Generator(url, of_this_round, is_repeatable=False)
                    unseen.append(1 / new.run(seconds=seconds, connections=CONNECTIONS).rate)
    baseline = Series("bare echo", floor)
    title = f"{CONNECTIONS} connections, mean for each request"
    return [
        Comparison(
            f"validate a token seen before, {title}", Series("validate", seen), baseline, target="ratio at most 1.33"
        ),
        Comparison(
            f"validate a token never seen, {title}", Series("validate", unseen), baseline, target="ratio at most 4.5"
        ),
    ]
