"""The command line, as a process: what it prints, where, and how it exits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import AGENTWRIT, CLEAN, one_line, run, terminal
from tests.support import ADMIN_SECRET, BrokerProcess


@pytest.fixture
def operator(broker: BrokerProcess) -> dict[str, str]:
    return {"AGENTWRIT_BROKER_URL": broker.url, "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}


def test_an_app_is_kept_from_the_command_line(operator: dict[str, str]) -> None:
    registered = json.loads(run("app", "register", "cli-shop", "--scope", "read:data:*", "--json", **operator).stdout)
    assert set(registered) == {"app_id", "client_id", "client_secret", "scopes", "token_ttl"}
    shown = json.loads(run("app", "show", "cli-shop", "--json", **operator).stdout)
    assert shown["app_id"] == registered["app_id"]
    updated = run("app", "update", "cli-shop", "--scope", "read:data:1", "--token-ttl", "60", "--json", **operator)
    assert json.loads(updated.stdout)["scopes"] == ["read:data:1"]
    rotated = json.loads(run("app", "rotate-secret", registered["app_id"], "--json", **operator).stdout)
    assert rotated["client_secret"] != registered["client_secret"]
    assert "cli-shop" in run("app", "list", **operator).stdout
    listed = json.loads(run("app", "list", "--json", **operator).stdout)
    assert registered["app_id"] in [app["app_id"] for app in listed["apps"]]
    one_line(run("app", "remove", "cli-shop", **operator), 2, "--yes")
    removed = json.loads(run("app", "remove", "cli-shop", "--yes", "--json", **operator).stdout)
    assert removed["status"] == "inactive"


def test_an_apps_audiences_are_set_and_taken_away_from_the_command_line(operator: dict[str, str]) -> None:
    given = ("--audience", "billing", "--audience", "orders")
    run("app", "register", "cli-audiences", "--scope", "read:data:*", *given, **operator)
    assert "orders" in run("app", "show", "cli-audiences", **operator).stdout

    def update(*arguments: str) -> list[str]:
        done = run("app", "update", "cli-audiences", *arguments, "--json", **operator)
        return list(json.loads(done.stdout)["audiences"])

    assert update("--token-ttl", "60") == ["billing", "orders"]
    assert update("--audience", "orders") == ["orders"]
    assert update("--no-audience") == []
    one_line(run("app", "update", "cli-audiences", *given, "--no-audience", **operator), 2, "not both")


def test_what_an_app_reports_for_is_set_and_taken_away_from_the_command_line(operator: dict[str, str]) -> None:
    run("app", "register", "cli-service", "--reports-for", "orders", **operator)
    assert "orders" in run("app", "show", "cli-service", **operator).stdout

    def update(*arguments: str) -> list[str]:
        done = run("app", "update", "cli-service", *arguments, "--json", **operator)
        return list(json.loads(done.stdout)["reports_for"])

    assert update("--token-ttl", "60") == ["orders"]
    assert update("--reports-for", "billing", "--reports-for", "orders") == ["billing", "orders"]
    assert update("--no-reports") == []
    one_line(run("app", "update", "cli-service", "--reports-for", "a", "--no-reports", **operator), 2, "not both")


def test_an_apps_limits_are_set_changed_and_taken_away_from_the_command_line(operator: dict[str, str]) -> None:
    given = ("--max-live-agents", "3", "--max-ttl", "60")
    run("app", "register", "cli-limits", "--scope", "read:data:*", *given, **operator)

    def limits(record: str) -> list[int | None]:
        shown = json.loads(record)
        return [shown["max_live_agents"], shown["max_ttl"], shown["creates_per_second"]]

    def update(*arguments: str) -> list[int | None]:
        return limits(run("app", "update", "cli-limits", *arguments, "--json", **operator).stdout)

    assert limits(run("app", "show", "cli-limits", "--json", **operator).stdout) == [3, 60, None]
    assert update("--creates-per-second", "5", "--max-live-agents", "none") == [None, 60, 5]
    assert update("--token-ttl", "60") == [None, 60, 5]
    assert update("--max-ttl", "none", "--creates-per-second", "none") == [None] * 3
    one_line(run("app", "update", "cli-limits", "--max-ttl", "no", **operator), 2, "--max-ttl", "'no'", "'none'")
    one_line(run("app", "update", "cli-limits", "--max-live-agents", "0", **operator), 2, "max_live_agents", "1 to")
    one_line(run("app", "update", "cli-limits", **operator), 2, "--max-ttl")


def test_an_app_is_suspended_and_resumed_from_the_command_line(operator: dict[str, str]) -> None:
    run("app", "register", "cli-suspended", "--scope", "read:data:*", **operator)
    for _ in range(2):
        suspended = run("app", "suspend", "cli-suspended", **operator)
        assert (suspended.returncode, "suspended" in suspended.stdout) == (0, True)
    assert json.loads(run("app", "show", "cli-suspended", "--json", **operator).stdout)["status"] == "suspended"
    resumed = json.loads(run("app", "resume", "cli-suspended", "--json", **operator).stdout)
    assert resumed["status"] == "active"
    run("app", "remove", "cli-suspended", "--yes", **operator)
    one_line(run("app", "resume", "cli-suspended", **operator), 1, "removed", "app register")
    one_line(run("app", "suspend", "app-none", **operator), 1, "no such app")


def test_of_apps_of_one_name_the_one_that_is_left_is_meant_also_while_it_is_suspended(operator: dict[str, str]) -> None:
    register = ("app", "register", "cli-again", "--scope", "read:data:*", "--json")
    run(*register, **operator)
    run("app", "remove", "cli-again", "--yes", **operator)
    app_id = json.loads(run(*register, **operator).stdout)["app_id"]
    run("app", "suspend", "cli-again", **operator)
    assert json.loads(run("app", "resume", "cli-again", "--json", **operator).stdout)["app_id"] == app_id


def test_a_registered_apps_exports_can_be_pasted(operator: dict[str, str], broker: BrokerProcess) -> None:
    lines = run("app", "register", "cli-paste", "--scope", "read:data:*", **operator).stdout.splitlines()
    exports = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
    body = {"client_id": exports["AGENTWRIT_CLIENT_ID"], "client_secret": exports["AGENTWRIT_CLIENT_SECRET"]}
    assert broker.http.post(exports["AGENTWRIT_BROKER_URL"] + "/v1/app/auth", json=body).status_code == 200


def test_mistakes_are_one_line_that_says_what_to_do(operator: dict[str, str]) -> None:
    url = {"AGENTWRIT_BROKER_URL": operator["AGENTWRIT_BROKER_URL"]}
    one_line(run("app", "list", **url), 2, "AGENTWRIT_ADMIN_SECRET", "agentwrit init")
    one_line(run("app", "list", **url, AGENTWRIT_ADMIN_SECRET="a-wrong-secret"), 2, "not accepted")
    one_line(run("app", "list", AGENTWRIT_BROKER_URL="http://127.0.0.1:9", AGENTWRIT_ADMIN_SECRET="x"), 2, "reached")
    one_line(run("app", "list", AGENTWRIT_BROKER_URL="broker", AGENTWRIT_ADMIN_SECRET="x"), 2, "not the URL")
    one_line(run("app", "show", "none", **operator), 1, "no such app")
    for elsewhere in ("", ".", ".."):
        one_line(run("app", "show", elsewhere, **operator), 2, "id or name")
    one_line(run("app", "register", "Bad", "--scope", "a:b:c", **operator), 2, "name")
    one_line(run("app", "register", "good", **operator), 2, "--scope")
    one_line(run("app", "update", "good", **operator), 2, "--scope")
    one_line(run("nothing"), 2, "No such command", "--help")
    one_line(run("dev"), 2, "COMMAND")


def test_a_token_is_validated_from_standard_input(broker: BrokerProcess) -> None:
    agent = broker.app().agent()
    url = {"AGENTWRIT_BROKER_URL": broker.url}
    valid = run("token", "validate", stdin=agent["access_token"] + "\n", **url)
    assert (valid.returncode, "yes" in valid.stdout) == (0, True)
    assert agent["agent_id"] in valid.stdout
    as_json = json.loads(run("token", "validate", "--json", agent["access_token"], **url).stdout)
    assert as_json["claims"]["sub"] == agent["agent_id"]
    assert run("token", "validate", "nonsense", **url).returncode == 1


def test_a_validation_as_json_is_the_brokers_own_object(broker: BrokerProcess) -> None:
    url = {"AGENTWRIT_BROKER_URL": broker.url}
    for token in (broker.app().agent()["access_token"], broker.app().token(), "nonsense"):
        assert json.loads(run("token", "validate", "--json", stdin=token, **url).stdout) == broker.validate(token)


def test_what_is_not_text_is_no_token(broker: BrokerProcess) -> None:
    answer = run("token", "validate", "--json", b"\xff\xfe", AGENTWRIT_BROKER_URL=broker.url)
    assert answer.returncode == 1, answer
    assert json.loads(answer.stdout) == broker.validate("nonsense")


def test_no_token_is_a_mistake_and_not_an_invalid_one(broker: BrokerProcess) -> None:
    one_line(run("token", "validate", AGENTWRIT_BROKER_URL=broker.url), 2, "standard input")


def test_what_is_not_text_is_refused_in_one_line_that_does_not_repeat_it(operator: dict[str, str]) -> None:
    one_line(run("app", "show", b"\xff\xfe", **operator), 2, "utf-8")
    refused = run("app", "list", **{**operator, "AGENTWRIT_ADMIN_SECRET": "hush\udcff"})
    one_line(refused, 2, "no text")
    assert "hush" not in refused.stderr


def test_what_others_say_cannot_steer_the_terminal() -> None:
    refused = run("app", "list", AGENTWRIT_BROKER_URL="http://127.0.0.1:9/\x1b[2J\n", AGENTWRIT_ADMIN_SECRET="x")
    one_line(refused, 2)
    assert "\x1b" not in refused.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_line(operator: dict[str, str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [AGENTWRIT, "app", "list", "--json"],
            env={**CLEAN, **operator, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    one_line(done, 2, "No space left")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_news(operator: dict[str, str], unbuffered: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [AGENTWRIT, "app", "list"],
        env={**CLEAN, **operator, "PYTHONUNBUFFERED": unbuffered},
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("group", [(), ("app",), ("token",)])
def test_a_group_without_a_command_shows_what_there_is(group: tuple[str, ...]) -> None:
    done = run(*group)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: agentwrit")


def test_help_loads_neither_a_client_nor_what_draws_tables() -> None:
    program = (
        "import sys; from agentwrit.cli.commands import run; code = run(['app', '--help']);"
        "assert not {'rich', 'nacl', 'httpx2'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=CLEAN, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "rotate-secret" in done.stdout


def test_without_what_it_needs_it_says_what_to_install() -> None:
    # -S: a Python with its standard library alone.
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-S", "-c", "from agentwrit.cli import main; main()"],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=60,
    )
    one_line(done, 2, "pip install 'agentwrit[broker]'")


# -- at a terminal --------------------------------------------------------------------------------------------------


def test_the_secret_is_asked_for_and_not_shown(operator: dict[str, str]) -> None:
    with terminal(["app", "list"], AGENTWRIT_BROKER_URL=operator["AGENTWRIT_BROKER_URL"]) as session:
        session.wait_for("secret: ")
        session.type(f"{ADMIN_SECRET}\n")
        assert session.finish() == 0
    assert "app_id" in session.shown
    assert ADMIN_SECRET not in session.shown


def test_a_token_is_asked_for_and_not_shown(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"]
    with terminal(["token", "validate"], AGENTWRIT_BROKER_URL=broker.url) as session:
        session.wait_for("token: ")
        session.type(f"{token}\n")
        assert session.finish() == 0
    assert token not in session.shown


def test_an_app_is_removed_only_if_the_answer_is_yes(operator: dict[str, str]) -> None:
    run("app", "register", "cli-asked", "--scope", "read:data:*", **operator)
    for answer, code, status in (("n", 1, "active"), ("y", 0, "inactive")):
        with terminal(["app", "remove", "cli-asked"], **operator) as session:
            session.wait_for("[y/N]: ")
            session.type(f"{answer}\n")
            assert session.finish() == code
        assert ("nothing was done" in session.shown) == (answer == "n")
        assert json.loads(run("app", "show", "cli-asked", "--json", **operator).stdout)["status"] == status


def test_ctrl_c_at_a_question_is_130(operator: dict[str, str]) -> None:
    with terminal(["app", "list"], AGENTWRIT_BROKER_URL=operator["AGENTWRIT_BROKER_URL"]) as session:
        session.wait_for("secret: ")
        session.type("\x03")
        assert session.finish() == 130
    assert "interrupted" in session.shown


# -- the broker's own process ---------------------------------------------------------------------------------------


def test_init_makes_a_secret_that_the_broker_accepts(tmp_path: Path) -> None:
    data = {"AGENTWRIT_DATA_DIR": str(tmp_path / "data")}
    printed = run("init", "--print-env", **data).stdout
    secret = printed.removeprefix("export AGENTWRIT_ADMIN_SECRET=").strip()
    assert printed == f"export AGENTWRIT_ADMIN_SECRET={secret}\n"
    with BrokerProcess(tmp_path / "data", AGENTWRIT_ADMIN_SECRET=secret) as broker:
        assert broker.http.post("/v1/admin/auth", json={"secret": secret}).status_code == 200
        one_line(run("init", **data), 2, "in use by another broker")
    assert secret not in "".join(
        path.read_bytes().decode("latin-1") for path in (tmp_path / "data").iterdir() if path.is_file()
    )


def test_a_secret_that_is_there_is_replaced_only_by_whoever_says_so(tmp_path: Path) -> None:
    data = {"AGENTWRIT_DATA_DIR": str(tmp_path / "data")}
    first = run("init", "--print-env", **data).stdout
    one_line(run("init", "--print-env", **data), 2, "has a secret since", "agentwrit init --replace")
    with BrokerProcess(tmp_path / "data", AGENTWRIT_ADMIN_SECRET="") as broker:
        secret = first.removeprefix("export AGENTWRIT_ADMIN_SECRET=").strip()
        assert broker.http.post("/v1/admin/auth", json={"secret": secret}).status_code == 200


def test_a_new_secret_replaces_the_old_one_and_ends_its_tokens(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        token = broker.admin()["authorization"].removeprefix("Bearer ")
        broker.stop()
        assert run("init", "--replace", AGENTWRIT_DATA_DIR=str(tmp_path / "data")).returncode == 0
        broker.settings["AGENTWRIT_ADMIN_SECRET"] = "another-secret-altogether"
        broker.start()
        assert not broker.is_valid(token)
        assert broker.http.post("/v1/admin/auth", json={"secret": ADMIN_SECRET}).status_code == 401


def serve(tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to fail."""
    return run(
        "serve",
        **{
            "AGENTWRIT_DATA_DIR": str(tmp_path / "data"),
            "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET,
            "AGENTWRIT_PORT": "0",
            "AGENTWRIT_LOG_LEVEL": "error",
            **settings,
        },
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"AGENTWRIT_ADMIN_SECRET": ""}, ("agentwrit init", "AGENTWRIT_ADMIN_SECRET")),
        ({"AGENTWRIT_ADMIN_SECRET": "short"}, ("fewer than 8",)),
        ({"AGENTWRIT_PORT": "http"}, ("AGENTWRIT_PORT", "whole number")),
        ({"AGENTWRIT_MAX_TTL": "0"}, ("AGENTWRIT_MAX_TTL",)),
        ({"AGENTWRIT_DEFAULT_TTL": "100000"}, ("AGENTWRIT_DEFAULT_TTL", "AGENTWRIT_MAX_TTL")),
        ({"AGENTWRIT_LOG_LEVEL": "loud"}, ("AGENTWRIT_LOG_LEVEL", "debug")),
        ({"AGENTWRIT_TRUST_DOMAIN": "Not A Domain"}, ("AGENTWRIT_TRUST_DOMAIN",)),
        ({"AGENTWRIT_TRUSTED_PROXIES": "proxy.local"}, ("AGENTWRIT_TRUSTED_PROXIES",)),
        ({"AGENTWRIT_MASTER_KEY": "abc"}, ("AGENTWRIT_MASTER_KEY", "32 bytes")),
        ({"AGENTWRIT_DATABASE_URL": "postgresql://x"}, ("AGENTWRIT_DATABASE_URL",)),
        ({"AGENTWRIT_WORKERS": "2"}, ("AGENTWRIT_WORKERS",)),
        ({"AGENTWRIT_TLS_CERT": "/nowhere.pem"}, ("AGENTWRIT_TLS_KEY",)),
        ({"AGENTWRIT_TLS_CERT": "/nowhere.pem", "AGENTWRIT_TLS_KEY": "/nowhere.pem"}, ("TLS",)),
        ({"AGENTWRIT_HOST": "256.256.256.256"}, ("AGENTWRIT_HOST", "256.256.256.256")),
        ({"AGENTWRIT_DATA_DIR": "/proc/nothing"}, ("AGENTWRIT_DATA_DIR",)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_broker_that_cannot_start_says_why(tmp_path: Path, settings: dict[str, str], words: tuple[str, ...]) -> None:
    one_line(serve(tmp_path, **settings), 2, *words)


def test_a_port_in_use_is_named(tmp_path: Path, broker: BrokerProcess) -> None:
    port = broker.url.rpartition(":")[2]
    one_line(serve(tmp_path, AGENTWRIT_PORT=port), 2, port, "AGENTWRIT_PORT")


def test_a_second_broker_on_one_data_directory_is_refused(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data"):
        one_line(serve(tmp_path), 2, "in use by another broker")


def test_a_wrong_master_key_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        token = broker.app().agent()["access_token"]
        broker.stop()
        one_line(serve(tmp_path, AGENTWRIT_MASTER_KEY="ab" * 32), 2, "master key")
        (tmp_path / "data" / "master.key").rename(tmp_path / "kept")
        one_line(serve(tmp_path), 2, "master key", "missing")
        (tmp_path / "kept").rename(tmp_path / "data" / "master.key")
        broker.start()
        assert broker.is_valid(token)


def test_an_unknown_name_in_the_file_is_an_error_and_an_unknown_variable_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "agentwrit.toml"
    file.write_text("prot = 1\n")
    environment = {"AGENTWRIT_DATA_DIR": str(tmp_path / "data"), "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET}
    one_line(run("serve", "--config", str(file), **environment), 2, "prot", "did you mean port?")
    with BrokerProcess(tmp_path / "data", AGENTWRIT_ADMIN_SECERT="x") as broker:
        assert "did you mean AGENTWRIT_ADMIN_SECRET?" in broker.logged()


# -- inspecting a token ------------------------------------------------------------------------------------------------


def test_a_token_is_explained_claim_by_claim(broker: BrokerProcess) -> None:
    agent = broker.app().agent("read:data:7", task_id="task-77")
    done = run("token", "inspect", stdin=agent["access_token"], AGENTWRIT_BROKER_URL=broker.url, COLUMNS="200")
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    for words in ("holds yes", f"sub {agent['agent_id']} the", "scope read:data:7 what", "task_id task-77 the task"):
        assert words in shown


def test_what_is_wrong_with_a_token_is_said(broker: BrokerProcess) -> None:
    app = broker.app(audiences=["orders"])
    url = {"AGENTWRIT_BROKER_URL": broker.url}
    for_another = app.agent(audience=["orders"])["access_token"]
    assert json.loads(run("token", "inspect", "--json", stdin=for_another, **url).stdout)["holds"] is True
    released = app.agent()["access_token"]
    broker.release(released)
    forged = released[:-6] + "AAAAAA"
    for token, wrong in ((released, "revoked"), (forged, "signature")):
        done = run("token", "inspect", "--json", stdin=token, **url)
        told = json.loads(done.stdout)
        assert (done.returncode, told["holds"], told["claims"]["task_id"]) == (1, False, "task-1")
        assert wrong in told["error"]
        assert token not in done.stdout + done.stderr
    one_line(run("token", "inspect", "nonsense", **url), 2, "cannot be read")


@pytest.mark.parametrize("lost", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("arguments", [["token", "validate", "x"], ["no-such-command"], []])
def test_who_cannot_be_told_what_went_wrong_has_the_exit_code_that_says_it(lost: str, arguments: list[str]) -> None:
    """And nothing on standard output, where answers stand."""
    if not Path("/dev/full").exists():
        pytest.skip("a device of Linux")
    command = ["sh", "-c", f'"$@" {lost}', "sh", AGENTWRIT, *arguments]
    nowhere = {**CLEAN, "AGENTWRIT_BROKER_URL": "http://127.0.0.1:9"}
    done = subprocess.run(command, env=nowhere, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")


def test_without_standard_output_a_command_says_what_it_says_by_its_exit_code(operator: dict[str, str]) -> None:
    for arguments in (["app", "list"], ["audit", "export"], ["keys", "list", "--json"]):
        command = ["sh", "-c", '"$@" >&-', "sh", AGENTWRIT, *arguments]
        done = subprocess.run(command, env={**CLEAN, **operator}, capture_output=True, text=True, timeout=60)
        assert (arguments, done.returncode) == (arguments, 0), done.stderr
