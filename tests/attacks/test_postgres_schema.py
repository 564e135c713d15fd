"""A database with genuine rows, and a schema that somebody else has had a hand in."""

import contextlib
from collections.abc import Iterator

import pytest

from agentwrit.broker.storage import migrations, postgres_migration, postgres_objects, postgres_schema
from agentwrit.broker.storage.postgres_link import Link
from agentwrit.broker.storage.postgres_rows import State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError, TamperedRecord
from tests import postgres

SEALER = Sealer(b"s" * 32)
UNDO = "CREATE FUNCTION elsewhere.undo() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
TRIGGER = f"{UNDO} CREATE TRIGGER zz BEFORE UPDATE ON grants FOR EACH ROW EXECUTE FUNCTION elsewhere.undo()"

EDITS = {
    "a trigger": TRIGGER,
    "a trigger that fires for replicas": f"{TRIGGER}; ALTER TABLE grants ENABLE REPLICA TRIGGER zz",
    "a trigger that is disabled": f"{TRIGGER}; ALTER TABLE grants DISABLE TRIGGER zz",
    "a trigger that says it is the server's own": f"{TRIGGER}; UPDATE pg_trigger SET tgisinternal = TRUE",
    "our trigger gone": "DROP TRIGGER tally_events ON events",
    "our trigger disabled": "ALTER TABLE events DISABLE TRIGGER tally_events",
    "our trigger with another function": (
        f"{UNDO} DROP TRIGGER tally_events ON events; CREATE TRIGGER tally_events AFTER INSERT ON events FOR EACH ROW"
        " WHEN (NEW.sequence % 4096 = 0) EXECUTE FUNCTION elsewhere.undo()"
    ),
    "our function with another body": (
        "CREATE OR REPLACE FUNCTION tally_events() RETURNS trigger LANGUAGE plpgsql SET search_path = agentwrit AS"
        " 'BEGIN DELETE FROM revocations; RETURN NULL; END'"
    ),
    "our function with another's rights": "ALTER FUNCTION tally_events() SECURITY DEFINER",
    "our function looking elsewhere": "ALTER FUNCTION tally_events() SET search_path = elsewhere, agentwrit",
    "a rule": "CREATE RULE zz AS ON INSERT TO revocations DO INSTEAD NOTHING",
    "a rule beside what is done": "CREATE RULE zz AS ON UPDATE TO grants DO ALSO DELETE FROM revocations",
    "rows that are hidden": (
        "ALTER TABLE revocations ENABLE ROW LEVEL SECURITY; ALTER TABLE revocations FORCE ROW LEVEL SECURITY"
    ),
    "a policy": "CREATE POLICY zz ON revocations USING (FALSE)",
    "a view in a table's place": (
        "ALTER TABLE revocations SET SCHEMA elsewhere; CREATE VIEW revocations AS SELECT * FROM elsewhere.revocations"
    ),
    "a view in the place of the table that is read first": (
        "ALTER TABLE meta SET SCHEMA elsewhere; CREATE VIEW meta AS SELECT * FROM elsewhere.meta"
    ),
    "a partitioned table in a table's place": (
        "DROP TABLE nonces; CREATE TABLE nonces (nonce BYTEA PRIMARY KEY, expires_at BIGINT NOT NULL)"
        " PARTITION BY HASH (nonce); CREATE INDEX nonces_expiry ON nonces (expires_at)"
    ),
    "a table that inherits": "CREATE TABLE elsewhere.more () INHERITS (revocations)",
    "a table that inherits from another": (
        "CREATE TABLE elsewhere.more (nonce BYTEA NOT NULL, expires_at BIGINT NOT NULL);"
        " ALTER TABLE nonces INHERIT elsewhere.more"
    ),
    "a table more": "CREATE TABLE diary (entry TEXT)",
    "a view more": "CREATE VIEW diary AS SELECT 1 AS one",
    "a kept view": "CREATE MATERIALIZED VIEW diary AS SELECT 1 AS one",
    "a sequence more": "CREATE SEQUENCE diary",
    "a type more": "CREATE TYPE diary AS (entry TEXT)",
    "a domain": "CREATE DOMAIN diary AS TEXT CHECK (VALUE <> '')",
    "a function": "CREATE FUNCTION diary() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "a function that is taken for the server's": (
        "CREATE FUNCTION max(BIGINT[]) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'"
    ),
    "a procedure": "CREATE PROCEDURE diary() LANGUAGE sql AS 'SELECT 1'",
    "an aggregate": "CREATE AGGREGATE diary(BIGINT) (SFUNC = int8pl, STYPE = bigint)",
    "an operator": (
        "CREATE FUNCTION elsewhere.same(TEXT, BIGINT) RETURNS boolean LANGUAGE sql AS 'SELECT TRUE';"
        " CREATE OPERATOR = (LEFTARG = TEXT, RIGHTARG = BIGINT, FUNCTION = elsewhere.same)"
    ),
    "a collation": 'CREATE COLLATION diary FROM "C"',
    "statistics": "CREATE STATISTICS diary ON app_id, kind FROM grants",
    "a search configuration": "CREATE TEXT SEARCH CONFIGURATION diary (COPY = pg_catalog.simple)",
    "a table that is not logged": "ALTER TABLE nonces SET UNLOGGED",
    "a table gone": "DROP TABLE first_answers",
    "a column more": "ALTER TABLE grants ADD COLUMN note TEXT",
    "a column with a default": "ALTER TABLE grants ADD COLUMN note TEXT NOT NULL DEFAULT current_user",
    "a column that is generated": "ALTER TABLE grants ADD COLUMN note TEXT GENERATED ALWAYS AS (sid || jti) STORED",
    "a column gone": "ALTER TABLE grants DROP COLUMN counted",
    "a default": "ALTER TABLE revocations ALTER COLUMN last_exp SET DEFAULT 0",
    "another default": "ALTER TABLE grants ALTER COLUMN counted SET DEFAULT 1",
    "a column that may be empty": "ALTER TABLE grants ALTER COLUMN ended_at DROP NOT NULL",
    "a column of another type": "ALTER TABLE checkpoint ALTER COLUMN size TYPE numeric",
    "a column that compares otherwise": 'ALTER TABLE operators ALTER COLUMN name TYPE text COLLATE "default"',
    "a sequence that begins again": "ALTER SEQUENCE grants_place_seq CYCLE MAXVALUE 100",
    "a check": "ALTER TABLE grants ADD CONSTRAINT zz CHECK (ended_at >= 0)",
    "a check that was never made": "ALTER TABLE grants ADD CONSTRAINT zz CHECK (ended_at = 0) NOT VALID",
    "a constraint gone": "ALTER TABLE grants DROP CONSTRAINT grants_sid_key",
    "a table elsewhere that refers to ours": (
        "CREATE TABLE elsewhere.more (sid TEXT REFERENCES agentwrit.grants (sid) ON DELETE CASCADE)"
    ),
    "an index": "CREATE INDEX zz ON grants (orch_id)",
    "an index on what a function says": "CREATE INDEX grants_expiry_ccnew ON grants (abs(exp))",
    "an index gone": "DROP INDEX grants_live_by_app",
    "an index of other rows": (
        "DROP INDEX grants_live_by_app; CREATE INDEX grants_live_by_app ON grants (app_id, kind) WHERE ended_at = 1"
    ),
    "an index that is not used": (
        "UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'agentwrit.grants_live_by_app'::regclass"
    ),
    "an older version": "UPDATE meta SET value = '3' WHERE name = 'version'",
    "a name that ends the line": 'CREATE TABLE "diary\n\x1b[2J" (entry TEXT)',
}

