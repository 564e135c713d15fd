"""Each sample app notices when what it claims does not hold, and says in one line why it could not run."""

import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.client.peer import Handler, Reply, answer, peer
from tests.examples.samples import SAMPLES, ceiling, run, run_without_dev
from tests.support import ADMIN_SECRET, BrokerProcess, TestApp

# What the audit log says of one run: how many events of a type there are for a task.
RECORDED = {
    "order_service": [("agent_registered", "process-4823", 1), ("token_released", "process-4823", 1)],
    "audit_scanner": [("delegation_denied", "errors", 1)],
    "data_pipeline": [("agent_registered", "nightly-birch", 1), ("token_released", "nightly-birch", 1)],
    "deploy_runner": [
        ("delegation_created", "orchestrator", 3),
        ("delegation_attenuation_violation", "orchestrator", 2),
    ],
    # Grants for this task that the operator ended, level by level: 2, 2, 3, 3, 4 and 4.
    "incident_response": [("token_revoked", "claim-77", 18)],
    "mcp_orders": [("agent_registered", "support-7291", 1), ("token_released", "support-7291", 1)],
    "moderation_queue": [("delegation_created", "moderator", 1)],
    "patient_guard": [("agent_registered", "visit-pat-1042", 1), ("token_released", "visit-pat-1042", 1)],
    "trading_agent": [("token_renewed", "acc-31", 2), ("token_released", "acc-31", 1)],
}


def settings(app: TestApp) -> dict[str, str]:
    return {
        "AGENTWRIT_BROKER_URL": app.broker.url,
        "AGENTWRIT_CLIENT_ID": app.client_id,
        "AGENTWRIT_CLIENT_SECRET": app.client_secret,
        "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET,
    }


def one_line(name: str, done: subprocess.CompletedProcess[str], words: str) -> None:
    """It could not run, and said why in one line."""
    assert done.returncode == 2, done
    assert done.stderr.startswith(f"{name}: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


@pytest.mark.parametrize("name", SAMPLES)
def test_it_notices_tokens_that_do_not_die(name: str, tmp_path: Path) -> None:
    """Its app has the ceiling of its page, which is enough: all that it does is done, and is in the audit log."""
    replies: list[Reply] = []
    with (
        peer(lambda handler: replies[0](handler)) as liar,
        BrokerProcess(tmp_path / "data", AGENTWRIT_PUBLIC_URL=liar.url) as broker,
    ):
        replies.append(never_invalid(broker))
        app = broker.app(*ceiling(name))
        done = run_without_dev(name, **{**settings(app), "AGENTWRIT_BROKER_URL": liar.url})
        assert done.returncode == 1, done.stdout
        assert "Traceback" not in done.stderr  # what it may say is that the liar has no feed to follow
        for event_type, task_id, count in RECORDED[name]:
            assert len(broker.events(event_type=event_type, task_id=task_id)) == count, (event_type, task_id)


def never_invalid(broker: BrokerProcess) -> Reply:
    """Passes requests on to a broker, but those for the feed. Once it has seen a token to be valid, all tokens are."""
    valid: list[httpx2.Response] = []

    def reply(handler: Handler) -> None:
        path, body, _ = handler.server.seen[-1]
        if path.startswith("/v1/revocations"):  # who follows the feed believes what is signed, and no liar
            answer(503, b"")(handler)
            return
        # The host too: it is what a proof of possession is for.
        passed_on = ("authorization", "idempotency-key", "host")
        headers = {name: handler.headers[name] for name in passed_on if name in handler.headers}
        response = broker.http.request(handler.command, path, json=body, headers=headers)
        if path == "/v1/token/validate":
            if response.json()["valid"]:
                valid.append(response)
            response = (valid or [response])[-1]
        challenge = response.headers.get("www-authenticate", "")
        answer(response.status_code, response.content, www_authenticate=challenge)(handler)

    return reply


@pytest.mark.parametrize("name", SAMPLES)
def test_it_says_which_variables_are_missing(name: str) -> None:
    done = run_without_dev(name, AGENTWRIT_ADMIN_SECRET=ADMIN_SECRET)
    one_line(name, done, "set AGENTWRIT_BROKER_URL and AGENTWRIT_CLIENT_ID and AGENTWRIT_CLIENT_SECRET")


@pytest.mark.parametrize("name", SAMPLES)
def test_it_says_that_the_ceiling_is_too_low(name: str, broker: BrokerProcess) -> None:
    one_line(name, run_without_dev(name, **settings(broker.app("read:nothing:*"))), "ceiling")


def test_the_incident_response_needs_the_operators_secret(broker: BrokerProcess) -> None:
    given = settings(broker.app(*ceiling("incident_response")))
    done = run_without_dev("incident_response", **{**given, "AGENTWRIT_ADMIN_SECRET": ""})
    one_line("incident_response", done, "AGENTWRIT_ADMIN_SECRET")
    done = run_without_dev("incident_response", **{**given, "AGENTWRIT_ADMIN_SECRET": "wrong-secret"})
    one_line("incident_response", done, "secret")


def test_the_patient_guard_takes_no_wildcard_for_a_patient(broker: BrokerProcess) -> None:
    [patients] = ceiling("patient_guard")
    given = settings(broker.app(patients))
    done = run("python examples/patient_guard.py --patient '*'", **given)
    one_line("patient_guard", done, "'*'")
