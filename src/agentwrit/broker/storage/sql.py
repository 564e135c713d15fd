"""What the SQL adapters share: how they are asked."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol


class Rows(Protocol):
    """What a statement gave."""

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...

    def __iter__(self) -> Iterator[Any]: ...


class Session(Protocol):
    """A connection to a database, in a transaction. SQL has `?` in the places of values."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Rows: ...
