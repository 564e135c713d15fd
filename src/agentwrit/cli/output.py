"""Output of commands: tables for people, JSON for scripts."""

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

# rich is imported only where it draws, so that JSON output and `--help` need not wait for it.


def say(line: str) -> None:
    """Print an error or a status line on standard error."""
    tell(f"agentwrit: {escaped(' '.join(line.split()))}")


def say_out(line: str) -> None:
    """Print one line of a result on standard output."""
    print(escaped(line))


class Written(Protocol):
    """A destination for content."""

    def write(self, content: bytes, /) -> object: ...


@contextlib.contextmanager
def written(output: str) -> Iterator[Written]:
    """A file that appears, with mode 0600, once everything is written to it; or standard output."""
    if output == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        return
    from agentwrit.durable import NewFile

    with NewFile(Path(output), or_device=True) as file:
        yield file
        file.settle()


def confirmed(stream: TextIO | None, question: str, what: str) -> bool:
    """Ask the user at the terminal for confirmation. `what`: the action that cannot be undone.

    Raises:
        click.UsageError: the stream is not a terminal.
    """
    if not is_terminal(stream):
        raise click.UsageError(f"{what} cannot be undone: confirm it with --yes")
    if click.confirm(escaped(question), err=True):
        return True
    say("nothing was done")
    return False


def print_json(content: object) -> None:
    """Print the broker's own object, and nothing else, on standard output."""
    print(to_json(content, indent=2 if is_terminal(sys.stdout) else None))


def print_json_line(content: object) -> None:
    """Print one of many objects on a line of its own."""
    print(to_json(content))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table with a heading."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(value)) for value in row))  # as Text, so that no value is interpreted as markup
    _console().print(table)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print the fields of one object, one line each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, Text(_shown(value)))
    _console().print(table)


class Tree(NamedTuple):
    """A node of a tree: its lines, and the nodes below it."""

    lines: Sequence[str]
    below: Sequence["Tree"]


def print_tree(label: str, branches: Iterable[Tree]) -> None:
    """Print a tree under a label."""
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
    """Whether a standard stream is a terminal. The stream is None if the process was started with it closed."""
    return stream is not None and bool(getattr(stream, "isatty", lambda: False)())


def _console() -> "Console":
    from rich.console import Console

    # In a pipe or a file, lines are not folded, so that other programs can search them.
    return Console(highlight=False, width=None if is_terminal(sys.stdout) else 1000)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(escaped(str(item)) for item in value)
    return "" if value is None else escaped(str(value))
