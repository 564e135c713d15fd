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

# What its documentation and `help()` promise, a story each. They begin with an app that has not logged in yet.
BEGIN = """
import os
from agentwrit import *
from agentwrit import crypto

def refused(kind, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind, error
        return error
    raise AssertionError(f"no {kind.__name__}")

url, operator = os.environ["AGENTWRIT_BROKER_URL"], os.environ["AGENTWRIT_ADMIN_SECRET"]
client_id, client_secret = os.environ["AGENTWRIT_CLIENT_ID"], os.environ["AGENTWRIT_CLIENT_SECRET"]
app = AgentWritApp(url, client_id, client_secret, timeout=20.0, user_agent="a-story/1")

def new(*scopes, **options):
    return app.create_agent("orders", "t-1", list(scopes or ["read:data:1"]), **options)

def as_operator(path, **body):
    import httpx
    secret = {"secret": operator}
    token = httpx.post(url + "/v1/admin/auth", json=secret).json()["access_token"]
    answer = httpx.post(url + path, json=body, headers={"Authorization": "Bearer " + token})
    assert answer.is_success, answer.text
    return answer.json()
"""

STORIES = {
    "a broker's health": """
health = app.health()
assert health.status == "ok" and health.db_connected is True, health
assert isinstance(health.version, str) and isinstance(health.uptime, int), health
before = health.audit_events_count
new()
assert app.health().audit_events_count > before
app.close()
""",
    "an agent with a key and a lifetime of its own": """
key = crypto.generate_keypair()
agent = new("read:data:1", "write:data:*", private_key=key, max_ttl=60, label="an agent's label")
assert agent.agent_id.startswith("spiffe://agentwrit.local/agent/orders/t-1/"), agent
assert (agent.expires_in, agent.scope) == (60, ["read:data:1", "write:data:*"])
assert (agent.orch_id, agent.task_id) == ("orders", "t-1")
assert agent.bearer_header == {"Authorization": "Bearer " + agent.access_token}
claims = app.validate(agent.access_token).claims
assert (claims.iss, claims.aud) == ("agentwrit", ["agentwrit"]), claims
assert claims.exp - claims.iat == 60 and claims.nbf <= claims.iat, claims
assert claims.jti and claims.sid and claims.delegation_chain is None and claims.chain_hash is None, claims
again = new(private_key=key)
assert again.agent_id != agent.agent_id and again.expires_in == 300
assert new(max_ttl=10**9).expires_in == 86400
""",
    "a renewal, which changes the token and nothing else": """
agent = new("read:data:1", max_ttl=90)
before = app.validate(agent.access_token).claims
agent.renew()
after = app.validate(agent.access_token).claims
assert agent.expires_in == 90 and after.jti != before.jti
assert (after.sub, after.scope, after.sid) == (before.sub, before.scope, before.sid)
assert after.exp - after.iat == 90
""",
    "five hops, and no sixth": """
agents = [new() for _ in range(7)]
holder = agents[0]
for depth, delegate in enumerate(agents[1:6], start=1):
    given = holder.delegate(delegate.agent_id, ["read:data:1"])
    assert given.expires_in <= 60 and len(given.delegation_chain) == depth, given
    holder = Agent(app, delegate.agent_id, given.access_token, given.expires_in, ["read:data:1"], "t-1", "orders")
claims = validate(url, holder.access_token).claims
assert [hop.agent for hop in claims.delegation_chain] == [agent.agent_id for agent in agents[:5]]
assert len(claims.chain_hash) == 64 and claims.sub == agents[5].agent_id
error = refused(AuthorizationError, lambda: holder.delegate(agents[6].agent_id, ["read:data:1"]))
assert error.status_code == 403
holder.renew()
assert validate(url, holder.access_token).valid
agents[0].release()
assert not validate(url, holder.access_token).valid
""",
    "delegations that are refused": """
agent, other = new(max_ttl=60), new()
assert agent.delegate(other.agent_id, ["read:data:1"], ttl=3600).expires_in <= 60
error = refused(ProblemResponseError, lambda: agent.delegate(other.agent_id + "0", ["read:data:1"]))
assert (error.status_code, error.problem.error_code) == (404, "not_found")
error = refused(ProblemResponseError, lambda: agent.delegate(other.agent_id, ["read:data:1"], ttl=0))
assert (error.status_code, error.problem.error_code) == (400, "invalid_ttl")
error = refused(ProblemResponseError, lambda: agent.delegate(other.agent_id, []))
assert (error.status_code, error.problem.error_code) == (400, "invalid_request")
error = refused(AuthorizationError, lambda: agent.delegate(other.agent_id, ["read:data:1", "read:data:2"]))
assert error.problem.error_code == "scope_violation" and "read:data:2" in error.problem.detail
""",
    "an end by the operator": """
agent, other = new(), new()
given = agent.delegate(other.agent_id, ["read:data:1"])
assert as_operator("/v1/revoke", level="agent", target=agent.agent_id)["revoked"] is True
assert not app.validate(agent.access_token).valid and not app.validate(given.access_token).valid
assert app.validate(other.access_token).valid
error = refused(AuthorizationError, lambda: agent.delegate(other.agent_id, ["read:data:1"]))
assert (error.status_code, error.problem.detail) == (403, "token has been revoked")
assert refused(AuthenticationError, agent.renew).status_code == 401
assert refused(AuthorizationError, agent.release).status_code == 403
""",
    "what stands in an error": """
error = refused(AuthorizationError, lambda: new("read:data:1", "delete:data:1"))
problem = error.problem
assert problem.type == "urn:agentwrit:error:scope_violation" and problem.title == "Forbidden", problem
assert (problem.status, error.status_code, problem.error_code) == (403, 403, "scope_violation")
assert problem.instance == "/v1/app/launch-tokens" and problem.request_id, problem
assert "delete:data:1" in problem.detail and problem.hint and problem.detail in str(error), problem
assert isinstance(error, ProblemResponseError) and isinstance(error, AgentWritError)
for scopes in (["read"], ["read:*:1"], ["*"]):
    error = refused(ProblemResponseError, lambda: new(*scopes))
    assert (error.status_code, error.problem.error_code) == (400, "invalid_request")
for ids in (("", "t"), ("o", "t u"), ("o/p", "t")):
    error = refused(ProblemResponseError, lambda: app.create_agent(*ids, ["read:data:1"]))
    assert (error.status_code, error.problem.error_code) == (400, "invalid_request")
assert refused(ProblemResponseError, lambda: new(max_ttl=0)).problem.error_code == "invalid_ttl"
for token in ("none", "a.b.c", "x" * 5000, "\\u00e9"):
    answer = validate(url, token, timeout=20.0)
    assert (answer.valid, answer.claims, answer.error) == (False, None, "token is invalid or expired"), answer
""",
    "a wrong secret, and too many of them": """
wrong = AgentWritApp(url, client_id, "wrong")
for _ in range(3):
    error = refused(AuthenticationError, lambda: wrong.create_agent("o", "t", ["read:data:1"]))
    assert (error.status_code, error.problem.error_code) == (401, "unauthorized")
error = refused(RateLimitError, lambda: wrong.create_agent("o", "t", ["read:data:1"]))
assert (error.status_code, error.problem.error_code) == (429, "rate_limited")
new()
""",
    "a limit that is reached": """
limited = as_operator("/v1/admin/apps", name="one-at-a-time", scopes=["read:data:*"], max_live_agents=1)
one = AgentWritApp(url, limited["client_id"], limited["client_secret"])
agent = one.create_agent("o", "t", ["read:data:1"])
error = refused(RateLimitError, lambda: one.create_agent("o", "t", ["read:data:1"]))
assert error.status_code == 429
agent.release()
one.create_agent("o", "t", ["read:data:1"])
""",
    "no broker": """
away = AgentWritApp("http://127.0.0.1:9", client_id, client_secret, timeout=2)
refused(TransportError, away.health)
refused(TransportError, lambda: away.create_agent("o", "t", ["read:data:1"]))
""",
    "many at once": """
import threading
failures = []
def live():
    try:
        agent = new()
        agent.renew()
        agent.release()
    except Exception as error:
        failures.append(error)
threads = [threading.Thread(target=live) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
""",
}


