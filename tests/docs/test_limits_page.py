"""The list of bounds says what the code does, and leaves out no cache."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/agentwrit"
PAGE = (ROOT / "docs/limits.md").read_text()
HEADING = "| what | bound | constant | what happens beyond | test |"

UNITS = {"": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

# What remembers: a table of any of these kinds, or a function that keeps what it returned.
REMEMBERING = {
    "lru_cache",
    "cache",
    "Recent",
    "OrderedDict",
    "deque",
    "WeakKeyDictionary",
    "WeakValueDictionary",
    "WeakSet",
}


class Row(NamedTuple):
    what: str
    bound: str
    constants: list[str]
    beyond: str
    test: str


def rows() -> list[Row]:
    found = []
    for line in PAGE.splitlines():
        if line.startswith("| ") and line != HEADING:
            what, bound, constants, beyond, test = [cell.strip() for cell in line.strip("|").split("|")]
            found.append(Row(what, bound, [name.strip(" `") for name in constants.split(",")], beyond, test.strip("`")))
    return found


ROWS = rows()


def value(name: str) -> object:
    """The constant of this name, below `agentwrit`."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(["agentwrit", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise LookupError(name)


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_every_figure_is_that_of_the_code(row: Row) -> None:
    """The figures of a line are those of its constants, in their order."""
    figures = re.findall(r"([0-9][0-9,]*)(?: (KiB|MiB|GiB)\b)?", row.bound)
    assert len(figures) >= len(row.constants)
    for (digits, unit), constant in zip(figures, row.constants, strict=False):
        assert value(constant) == int(digits.replace(",", "")) * UNITS[unit], constant


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_every_line_names_its_test(row: Row) -> None:
    path, _, name = row.test.partition("::")
    assert re.search(rf"^(?:async )?def {name}\(", (ROOT / "tests" / path).read_text(), re.MULTILINE), row.test
    assert row.beyond


def test_every_table_of_the_page_has_the_same_columns() -> None:
    assert PAGE.count(HEADING) == PAGE.count("|---|---|---|---|---|") == PAGE.count("\n|---")
    assert len(ROWS) > 40


def remembering() -> Iterator[str]:
    """Whatever in the source remembers, by its module and its name."""
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _remembering(node):
                yield ".".join([*parts, name])


def _remembering(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            if any(_name(each) in REMEMBERING or _makes_one(each) for each in node.decorator_list):
                yield node.name
        case ast.Assign() if _makes_one(node.value):
            yield from map(_name, node.targets)
        case ast.AnnAssign(value=ast.expr()) if _makes_one(node.value):
            yield _name(node.target)


def _makes_one(node: ast.AST | None) -> bool:
    """Whether this is a call of one of these, or of what such a call has returned."""
    while isinstance(node, ast.Call):
        if _name(node.func) in REMEMBERING:
            return True
        node = node.func
    return False


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_the_walk_finds_caches_of_each_kind() -> None:
    found = set(remembering())
    assert {"domain.scope._remembered", "broker.storage.sealing._open", "broker.http.rate_limits._buckets"} <= found
    assert {"broker.http.wire._plan", "client.verification._known"} <= found


def test_every_cache_is_on_the_list() -> None:
    missing = [name for name in remembering() if f"`{name}`" not in PAGE]
    assert not missing


def test_every_cache_on_the_list_is_there() -> None:
    named = set(re.findall(r"`((?:[a-z_0-9]+\.)+_?[a-z_0-9]+)`", PAGE))
    assert named - set(remembering()) == set()
