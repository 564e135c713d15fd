"""`python -m benchmarks [NAME…]`: run benchmarks, print what they found, and write it to benchmarks/results/."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import cluster, create, ending, life, revocation, scale, validate, verify
from benchmarks.measuring import Comparison
from benchmarks.plot import bars

RESULTS = Path(__file__).parent / "results"

ALL: dict[str, Callable[[], list[Comparison]]] = {
    "verify": verify.run,
    "revocation": revocation.run,
    "validate": validate.run,
    "create": create.run,
    "ending": ending.run,
    "life": life.run,
    "past": scale.past,
    "alive": scale.alive,
    "ended": scale.ended,
    "cluster": cluster.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, each beside its floor.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(ALL)}; all if none is given")
    names = parser.parse_args().names or list(ALL)
    unknown = set(names) - set(ALL)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    for name in names:
        report(name, ALL[name]())


def report(name: str, found: Sequence[Comparison], directory: Path = RESULTS) -> None:
    """Print what a benchmark found, and write it down as JSON and as a picture."""
    print(f"{name}\n{'=' * len(name)}")
    for comparison in found:
        print(f"{comparison.title} (target: {comparison.target})")
        for series in (comparison.subject, comparison.baseline):
            p50, p99 = comparison.unit.tell(series.p50), comparison.unit.tell(series.p99)
            print(f"  {series.name:40} p50 {p50:>15}   p99 {p99:>15}")
        print(f"  {'ratio of the medians':40}     {comparison.ratio:10.2f}\n")
    directory.mkdir(exist_ok=True)
    comparisons = [comparison.as_json() for comparison in found]
    about = {
        "benchmark": name,
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "comparisons": comparisons,
    }
    (directory / f"{name}.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    (directory / f"{name}.svg").write_text(bars(comparisons))


if __name__ == "__main__":
    main()