ADMINISTRATORS = {
    "storage parameters": "ALTER TABLE grants SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01)",
    "what REINDEX CONCURRENTLY leaves when it fails": (
        "CREATE INDEX grants_expiry_ccnew ON grants (exp);"
        " UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'agentwrit.grants_expiry_ccnew'::regclass"
    ),
    "a reindexed table": "REINDEX TABLE grants",
    "statistics of the planner": "ANALYZE; ALTER TABLE grants ALTER COLUMN app_id SET STATISTICS 500",
    "somebody who may read": "CREATE ROLE zz_auditor; GRANT USAGE ON SCHEMA agentwrit TO zz_auditor;"
    " GRANT SELECT ON ALL TABLES IN SCHEMA agentwrit TO zz_auditor",
    "a comment": "COMMENT ON TABLE grants IS 'do not touch'",
    "a table of another program": "CREATE TABLE elsewhere.diary (entry TEXT)",
    "a replica identity": "ALTER TABLE events REPLICA IDENTITY FULL",
}


@pytest.fixture(scope="module")
def link(postgres_server: str) -> Iterator[Link]:
    """A connection to a store's database, where all is undone that a test does in its transaction."""
    with postgres.database(postgres_server) as url:
        postgres_schema.open_database(url, SEALER, "tests")
        link = postgres_schema.connect(url)
        yield link
        link.close()


