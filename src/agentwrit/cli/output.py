"""What commands print: tables for people, JSON for scripts."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_json(content: object) -> None:
    """The broker's own object, on standard output and nothing beside it."""
    print(json.dumps(content, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table with a heading."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))  # as Text, so that no value is taken for markup
    _console().print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """One thing, a line for each of its fields."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, Text(_shown(value)))
    _console().print(table)


def _console() -> Console:
    # Into a pipe or a file nothing is folded: whoever reads it searches for lines.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)
