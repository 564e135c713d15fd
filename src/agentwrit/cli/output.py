"""What commands print: tables for people, JSON for scripts."""

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TextIO

import click

from agentwrit.domain.text import escaped, to_json
from agentwrit.standard_streams import tell

if TYPE_CHECKING:
    from rich.console import Console

STANDARD_OUTPUT: Final = "-"  # as a file's name

# rich is loaded where it draws: a script that asks for JSON, and `--help`, need not wait for it.


def say(line: str) -> None:
    """One line about what went wrong, or did not, on standard error."""
    tell(f"agentwrit: {escaped(' '.join(line.split()))}")


def say_out(line: str) -> None:
    """One line of an answer, on standard output."""
    print(escaped(line))


class Written(Protocol):
    """What content is written to."""

    def write(self, content: bytes, /) -> object: ...


@contextlib.contextmanager
def written(output: str) -> Iterator[Written]:
    """The file of this name, which is there when all is written to it, and is its owner's alone; or standard output."""
    if output == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        return
    from agentwrit.durable import NewFile

    with NewFile(Path(output), or_device=True) as file:
        yield file
        file.settle()


def confirmed(stream: TextIO | None, question: str, what: str) -> bool:
    """Whether the person at the terminal says yes. `what` cannot be undone.

    Raises:
        click.UsageError: nobody is at the terminal to be asked.
    """
    if not is_terminal(stream):
        raise click.UsageError(f"{what} cannot be undone: confirm it with --yes")
    if click.confirm(escaped(question), err=True):
        return True
    say("nothing was done")
    return False


def print_json(content: object) -> None:
    """The broker's own object, on standard output and nothing beside it."""
    print(to_json(content, indent=2 if is_terminal(sys.stdout) else None))


def print_json_line(content: object) -> None:
    """One of many objects, on a line of its own."""
    print(to_json(content))


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
        node = onto.add(Text("\n".join(map(escaped, branch.lines))))
        for below in branch.below:
            grow(node, below)

    root = rich_tree.Tree(Text(escaped(label)))
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
        return "\n".join(escaped(str(item)) for item in value)
    return "" if value is None else escaped(str(value))
