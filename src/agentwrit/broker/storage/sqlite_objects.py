"""Whether a database file has the schema that our migrations make, and nothing besides.

Rows are sealed, but what the schema says of them is not: a trigger undoes what was just written, a view shows other
rows than there are, a default or a check decides what is kept. Whoever can write the file can add such things, or edit
the schema's own text, and every row stays genuine.

The rules:

- What there has to be follows from the migrations: they are run into an empty database in memory, up to the version
  that the file says it has.
- Tables, indexes, views and triggers are compared by their names and by their whole text, blanks aside. There may be
  neither more nor less of them. SQLite reads nothing but that text: columns, defaults, checks and what is generated are
  in it.
- Each table and index has pages of its own. What is looked up when a broker starts, or is good once, is found: the
  indexes of those tables hold what the tables hold. The grants and the log are too large for that at each start.
- The statistics that ANALYZE leaves are SQLite's own. They change how quickly something is found, and never what.
- While a store is open, whoever changes its schema from outside is noticed before the next commit.
"""

import re
import sqlite3
from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple

from agentwrit.broker.storage import migrations, tables
from agentwrit.domain.errors import ConfigurationError, TamperedRecord

FOUND_BY_INDEX: Final = (
    tables.APPS,
    tables.ENDINGS,
    tables.FIRST_ANSWERS,
    tables.LAUNCH_TOKENS,
    tables.NONCES,
    tables.OPERATORS,
    tables.REVOCATIONS,
    tables.SIGNING_KEYS,
)

NO_PAGE: Final = 0  # where a view or a trigger begins
SCHEMAS_PAGE: Final = 1

_BLANKS: Final = re.compile(r"[ \t\n\f\r]+")  # what SQLite takes for them, and no others

_Name = tuple[str, str, str]
"""What an object is (`table`, `index`, `view` or `trigger`), its name, and the table that it belongs to."""

# https://www.sqlite.org/fileformat2.html#the_sqlite_stat1_table, and what follows there.
_STATISTICS: Final[Mapping[_Name, str]] = {
    ("table", "sqlite_stat1", "sqlite_stat1"): "CREATE TABLE sqlite_stat1(tbl,idx,stat)",
    ("table", "sqlite_stat4", "sqlite_stat4"): "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)",
}


class _Object(NamedTuple):
    text: str | None
    page: object


def check(connection: sqlite3.Connection) -> None:
    """Refuse a database whose schema is not the one of the version that it says it has.

    Raises:
        TamperedRecord: it is not. Names what is too much, missing or other than it should be.
        ConfigurationError: it is a newer version's.
    """
    [version] = connection.execute("PRAGMA user_version").fetchone()
    latest = migrations.load("sqlite")[-1].version
    if version > latest:
        raise ConfigurationError(
            f"the database was written by a newer version of AgentWrit (schema {version}, this one knows {latest}):"
            " upgrade agentwrit"
        )
    there, ours = _objects(connection), _made_by_migrations(version)
    for name, found in there.items():
        if name not in ours and _STATISTICS.get(name) != found.text:
            raise TamperedRecord(f"the {_shown(name)} in its schema is not AgentWrit's")
    for name, text in ours.items():
        if name not in there:
            raise TamperedRecord(f"the {_shown(name)} is missing in its schema")
        if there[name].text != text:
            raise TamperedRecord(f"the {_shown(name)} in its schema is not as AgentWrit makes it")
    pages = [found.page for (kind, *_), found in there.items() if kind in ("table", "index")]
    if len(set(pages) - {NO_PAGE, SCHEMAS_PAGE}) < len(pages):
        raise TamperedRecord("two tables or indexes of its schema have the same pages")


def check_indexes(connection: sqlite3.Connection) -> None:
    """Refuse a database in which rows that are there are not found.

    Raises:
        TamperedRecord: there are some. Names the first index.
    """
    for table in FOUND_BY_INDEX:
        [found] = connection.execute(f"PRAGMA integrity_check({table.name})").fetchone()
        if found != "ok":
            raise TamperedRecord(f"the table {table.name} is damaged: {found}")


class Watch:
    """Notices when somebody else changes the schema of a database that `connection` has open, in no transaction.

    Raises:
        TamperedRecord: the schema is not AgentWrit's to begin with.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("BEGIN")
        try:
            check(connection)
            self._seen = self._version()
        finally:
            connection.rollback()

    def check(self) -> None:
        """To be called in the transaction that is about to write.

        Raises:
            TamperedRecord: there is something in the schema that is not AgentWrit's.
        """
        version = self._version()
        if version != self._seen:
            check(self._connection)
            self._seen = version

    def _version(self) -> int:
        """What SQLite counts up with each change of the schema (https://www.sqlite.org/pragma.html)."""
        [version] = self._connection.execute("PRAGMA schema_version").fetchone()
        return int(version)


def _objects(connection: sqlite3.Connection) -> dict[_Name, _Object]:
    rows = connection.execute("SELECT type, name, tbl_name, sql, rootpage FROM main.sqlite_schema").fetchall()
    found = {(str(kind), str(name), str(table)): _Object(_plain(sql), page) for kind, name, table, sql, page in rows}
    if len(found) < len(rows):
        raise TamperedRecord("two objects of its schema have the same name")
    return found


@cache
def _made_by_migrations(version: int) -> Mapping[_Name, str | None]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for step in migrations.load("sqlite"):
            if step.version <= version:
                connection.executescript(step.script)
        return {name: made.text for name, made in _objects(connection).items()}
    finally:
        connection.close()


def _plain(sql: object) -> str | None:
    """The text of an object with single blanks; an index that a constraint makes has none."""
    return None if sql is None else _BLANKS.sub(" ", str(sql)).strip(" ")


def _shown(name: _Name) -> str:
    text = " ".join(name[:2])
    return text if text.isprintable() else ascii(text)
