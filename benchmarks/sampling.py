"""Where a request's time goes, of a broker under load: `python -m benchmarks.sampling [NAME…]`.

py-spy looks hundreds of times a second at what the broker is doing while wrk asks. It stops the broker for each look,
so what is measured here takes longer than it would: the shares are what counts. What C does is its caller's. Printed,
and written to benchmarks/results/, are the microseconds of each part for one request.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from benchmarks import create, population, validate
from benchmarks.broker import Running, running
from benchmarks.load import Generator, parse
from benchmarks.plot import shares

RESULTS = Path(__file__).parent / "results"
PY_SPY = str(Path(sys.executable).with_name("py-spy"))
SECONDS = 4
RATE = 400  # looks a second

# Of what is looked at last, and its file: the first mark that is in it says which part it is.
PARTS = {
    "crypto_sign": "Ed25519 (libsodium)",
    "_Gathering": "writing to sockets",
    "asyncio/runners": "the event loop: polling, reading",
    "uvicorn": "HTTP (uvicorn, httptools)",
    "broker/http/protocol": "HTTP (uvicorn, httptools)",
    "broker/http": "the edge",
    "structlog": "the log",
    "broker/logs": "the log",
    "broker/storage": "storage",
    "broker/services": "services",
    "domain/audit": "domain: events",
    "domain/merkle": "domain: events",
    "domain/proof": "domain: proofs",
    "domain/": "domain: the rest",
}
REST = "Python's library"
COMMIT = "on the commit's thread"


def loads(broker: Running, directory: Path, names: Iterable[str]) -> Iterator[tuple[str, Generator, int]]:
    """What is asked, and over how many connections. It is made when its turn has come: proofs are soon too old."""
    for name in names:
        match name:
            case "create":
                yield name, create.in_one_trip(broker, SECONDS + 1), create.CONNECTIONS
            case "validate":
                agent = broker.app.create_agent("bench", "validated", create.SCOPE)
                body = json.dumps({"token": agent.access_token})
                yield name, Generator(f"{broker.url}/v1/token/validate", [body]), validate.CONNECTIONS
            case "validate-new":
                tokens = json.loads((directory / "tokens").read_text())
                bodies = [json.dumps({"token": token}) for token in tokens]
                url = f"{broker.url}/v1/token/validate"
                yield name, Generator(url, bodies, is_repeatable=False), validate.CONNECTIONS


NAMES = ("create", "validate", "validate-new")


def sample(broker: Running, generator: Generator, connections: int) -> dict[str, float]:
    """The microseconds of each part for one request, and those of the commit's thread.

    Raises:
        SystemExit: py-spy may not look at the broker.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        command = generator.command(directory, seconds=SECONDS, connections=connections)
        load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            looking = [PY_SPY, "record", "--threads", "--format", "raw", "--rate", str(RATE)]
            seconds = ["--duration", str(SECONDS - 1), "--output", str(directory / "seen")]
            looked = subprocess.run(
                [*looking, *seconds, "--pid", str(broker.pid)], capture_output=True, text=True, check=False
            )
            if looked.returncode:
                raise SystemExit(f"benchmarks: py-spy cannot look at the broker: {looked.stderr.strip()}")
        finally:
            printed, _ = load.communicate()
        seen = (directory / "seen").read_text()
    a_request = 1e6 / parse(printed).rate
    return {part: count / (RATE * (SECONDS - 1)) * a_request for part, count in counted(seen).items()}


def counted(seen: str) -> Mapping[str, int]:
    """How often each part was being done, from py-spy's raw form: a line for each stack, and how often it was seen."""
    found: Counter[str] = Counter()
    for line in seen.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if "sqlite-commit" in frames[0]:
            found[COMMIT] += int(count)
        elif "MainThread" in frames[0]:
            found[next((part for mark, part in PARTS.items() if mark in frames[-1]), REST)] += int(count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description="Where a request's time goes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which requests: {', '.join(NAMES)}")
    names = parser.parse_args().names or list(NAMES)
    unknown = set(names) - set(NAMES)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="agentwrit-bench-") as place:
        directory = Path(place)
        if "validate-new" in names:
            tokens = population.run(directory / "data", live=validate.NEW_TOKENS_A_SECOND * SECONDS)
            (directory / "tokens").write_text(json.dumps(tokens))
        with running(directory / "data") as broker:
            for name, generator, connections in loads(broker, directory, names):
                found[name] = sample(broker, generator, connections)
                show(name, found[name])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "profile.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    (RESULTS / "profile.svg").write_text(shares(found))


def show(name: str, parts: Mapping[str, float]) -> None:
    loop = {part: taken for part, taken in parts.items() if part != COMMIT}
    print(f"{name}: {sum(loop.values()):.0f} µs of the event loop for each, {parts.get(COMMIT, 0):.0f} µs {COMMIT}")
    for part, taken in sorted(loop.items(), key=lambda item: -item[1]):
        print(f"  {part:36} {taken:7.1f} µs")
    print()


if __name__ == "__main__":
    main()
