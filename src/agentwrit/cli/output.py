"""What commands print: tables for people, JSON for scripts."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

# rich is loaded where it draws: a script that asks for JSON, and `--help`, need not wait for it.


def say(line: str) -> None:
    """One line about what went wrong, or did not, on standard error."""
    print(f"agentwrit: {_printable(' '.join(line.split()))}", file=sys.stderr)


def say_out(line: str) -> None:
    """One line of an answer, on standard output."""
    print(_printable(line))


def confirmed(stream: TextIO | None, question: str, what: str) -> bool:
    """Whether the person at the terminal says yes. `what` cannot be undone.

    Raises:
        click.UsageError: nobody is at the terminal to be asked.
    """
    if not is_terminal(stream):
        raise click.UsageError(f"{what} cannot be undone: confirm it with --yes")
    if click.confirm(question, err=True):
        return True
    say("nothing was done")
    return False


def print_json(content: object) -> None:
    """The broker's own object, on standard output and nothing beside it."""
    print(json.dumps(content, indent=2 if is_terminal(sys.stdout) else None, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table with a heading."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))  # as Text, so that no value is taken for markup
    _console().print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """One thing, a line for each of its fields."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, Text(_shown(value)))
    _console().print(table)


class Tree(NamedTuple):
    """A thing, in lines, and what is below it."""

    lines: Sequence[str]
    below: Sequence["Tree"]


def print_tree(label: str, branches: Iterable[Tree]) -> None:
    """A tree under a label."""
    from rich import tree as rich_tree
    from rich.text import Text

    def grow(onto: rich_tree.Tree, branch: Tree) -> None:
        node = onto.add(Text("\n".join(map(_printable, branch.lines))))
        for below in branch.below:
            grow(node, below)

    root = rich_tree.Tree(Text(_printable(label)))
    for branch in branches:
        grow(root, branch)
    _console().print(root)


def is_terminal(stream: object) -> bool:
    """Whether a standard stream is a terminal. It is None in a process that was started with it closed."""
    return stream is not None and bool(getattr(stream, "isatty", lambda: False)())


def _console() -> "Console":
    from rich.console import Console

    # Into a pipe or a file nothing is folded: whoever reads it searches for lines.
    return Console(highlight=False, width=None if is_terminal(sys.stdout) else 1000)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(_printable(str(item)) for item in value)
    return "" if value is None else _printable(str(value))


def _printable(text: str) -> str:
    """Text that a terminal only shows: what a broker or a token says must not steer it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
