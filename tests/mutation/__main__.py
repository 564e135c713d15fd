"""Small changes to the code, one at a time, each of which a test has to notice: mutmut's, by part and module.

    python -m tests.mutation domain                    all of a part
    python -m tests.mutation domain:scope,grant        some modules of it
    python -m tests.mutation --report domain           what is known by now, without running anything

Each part is copied to a directory of its own below `.mutants`, where the changes are made. What was found out is kept
there until a module changes, so a run that was stopped is gone on with, and what no test has noticed is tried again.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
SCRATCH: Final = ROOT / ".mutants"
HERE: Final = Path(__file__).parent
MUTMUT: Final = Path(sys.executable).with_name("mutmut")
WANTED: Final = 0.95

# As mutmut has them: how the tests' process ended, and 33 and 37 for what was never run.
KILLED: Final = {1: "tests", 3: "tests", 37: "mypy", 36: "time", 24: "time", 152: "time", 255: "time", -24: "time"}
SURVIVED: Final = {0: "survived", 33: "reached by no test", 5: "reached by no test"}

# A message's words are for people: tests look for those that matter. mypy refuses a change as `make test` would.
SETTINGS: Final = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = [{sources}]
pytest_add_cli_args = ["-n0", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
do_not_mutate_patterns = ['^\\s*raise \\w', '^\\s*(log|logger)\\.']
type_check_command = [{python}, "-m", "mypy", {directory}, "--output", "json", "--no-warn-unreachable",
    "--disable-error-code", "unused-ignore", "--disable-error-code", "redundant-expr"]
track_dependencies = false
use_git_change_detection = false
"""


class Part(NamedTuple):
    """A part of the code, and the tests that are to notice what changes in it."""

    name: str
    sources: str
    tests: Sequence[str]

    @property
    def scratch(self) -> Path:
        return SCRATCH / self.name

    def modules(self) -> list[str]:
        return sorted(path.stem for path in (ROOT / self.sources).glob("*.py") if path.stem != "__init__")

    def package(self) -> str:
        return self.sources.removeprefix("src/").replace("/", ".")


class Mutant(NamedTuple):
    """A change. `name`: as mutmut has it; `end`: how the tests ended, None where they were not run yet."""

    name: str
    end: int | None

    @property
    def function(self) -> str:
        return self.name.rpartition(".")[2].rpartition("__mutmut_")[0]


class Reason(NamedTuple):
    """Why a change is noticed by no test."""

    module: str
    function: str
    was: str
    becomes: str
    reason: str

    def explains(self, module: str, mutant: Mutant, was: str, becomes: str) -> bool:
        is_there = self.module == module and self.function == mutant.function
        return is_there and self.was in was and self.becomes in becomes


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("parts", nargs="+", metavar="PART[:MODULE,…]")
    arguments.add_argument("--report", action="store_true", help="run nothing, and tell what is known")
    arguments.add_argument("--children", type=int, default=1, help="processes at a time")
    given = arguments.parse_args()
    with (HERE / "parts.toml").open("rb") as file:
        parts = {name: Part(name, **content) for name, content in tomllib.load(file).items()}
    are_good = True
    for text in given.parts:
        name, _, chosen = text.partition(":")
        part = parts[name]
        modules = chosen.split(",") if chosen else part.modules()
        if not given.report:
            prepare(part)
            run(part, modules, given.children)
        are_good = report(part, modules) and are_good
    return 0 if are_good else 1


def prepare(part: Part) -> None:
    """Bring the copy up to date. What has not changed keeps its time, by which mutmut knows what it has done."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, place = ROOT / name, part.scratch / name
        if not source.is_file() or name == "pyproject.toml":
            continue
        if not place.is_file() or place.read_bytes() != source.read_bytes():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place)
    (part.scratch / "pyproject.toml").write_text(settings(part))


def settings(part: Part) -> str:
    """The project's own, with what mypy says of mutmut's own additions left out, and mutmut's."""
    project = (ROOT / "pyproject.toml").read_text()
    project = project.replace('"ignore-without-code", "redundant-expr", ', "").replace("warn_unreachable = true\n", "")
    return project + SETTINGS.format(
        sources=json.dumps(f"{part.sources}/*"),
        tests=json.dumps(part.tests),
        python=json.dumps(sys.executable),
        directory=json.dumps(part.sources),
    )