@pytest.fixture
def published_python() -> Path:
    path = Path(os.environ.get("AGENTWRIT_TEST_PUBLISHED_PYTHON", ".venv-published/bin/python")).absolute()
    assert path.exists(), "run `make test`: it installs the published client, or set AGENTWRIT_TEST_PUBLISHED_PYTHON"
    return path


def run(python: Path, program: str, broker: BrokerProcess) -> subprocess.CompletedProcess[str]:
    """A program in the client's own environment, as an app of its own."""
    app = broker.app()
    environment = {
        "PATH": os.environ["PATH"],
        "AGENTWRIT_BROKER_URL": broker.url,
        "AGENTWRIT_CLIENT_ID": app.client_id,
        "AGENTWRIT_CLIENT_SECRET": app.client_secret,
        "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET,
    }
    done = subprocess.run([python, "-I", "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    logged = broker.logged()
    assert ADMIN_SECRET not in logged
    assert app.client_secret not in logged
    return done


def test_the_published_client_lives_its_life_unmodified(broker: BrokerProcess, published_python: Path) -> None:
    assert run(published_python, PROGRAM, broker).stdout == "whole life\n"


@pytest.mark.parametrize("story", STORIES)
def test_what_the_published_client_documents_holds(story: str, broker: BrokerProcess, published_python: Path) -> None:
    run(published_python, BEGIN + STORIES[story], broker)
