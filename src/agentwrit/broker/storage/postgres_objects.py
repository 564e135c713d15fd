"""Whether the schema in a database is the one that our migrations make, and nothing besides.

Rows are sealed, but what the schema does with them is not: a trigger or a rule undoes what was just written, a policy
or a view shows other rows than there are, a table that inherits from ours adds some. Whoever owns the schema can add
such things, and every row stays genuine.

The rules:

- What there has to be follows from the migrations: they are run into another schema of the same server, which describes
  what came of it in its own words, and that is rolled back.
- Compared are tables and whatever else stands in their place, columns, constraints, indexes, sequences, triggers,
  rules, policies and functions, by all that changes what they do; of every other kind of object there is none. What
  only changes how quickly something is found or where it lies is the administrator's: storage parameters, tablespaces,
  what REINDEX CONCURRENTLY leaves beside an index of ours.
- A description that was found to be ours is kept under a MAC. So a start compares, and makes no schema again until the
  description changes: with a migration, or with another version of the server.
- A database has no event trigger that is enabled: it would run as we do, in what is made to compare with as well.
"""

import hashlib
import secrets
from typing import Final

import psycopg

from agentwrit.broker.storage import migrations
from agentwrit.broker.storage.migrations import Migration
from agentwrit.broker.storage.postgres_link import SCHEMA, Link
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError, TamperedRecord

_SEAL: Final = "schema"  # its row in `meta`, and what its MAC is of

Description = frozenset[tuple[str, str]]
"""What there is, and how it is."""

# Each says of the schema ? what there is in it, and how it is.
_DESCRIBE: Final = (
    # Whatever depends on the schema: all kinds of objects that can be in one.
    """
    SELECT object.type || ' ' || object.identity, ''
    FROM pg_depend, pg_identify_object(classid, objid, objsubid) AS object
    WHERE refclassid = 'pg_namespace'::regclass AND refobjid = ?::regnamespace
    """,
    """
    SELECT 'relation ' || relname, concat_ws(' ', relkind, relpersistence, amname, reloftype, relispartition,
        relrowsecurity, relforcerowsecurity)
    FROM pg_class LEFT JOIN pg_am ON pg_am.oid = relam
    WHERE relnamespace = ?::regnamespace AND relkind NOT IN ('i', 'I')
    """,
    """
    SELECT 'column ' || relname || '.' || attname, concat_ws(' ',
        row_number() OVER (PARTITION BY attrelid ORDER BY attnum), format_type(atttypid, atttypmod), attnotnull,
        attidentity, attgenerated, attcollation::regcollation, pg_get_expr(adbin, adrelid))
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = ?::regnamespace AND relkind NOT IN ('i', 'I', 'S') AND attnum > 0 AND NOT attisdropped
    """,
    """
    SELECT 'sequence ' || relname, concat_ws(' ', format_type(seqtypid, NULL), seqstart, seqincrement, seqmax, seqmin,
        seqcycle)
    FROM pg_sequence JOIN pg_class ON pg_class.oid = seqrelid WHERE relnamespace = ?::regnamespace
    """,
    """
    SELECT 'constraint ' || conname || ' of ' || COALESCE(conrelid::regclass::text, ''), concat_ws(' ',
        pg_get_constraintdef(pg_constraint.oid), convalidated, condeferrable, condeferred)
    FROM pg_constraint LEFT JOIN pg_class AS other ON other.oid = confrelid, (SELECT ?::regnamespace AS schema) AS ours
    WHERE connamespace = ours.schema OR other.relnamespace = ours.schema
    """,
    # By what they do and not by their names: so what REINDEX makes or has left is no other index than ours.
    """
    SELECT CASE WHEN usable THEN 'usable index of ' ELSE 'index of ' END || tables.relname, replace(
        pg_get_indexdef(indexrelid), ' INDEX ' || quote_ident(indexes.relname) || ' ON ', ' INDEX ON ')
    FROM pg_index JOIN pg_class AS indexes ON indexes.oid = indexrelid JOIN pg_class AS tables ON tables.oid = indrelid,
        (VALUES (FALSE), (TRUE)) AS as_it_is (usable)
    WHERE tables.relnamespace = ?::regnamespace AND (NOT usable OR indisvalid AND indisready AND indislive)
    """,
    """
    SELECT 'trigger ' || tgname || ' of ' || relname, concat_ws(' ', pg_get_triggerdef(pg_trigger.oid), tgenabled)
    FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid WHERE relnamespace = ?::regnamespace
    """,
    """
    SELECT 'rule ' || rulename || ' of ' || relname, concat_ws(' ', pg_get_ruledef(pg_rewrite.oid), ev_enabled)
    FROM pg_rewrite JOIN pg_class ON pg_class.oid = ev_class WHERE relnamespace = ?::regnamespace
    """,
    """
    SELECT 'policy ' || polname || ' of ' || relname, ''
    FROM pg_policy JOIN pg_class ON pg_class.oid = polrelid WHERE relnamespace = ?::regnamespace
    """,
    """
    SELECT 'function ' || proname, concat_ws(' ', prokind, pg_get_function_arguments(pg_proc.oid),
        pg_get_function_result(pg_proc.oid), lanname, prosecdef, provolatile, proisstrict,
        array_to_string(proconfig, ','), prosrc, probin, pg_get_function_sqlbody(pg_proc.oid))
    FROM pg_proc JOIN pg_language ON pg_language.oid = prolang WHERE pronamespace = ?::regnamespace
    """,
    """
    SELECT 'table ' || child.oid::regclass || ' that inherits from ' || parent.oid::regclass, ''
    FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid JOIN pg_class AS parent ON parent.oid = inhparent,
        (SELECT ?::regnamespace AS schema) AS ours
    WHERE ours.schema IN (child.relnamespace, parent.relnamespace) AND child.relkind NOT IN ('i', 'I')
    """,
)


