"""What cannot work is said in one line, and nothing is written."""

import socket
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from agentwrit.broker.storage.postgres_schema import check_version, open_database
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.errors import ConfigurationError
from tests import postgres
from tests.cli.support import one_line, run
from tests.cluster.support import MASTER_KEY, member
from tests.cluster.test_store_copy import is_empty
from tests.e2e.test_tls import self_signed
from tests.postgres import PostgresServer
from tests.support import ADMIN_SECRET


def serve(url: str, **settings: str) -> subprocess.CompletedProcess[str]:
    shared = {"AGENTWRIT_MASTER_KEY": MASTER_KEY, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET, "AGENTWRIT_PORT": "0"}
    with tempfile.TemporaryDirectory() as place:
        directory = {"AGENTWRIT_DATA_DIR": place}
        return run("serve", **{**shared, **directory, "AGENTWRIT_DATABASE_URL": url, **settings})


@pytest.mark.parametrize(
    "url",
    [
        "mysql://localhost/x",
        "postgresql:/localhost/x",
        "/var/lib/agentwrit",
        "postgresql://[::1/x",
        "postgresql://localhost/x?sslmode=sometimes&password=hunter2",
        "postgresql://user:hunter2@localhost/x?colour=red",
        "postgresql://user:hunter2@localhost:port/x",
    ],
)
def test_a_url_that_is_none_is_named_and_never_shown(url: str) -> None:
    done = serve(url)
    one_line(done, 2, "AGENTWRIT_DATABASE_URL")
    assert "hunter2" not in done.stderr


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = serve(f"postgresql://user:hunter2@127.0.0.1:{port}/x")
    one_line(done, 2, "cannot be reached", str(port), "AGENTWRIT_DATABASE_URL")
    assert "hunter2" not in done.stderr


def test_a_database_that_is_not_there_is_said(postgres_server: str) -> None:
    one_line(serve(postgres_server.rpartition("/")[0] + "/nothing_here"), 2, "nothing_here", "does not exist")


def test_a_user_that_is_not_let_in_is_said_and_its_password_not_shown(database_url: str) -> None:
    done = serve(postgres.as_user(database_url, "stranger:hunter2"))
    one_line(done, 2, "stranger")
    assert "hunter2" not in done.stderr


def test_a_wrong_password_is_said_and_not_shown_and_the_right_one_serves(tmp_path: Path) -> None:
    with closing(PostgresServer()) as server:
        server.require_password("swordfish")
        done = serve(postgres.as_user(server.url, f"{postgres.USER}:hunter2"))
        one_line(done, 2, "password authentication failed", "AGENTWRIT_DATABASE_URL")
        assert "hunter2" not in done.stderr
        right = postgres.as_user(server.url, f"{postgres.USER}:swordfish")
        assert is_empty(right)
        with member(right, tmp_path / "broker") as broker:
            assert broker.app().agent()
        assert "swordfish" not in broker.log.read_text()


def test_a_certificate_that_is_not_the_servers_is_said_and_the_right_one_serves(tmp_path: Path) -> None:
    ours, _ = self_signed(tmp_path)
    others = tmp_path / "others"
    others.mkdir()
    with closing(PostgresServer()) as server:
        server.use_certificate(*self_signed(others))
        one_line(serve(f"{server.url}?sslmode=verify-full&sslrootcert={ours}"), 2, "certificate verify failed")
        one_line(serve(f"{server.url}?sslmode=verify-full&sslrootcert={tmp_path}/none.pem"), 2, "none.pem")
        assert is_empty(server.url)
        with member(f"{server.url}?sslmode=verify-full&sslrootcert={others}/cert.pem", tmp_path / "broker") as broker:
            assert broker.app().agent()
            encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            assert postgres.ask(server.url, f"{encrypted} WHERE application_name = 'agentwrit'") == [(True,)]


def test_a_server_without_tls_is_refused_where_it_is_asked_for(database_url: str) -> None:
    one_line(serve(f"{database_url}?sslmode=require"), 2, "does not support SSL")
    assert is_empty(database_url)


def test_a_server_that_is_too_old_is_refused() -> None:
    check_version(14_00_00)
    with pytest.raises(ConfigurationError, match="PostgreSQL 13, and AgentWrit needs 14 or newer"):
        check_version(13_00_22)


def test_a_database_needs_a_master_key(database_url: str) -> None:
    one_line(serve(database_url, AGENTWRIT_MASTER_KEY=""), 2, "AGENTWRIT_MASTER_KEY")
    one_line(serve(database_url, AGENTWRIT_MASTER_KEY="abc"), 2, "32 bytes")
    assert is_empty(database_url)