@contextlib.contextmanager
def edited(link: Link, change: str) -> Iterator[None]:
    with link.connection.transaction(force_rollback=True):
        link.connection.execute(b"CREATE SCHEMA elsewhere")
        link.connection.execute(change.encode())
        yield


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_a_schema_that_is_not_ours_is_refused(link: Link, change: str) -> None:
    with (
        edited(link, change),
        pytest.raises((TamperedRecord, ConfigurationError), match=r"in its schema|of another program") as refusal,
    ):
        postgres_migration.prepare(link, SEALER, "tests")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("change", ADMINISTRATORS.values(), ids=ADMINISTRATORS)
def test_what_an_administrator_does_for_speed_or_for_others_is_no_alteration(link: Link, change: str) -> None:
    with edited(link, change):
        postgres_migration.prepare(link, SEALER, "tests")


@pytest.mark.parametrize("kept", ["", "00" * 32, None])
def test_a_description_that_somebody_else_wrote_is_not_relied_upon(link: Link, kept: str | None) -> None:
    forge = "DELETE FROM meta WHERE name = 'schema'"
    if kept is not None:
        forge = f"UPDATE meta SET value = '{kept}' WHERE name = 'schema'"
    with edited(link, forge):
        postgres_migration.prepare(link, SEALER, "tests")
    with edited(link, f"{TRIGGER}; {forge}"), pytest.raises(TamperedRecord, match="trigger zz of grants"):
        postgres_migration.prepare(link, SEALER, "tests")


def test_a_description_of_one_version_is_none_of_another(link: Link) -> None:
    with link.connection.transaction(force_rollback=True), pytest.raises(TamperedRecord):
        postgres_objects.check(link, SEALER, migrations.load("postgres")[-1].version - 1)


@pytest.mark.parametrize("version", [step.version for step in migrations.load("postgres")[:-1]])
def test_a_store_of_an_older_version_is_brought_up_to_date_unless_its_schema_is_another(
    link: Link, version: int
) -> None:
    def make() -> None:
        link.execute("DROP SCHEMA agentwrit CASCADE")
        link.execute("CREATE SCHEMA agentwrit")
        for step in migrations.load("postgres"):
            if step.version <= version:
                postgres_objects.apply(link, step)
        for name, value in (("version", str(version)), ("sealed_by", SEALER.name), ("cluster", "tests")):
            link.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))
        link.execute("INSERT INTO cluster (one, state) VALUES (1, ?)", (State().sealed(SEALER),))

    with link.connection.transaction(force_rollback=True):
        make()
        postgres_migration.prepare(link, SEALER, "tests")
        postgres_migration.prepare(link, SEALER, "tests")
    with edited(link, "SELECT 1"):
        make()
        link.connection.execute(TRIGGER.encode())
        with pytest.raises(TamperedRecord, match="trigger zz of grants"):
            postgres_migration.prepare(link, SEALER, "tests")


@pytest.mark.parametrize("is_new", [True, False])
def test_a_database_in_which_others_are_told_of_what_is_made_is_refused(database_url: str, is_new: bool) -> None:
    if not is_new:
        postgres_schema.open_database(database_url, SEALER, "tests")
    postgres.ask(
        database_url,
        "CREATE FUNCTION public.told() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN NULL; END'",
    )
    postgres.ask(database_url, "CREATE EVENT TRIGGER zz ON ddl_command_end EXECUTE FUNCTION public.told()")
    with pytest.raises(ConfigurationError, match="event trigger zz"):
        postgres_schema.open_database(database_url, SEALER, "tests")
    postgres.ask(database_url, "ALTER EVENT TRIGGER zz DISABLE")
    postgres_schema.open_database(database_url, SEALER, "tests")


def test_whoever_may_make_no_schema_any_more_goes_on_with_what_was_found_to_be_ours(
    database_url: str, postgres_server: str
) -> None:
    database = database_url.rpartition("/")[2]
    postgres.ask(postgres_server, "CREATE ROLE zz_owner LOGIN")
    try:
        theirs = postgres.as_user(database_url, "zz_owner")
        postgres.ask(database_url, f"GRANT CREATE ON DATABASE {database} TO zz_owner")
        postgres_schema.open_database(theirs, SEALER, "tests")
        postgres.ask(database_url, f"REVOKE CREATE ON DATABASE {database} FROM zz_owner")
        postgres_schema.open_database(theirs, SEALER, "tests")
        postgres.ask(database_url, "DELETE FROM agentwrit.meta WHERE name = 'schema'")
        with pytest.raises(ConfigurationError, match=f"GRANT CREATE ON DATABASE {database} TO zz_owner"):
            postgres_schema.open_database(theirs, SEALER, "tests")
        assert postgres.ask(database_url, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'agentwrit%'") == [
            ("agentwrit",)
        ]
    finally:
        postgres.ask(database_url, "DROP OWNED BY zz_owner")
        postgres.ask(postgres_server, "DROP ROLE zz_owner")