def check(link: Link, sealer: Sealer, version: int) -> None:
    """Refuse a schema that is not the one of this version, in the transaction that `link` is in.

    Raises:
        TamperedRecord: it is not. Names what is too much, missing or other than it should be.
        ConfigurationError: it cannot be known.
    """
    there = _described(link, SCHEMA)
    kept = link.execute("SELECT value FROM meta WHERE name = ?", (_SEAL,)).fetchone()
    if kept != (_seal(there, sealer, version),):
        _compare(there, _made_by_migrations(link, version))
        keep(link, sealer, version)


def keep(link: Link, sealer: Sealer, version: int) -> None:
    """Remember the schema as it is, which was found to be the one of this version."""
    link.execute(
        "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (_SEAL, _seal(_described(link, SCHEMA), sealer, version)),
    )


def is_empty(link: Link) -> bool:
    """Whether there is nothing in the schema, which is there."""
    [[found]] = link.execute(
        "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = ours) + (SELECT count(*) FROM pg_type"
        " WHERE typnamespace = ours) + (SELECT count(*) FROM pg_proc WHERE pronamespace = ours)"
        " FROM (SELECT ?::regnamespace AS ours) AS schema",
        (SCHEMA,),
    ).fetchall()
    return not found


def check_events(link: Link) -> None:
    """Refuse a database in which others are told of what we do, and may do something about it.

    Raises:
        ConfigurationError: it has an event trigger.
    """
    found = link.execute("SELECT evtname FROM pg_event_trigger WHERE evtenabled <> 'D' ORDER BY evtname").fetchone()
    if found is not None:
        raise ConfigurationError(
            f"the database has the event trigger {_shown(found[0])}, which can change what AgentWrit makes in it: use a"
            " database for AgentWrit alone, or disable it"
        )


def apply(link: Link, step: Migration, *, schema: str = SCHEMA) -> None:
    """Run a migration. What it makes remembers in which schema it was made, whatever else is looked through later."""
    link.execute(f"SET LOCAL search_path = {schema}")
    link.connection.execute(step.script.encode("utf-8"))


def undo(link: Link, step: Migration) -> None:
    """Run what undoes a migration, which is there."""
    link.execute(f"SET LOCAL search_path = {SCHEMA}")
    link.connection.execute((step.way_back or "").encode("utf-8"))


def _described(link: Link, schema: str) -> Description:
    def as_ours(text: object) -> str:
        # The path of a function is as it was written by the session that made it, which may have quoted all names.
        return str(text).replace(f'"{schema}"', schema).replace(schema, SCHEMA)

    return frozenset(
        (as_ours(what), as_ours(how)) for query in _DESCRIBE for what, how in link.execute(query, (schema,))
    )


def _seal(description: Description, sealer: Sealer, version: int) -> str:
    digest = hashlib.sha256(repr(sorted(description)).encode("utf-8", "surrogatepass")).hexdigest()
    return sealer.mac(_SEAL, f"{version} {digest}".encode("ascii")).hex()


def _made_by_migrations(link: Link, version: int) -> Description:
    schema = f"{SCHEMA}_{secrets.token_hex(8)}"
    try:
        with link.connection.transaction(force_rollback=True):
            link.execute(f"CREATE SCHEMA {schema}")
            for step in migrations.load("postgres"):
                if step.version <= version:
                    apply(link, step, schema=schema)
            return _described(link, schema)
    except psycopg.errors.InsufficientPrivilege:
        user, database = link.connection.info.user, link.connection.info.dbname
        raise ConfigurationError(
            f"the schema {SCHEMA} is to be compared with a new one, and {user} may not make one in the database:"
            f" GRANT CREATE ON DATABASE {database} TO {user}, until a broker has started once"
        ) from None


def _compare(there: Description, ours: Description) -> None:
    known = {what for what, _ in ours}
    for what, _ in sorted(there - ours):
        if what not in known:
            raise TamperedRecord(f"the {_shown(what)} in its schema is not AgentWrit's")
    for what, _ in sorted(ours - there):
        if what not in {found for found, _ in there}:
            raise TamperedRecord(f"the {_shown(what)} is missing in its schema")
    for what, _ in sorted(there ^ ours):
        raise TamperedRecord(f"the {_shown(what)} in its schema is not as AgentWrit makes it")


def _shown(text: str) -> str:
    return text if text.isprintable() else ascii(text)