def test_a_different_master_key_a_different_cluster_and_a_newer_schema_are_refused(
    database_url: str, tmp_path: Path
) -> None:
    with member(database_url, tmp_path / "broker"):
        pass
    before = contents(database_url)
    one_line(serve(database_url, AGENTWRIT_MASTER_KEY="5a" * 32), 2, "master key", "AGENTWRIT_MASTER_KEY")
    one_line(serve(database_url, AGENTWRIT_TRUST_DOMAIN="other.example"), 2, "another cluster", "other.example")
    one_line(serve(database_url, AGENTWRIT_ISSUER="other"), 2, "another cluster")
    assert contents(database_url) == before
    postgres.ask(database_url, "UPDATE agentwrit.meta SET value = '99' WHERE name = 'version'")
    before = contents(database_url)
    one_line(serve(database_url), 2, "newer version", "99")
    assert contents(database_url) == before


def test_a_schema_of_another_program_is_left_alone(database_url: str) -> None:
    postgres.ask(database_url, "CREATE SCHEMA agentwrit")
    postgres.ask(database_url, "CREATE TABLE agentwrit.diary (entry text)")
    one_line(serve(database_url), 2, "another program")
    tables = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'agentwrit'"
    assert postgres.ask(database_url, tables) == [("diary",)]


def test_a_user_who_may_not_make_the_schema_is_told(database_url: str, postgres_server: str) -> None:
    postgres.ask(postgres_server, "DROP ROLE IF EXISTS guest")
    postgres.ask(postgres_server, "CREATE ROLE guest LOGIN")
    try:
        one_line(serve(postgres.as_user(database_url, "guest")), 2, "permission denied", "allowed to create it")
        assert is_empty(database_url)
    finally:
        postgres.ask(postgres_server, "DROP ROLE guest")


def test_an_event_that_was_altered_at_the_end_of_the_log_stops_the_start(database_url: str, tmp_path: Path) -> None:
    with member(database_url, tmp_path / "broker"):
        pass
    postgres.ask(database_url, "UPDATE agentwrit.events SET detail = 'nothing' WHERE sequence = 3")
    one_line(serve(database_url), 2, "altered outside the broker")


def test_a_log_that_was_cut_off_stops_the_start(database_url: str, tmp_path: Path) -> None:
    with member(database_url, tmp_path / "broker"):
        pass
    newest = "(SELECT max(sequence) FROM agentwrit.events)"
    postgres.ask(database_url, f"DELETE FROM agentwrit.events WHERE sequence = {newest}")
    one_line(serve(database_url), 2, "altered outside the broker")


def contents(database_url: str) -> list[list[tuple[object, ...]]]:
    """What a start might write."""
    tables = ("meta", "cluster", "operators", "signing_keys", "events", "checkpoint")
    return [postgres.ask(database_url, f"SELECT * FROM agentwrit.{table} ORDER BY 1") for table in tables]


def test_a_database_in_which_not_every_text_can_be_written_is_refused_in_a_line(postgres_server: str) -> None:
    name = "agentwrit_test_latin1"
    made_for = "ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    postgres.ask(postgres_server, f"CREATE DATABASE {name} {made_for}")
    try:
        url = postgres_server.rpartition("/")[0] + "/" + name
        with pytest.raises(ConfigurationError, match=r"encoding of the database is LATIN1.*ENCODING 'UTF8'"):
            open_database(url, Sealer(b"s" * 32), "tests")
        assert postgres.ask(url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'agentwrit'") == [(0,)]
    finally:
        postgres.ask(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_without_the_language_of_our_triggers_is_refused_in_a_line(database_url: str) -> None:
    postgres.ask(database_url, "DROP EXTENSION plpgsql")
    with pytest.raises(ConfigurationError, match=r"no PL/pgSQL.*CREATE EXTENSION plpgsql"):
        open_database(database_url, Sealer(b"s" * 32), "tests")
    assert is_empty(database_url)


def test_an_empty_schema_that_was_made_for_the_broker_is_taken(database_url: str, postgres_server: str) -> None:
    postgres.ask(postgres_server, "CREATE ROLE zz_tenant LOGIN")
    try:
        postgres.ask(database_url, "CREATE SCHEMA agentwrit AUTHORIZATION zz_tenant")
        theirs = postgres.as_user(database_url, "zz_tenant")
        open_database(theirs, Sealer(b"s" * 32), "tests")
        open_database(theirs, Sealer(b"s" * 32), "tests")
    finally:
        postgres.ask(database_url, "DROP OWNED BY zz_tenant")
        postgres.ask(postgres_server, "DROP ROLE zz_tenant")