def run(part: Part, modules: Sequence[str], children: int) -> None:
    """Try what was not tried yet or was noticed by none, behind everybody else who has work for this machine."""
    os.nice(19 - os.nice(0))
    names = [name for module in modules for name in untried(part, module)]
    if names:
        subprocess.run([MUTMUT, "run", "--max-children", str(children), *names], cwd=part.scratch, check=False)


def untried(part: Part, module: str) -> list[str]:
    """What of a module is to be tried: all of it, where it has changed."""
    source, known = part.scratch / part.sources / f"{module}.py", meta(part, module)
    if not known.is_file() or known.stat().st_mtime < source.stat().st_mtime:
        return [f"{part.package()}.{module}.*"]
    return [mutant.name for mutant in found(part, module) if mutant.end is None or mutant.end in SURVIVED]


def meta(part: Part, module: str) -> Path:
    """Where mutmut keeps what it has found out about a module."""
    return part.scratch / "mutants" / part.sources / f"{module}.py.meta"


def found(part: Part, module: str) -> Iterator[Mutant]:
    """The changes to a module, as far as it was copied."""
    place = meta(part, module)
    if place.is_file():
        ends: dict[str, int | None] = json.loads(place.read_text())["exit_code_by_key"]
        yield from (Mutant(name, end) for name, end in ends.items())


def changed(part: Part, mutant: Mutant) -> tuple[str, str]:
    """The lines that a change takes away, and those that it puts in their place."""
    shown = subprocess.run(
        [MUTMUT, "show", mutant.name], cwd=part.scratch, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    lines = [line for line in shown if not line.startswith(("---", "+++"))]
    was, becomes = (" ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+")
    return was, becomes


def report(part: Part, modules: Sequence[str]) -> bool:
    """Say what was noticed, module by module, and what was not. Returns whether that is enough."""
    with (HERE / "survivors.toml").open("rb") as file:
        reasons = [Reason(**each) for each in tomllib.load(file).get(part.name, [])]
    total: Counter[str] = Counter()
    print(
        f"\n| {part.name} | changes | noticed by tests | by mypy | by time | with a reason | noticed by none | share |"
    )
    print("|---|---|---|---|---|---|---|---|")
    unexplained: list[str] = []
    for module in modules:
        mutants = list(found(part, module))
        if not mutants:
            continue
        count: Counter[str] = Counter()
        for mutant in mutants:
            if mutant.end is None:
                count["not tried"] += 1
            elif mutant.end in SURVIVED:
                was, becomes = changed(part, mutant)
                is_explained = any(reason.explains(module, mutant, was, becomes) for reason in reasons)
                count["explained" if is_explained else "survived"] += 1
                if not is_explained:
                    unexplained.append(f"{mutant.name} ({SURVIVED[mutant.end]})\n  - {was}\n  + {becomes}")
            else:
                count[KILLED.get(mutant.end, "tests")] += 1
        if count["not tried"]:
            print(f"| {module} | {len(mutants)} | {count['not tried']} not tried |")
            continue
        print(row(module, count))
        total += count
    print(row("all of these", total))
    print("\n".join(unexplained))
    return not unexplained and share(total) >= WANTED


def row(name: str, count: Counter[str]) -> str:
    figures = (count["tests"], count["mypy"], count["time"], count["explained"], count["survived"])
    return f"| {name} | {' | '.join(map(str, (sum(figures), *figures)))} | {100 * share(count):.1f} % |"


def share(count: Counter[str]) -> float:
    """How many of those that can be noticed were."""
    noticed = count["tests"] + count["mypy"] + count["time"]
    return noticed / ((noticed + count["survived"]) or 1)


if __name__ == "__main__":
    sys.exit(main())
