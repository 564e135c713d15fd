"""/v1/token/validate under load, against a bare ASGI echo of the same bytes under the same server.

Tokens never seen stand also beside an echo that checks the signature of each: nothing that knows less can be faster.
"""

import json
import tempfile
from functools import partial
from pathlib import Path

import httpx2

from agentwrit.domain import base64url
from agentwrit.domain.jwk import public_keys
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
    floor_unseen: list[float] = []
    with tempfile.TemporaryDirectory(prefix="agentwrit-bench-") as directory:
        count = NEW_TOKENS_A_SECOND * seconds
        tokens = population.run(Path(directory), live=count * rounds)
        bodies = [json.dumps({"token": token}) for token in tokens]
        with running(Path(directory)) as broker:
            url = f"{broker.url}/v1/token/validate"
            again = Generator(url, bodies[:1])
            answer = httpx2.post(url, content=bodies[0])
            keys = public_keys(httpx2.get(f"{broker.url}/.well-known/jwks.json").json())
            key = keys[json.loads(base64url.decode(tokens[0].partition(".")[0]))["kid"]]
            same = partial(echo.running, answer.headers, answer.text)
            with same() as bare, same(public_key=key) as verifying:
                for number in range(rounds):
                    of_this_round = bodies[1 + count * number : count * (number + 1)]
                    seen.append(1 / again.run(seconds=seconds, connections=CONNECTIONS).rate)
                    floor.append(1 / Generator(bare, bodies[:1]).run(seconds=seconds, connections=CONNECTIONS).rate)
                    new = Generator(url, of_this_round, is_repeatable=False)
                    unseen.append(1 / new.run(seconds=seconds, connections=CONNECTIONS).rate)
                    same_to_it = Generator(verifying, of_this_round)
                    floor_unseen.append(1 / same_to_it.run(seconds=seconds, connections=CONNECTIONS).rate)
    baseline = Series("bare echo", floor)
    title = f"{CONNECTIONS} connections, mean for each request"
    return [
        Comparison(
            f"validate a token seen before, {title}", Series("validate", seen), baseline, target="ratio at most 1.33"
        ),
        Comparison(
            f"validate a token never seen, {title}", Series("validate", unseen), baseline, target="ratio at most 4.5"
        ),
        Comparison(
            f"the same, against an echo that checks the signature, {title}",
            Series("validate", unseen),
            Series("echo that checks it", floor_unseen),
            target="none is set",
        ),
    ]
