"""`agentwrit operator`, as people use it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwrit.broker.config import unknown_variables
from agentwrit.broker.passwords import hash_password
from tests.cli.support import one_line, run, terminal
from tests.support import ADMIN_SECRET, BrokerProcess


@pytest.fixture
def own(tmp_path: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path / "data") as broker:
        yield broker


@pytest.fixture
def first(own: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": own.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


def exported(printed: str) -> dict[str, str]:
    lines = [line.removeprefix("export ") for line in printed.splitlines() if line.startswith("export ")]
    return dict(line.split("=", 1) for line in lines)


def test_an_operator_is_added_works_and_is_removed(own: BrokerProcess, first: dict[str, str]) -> None:
    added = run("operator", "add", "ana", **first)
    assert added.returncode == 0, added.stderr
    ana = exported(added.stdout)
    assert set(ana) == {"AGENTWRIT_BROKER_URL", "AGENTWRIT_OPERATOR", "AGENTWRIT_ADMIN_SECRET"}
    [line] = unknown_variables(ana)  # they are for the command line, and set no secret of a broker's
    assert "it sets nothing here" in line
    assert run("app", "register", "shop", "--scope", "read:data:*", **ana).returncode == 0
    assert run("audit", "usage", "--app", "shop", **ana).returncode == 0
    events = run("audit", "events", "--principal", "admin:ana", "--json", **ana).stdout.splitlines()
    assert {"admin_auth", "app_registered"} == {json.loads(event)["event_type"] for event in events}
    rotated = exported(run("operator", "rotate", "ana", **ana).stdout)
    one_line(run("operator", "list", **ana), 2, "not accepted")
    assert run("operator", "list", **rotated).stdout.split()[4:6] == ["admin", "active"]
    assert run("operator", "remove", "ana", "--yes", **first).returncode == 0
    one_line(run("operator", "list", **rotated), 2, "not accepted")
    listed = json.loads(run("operator", "list", "--json", **first).stdout)["operators"]
    assert [(each["name"], each["status"]) for each in listed] == [("admin", "active"), ("ana", "removed")]


def test_a_secret_comes_by_standard_input(first: dict[str, str]) -> None:
    for name, given in (("ana", "a secret of ana's"), ("bo", hash_password("a secret of bo's"))):
        added = run("operator", "add", name, "--secret-stdin", stdin=f"{given}\n", **first)
        assert added.returncode == 0, added.stderr
        assert "secret" not in added.stdout
        own = {**first, "AGENTWRIT_OPERATOR": name, "AGENTWRIT_ADMIN_SECRET": f"a secret of {name}'s"}
        assert run("operator", "list", **own).returncode == 0
    rotated = run("operator", "rotate", "ana", "--secret-stdin", stdin="a new secret of ana's", **first)
    assert rotated.returncode == 0, rotated.stderr
    one_line(run("operator", "add", "cy", "--secret-stdin", **first), 2, "standard input")
    one_line(run("operator", "add", "cy", "--secret-stdin", stdin="short\n", **first), 2, "8 characters")


def test_what_is_wrong_is_said_in_a_line(first: dict[str, str]) -> None:
    one_line(run("operator", "add", "Ana", **first), 2, "name")
    one_line(run("operator", "add", "admin", **first), 1, "exists")
    one_line(run("operator", "rotate", "nobody", **first), 1, "agentwrit operator list")
    one_line(run("operator", "remove", "nobody", "--yes", **first), 1, "agentwrit operator list")
    one_line(run("operator", "remove", "admin", "--yes", **first), 1, "AGENTWRIT_ADMIN_SECRET")
    one_line(run("operator", "remove", "admin", **first), 2, "--yes")
    one_line(run("operator", "remove", "..", "--yes", **first), 2, "not a valid name")
    one_line(run("operator", "list", **{**first, "AGENTWRIT_OPERATOR": "nobody"}), 2, "not accepted")


def test_at_a_terminal_it_asks_for_the_secret_of_the_one_who_is_named(
    own: BrokerProcess, first: dict[str, str]
) -> None:
    secret = json.loads(run("operator", "add", "ana", "--json", **first).stdout)["secret"]
    url = {"AGENTWRIT_BROKER_URL": own.url, "AGENTWRIT_OPERATOR": "ana"}
    with terminal(["operator", "list"], **url) as session:
        session.wait_for("secret of the operator ana")
        session.type(f"{secret}\n")
        assert session.finish() == 0
    assert secret not in session.shown


def test_a_token_of_a_named_operator_says_whose_it_is(own: BrokerProcess, first: dict[str, str]) -> None:
    secret = json.loads(run("operator", "add", "ana", "--json", **first).stdout)["secret"]
    token = own.http.post("/v1/admin/auth", json={"secret": secret, "name": "ana"}).json()["access_token"]
    inspected = run("token", "inspect", stdin=token, AGENTWRIT_BROKER_URL=own.url)
    assert (inspected.returncode, "the operator, if" in inspected.stdout) == (0, True), inspected
    assert run("token", "validate", stdin=token, AGENTWRIT_BROKER_URL=own.url).returncode == 0


def test_init_gives_the_first_operator_a_new_secret_and_leaves_the_others_alone(
    own: BrokerProcess, first: dict[str, str]
) -> None:
    """For the day when nobody has a secret any more."""
    ana = exported(run("operator", "add", "ana", **first).stdout)
    own.stop()
    own.settings["AGENTWRIT_ADMIN_SECRET"] = ""
    own.start()
    ana["AGENTWRIT_BROKER_URL"] = own.url
    assert run("operator", "remove", "admin", "--yes", **ana).returncode == 0
    own.stop()
    printed = run("init", "--print-env", AGENTWRIT_DATA_DIR=str(own.data_dir)).stdout
    own.start()
    ana["AGENTWRIT_BROKER_URL"] = own.url
    admin = {"AGENTWRIT_BROKER_URL": own.url, **exported(printed)}
    for operator in (admin, ana):
        listed = json.loads(run("operator", "list", "--json", **operator).stdout)["operators"]
        assert [(each["name"], each["status"]) for each in listed] == [("admin", "active"), ("ana", "active")]
