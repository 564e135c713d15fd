"""A client of this protocol that others published runs its life against our broker, as it is."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import ADMIN_SECRET, BrokerProcess

PROGRAM = """
import os
from datetime import datetime, timedelta, timezone
from agentwrit import AgentWritApp, scope_is_subset, validate
from agentwrit.errors import AuthenticationError, AuthorizationError

url = os.environ["AGENTWRIT_BROKER_URL"]
app = AgentWritApp(url, os.environ["AGENTWRIT_CLIENT_ID"], os.environ["AGENTWRIT_CLIENT_SECRET"])
assert app.health().status == "ok"
agent = app.create_agent(orch_id="orders", task_id="t-1", requested_scope=["read:data:customer-1"])
claims = validate(url, agent.access_token).claims
assert claims.sub == agent.agent_id and claims.scope == ["read:data:customer-1"], claims
assert scope_is_subset(["read:data:customer-1"], agent.scope)
first = agent.access_token
agent.renew()
assert validate(url, agent.access_token).valid and not validate(url, first).valid
delegate = app.create_agent(orch_id="orders", task_id="t-2", requested_scope=["read:data:customer-2"])
given = agent.delegate(delegate.agent_id, ["read:data:customer-1"], ttl=120)
assert given.expires_in == 120
[hop] = given.delegation_chain
assert hop.agent == agent.agent_id and hop.scope == ["read:data:customer-1"], hop
known = validate(url, given.access_token).claims
for record in (hop, known.delegation_chain[0]):
    passed = datetime.now(timezone.utc) - datetime.fromisoformat(record.delegated_at.replace("Z", "+00:00"))
    assert abs(passed) < timedelta(minutes=1), record
assert known.sub == delegate.agent_id and known.task_id == "t-1", known
try:
    agent.delegate(delegate.agent_id, ["read:data:*"])
except AuthorizationError as error:
    assert error.problem.error_code == "scope_violation"
else:
    raise AssertionError("more was delegated than is held")
agent.release()
agent.release()
assert not validate(url, given.access_token).valid
assert validate(url, delegate.access_token).valid
dead = validate(url, agent.access_token)
assert not dead.valid and dead.error == "token is invalid or expired", dead
try:
    app.create_agent(orch_id="orders", task_id="t-1", requested_scope=["delete:data:customer-1"])
except AuthorizationError as error:
    assert error.problem.error_code == "scope_violation"
else:
    raise AssertionError("a scope outside the ceiling was granted")
try:
    AgentWritApp(url, "nobody", "nothing").create_agent(orch_id="o", task_id="t", requested_scope=["read:data:1"])
except AuthenticationError as error:
    assert error.status_code == 401
else:
    raise AssertionError("a wrong secret was accepted")
print("whole life")
"""


@pytest.fixture
def published_python() -> Path:
    path = Path(os.environ.get("AGENTWRIT_TEST_PUBLISHED_PYTHON", ".venv-published/bin/python")).absolute()
    assert path.exists(), "run `make test`: it installs the published client, or set AGENTWRIT_TEST_PUBLISHED_PYTHON"
    return path


def test_the_published_client_lives_its_life_unmodified(broker: BrokerProcess, published_python: Path) -> None:
    app = broker.app()
    environment = {
        "PATH": os.environ["PATH"],
        "AGENTWRIT_BROKER_URL": broker.url,
        "AGENTWRIT_CLIENT_ID": app.client_id,
        "AGENTWRIT_CLIENT_SECRET": app.client_secret,
    }
    done = subprocess.run(
        [published_python, "-I", "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "whole life\n"
    assert ADMIN_SECRET not in broker.logged()
    assert app.client_secret not in broker.logged()
