"""An incident: a token was seen where it should not be. How much has to die to end that, and no more?

Each level of revocation is tried on a fleet of its own, and who is alive is shown before and after. This is the
operator's side: besides the app's settings it needs AGENTWRIT_ADMIN_SECRET.

    agentwrit dev -- python examples/incident_response.py
"""

import os
import sys
from contextlib import ExitStack

from agentwrit import Agent, AgentWritApp, AgentWritError
from agentwrit.client.operator import OperatorClient

# Who is to fall at each level, when it is `intake>analyst` whose token was seen.
RADIUS = {
    "token": {"intake>analyst", "analyst>payer"},
    "grant": {"intake>analyst", "analyst>payer"},
    "chain": {"intake", "intake>analyst", "analyst>payer"},
    "agent": {"analyst", "intake>analyst", "analyst>payer"},
    "task": {"intake", "analyst", "intake>analyst", "analyst>payer"},
    "app": {"intake", "analyst", "payer", "archivist", "intake>analyst", "analyst>payer"},
}


def make_fleet(app: AgentWritApp, until: ExitStack) -> dict[str, Agent]:
    """Four agents, and a chain of two delegations through three of them. All are released when `until` is closed."""

    def agent(task: str, *scope: str) -> Agent:
        return until.enter_context(app.create_agent("claims", task, scope))

    intake = agent("claim-77", "read:claim:77", "pay:claim:77")
    analyst = agent("claim-77", "read:claim:77")
    payer = agent("payments", "read:claim:77")
    archivist = agent("archive", "read:claim:77")
    analysing = analyst.accept(intake.delegate(analyst.agent_id, ["read:claim:77", "pay:claim:77"]))
    paying = payer.accept(analysing.delegate(payer.agent_id, ["pay:claim:77"]))
    return {
        "intake": intake,
        "analyst": analyst,
        "payer": payer,
        "archivist": archivist,
        "intake>analyst": analysing,
        "analyst>payer": paying,
    }


def find_targets(app: AgentWritApp, operator: OperatorClient, seen: str) -> dict[str, str]:
    """What to name at each level to hit a token that was seen. The token says it all, but for the app's id."""
    claims = app.validate(seen).claims
    if claims is None or not claims.sid or not claims.delegation_chain:
        raise AgentWritError("the token is dead already, or was not delegated")
    return {
        "token": claims.jti,
        "grant": claims.sid,
        "chain": claims.delegation_chain[0].agent,
        "agent": claims.sub,
        "task": claims.task_id,
        "app": operator.show_agent(claims.sub)["grants"][0]["app_id"],
    }


def respond(app: AgentWritApp, operator: OperatorClient, level: str) -> bool:
    """Revoke at one level. Returns whether exactly those fell that were to fall."""
    with ExitStack() as until:
        fleet = make_fleet(app, until)
        target = find_targets(app, operator, fleet["intake>analyst"].access_token)[level]
        print(f"{level}: {target}")
        before = show_alive(app, "before", fleet)
        count = operator.revoke(level, target, reason="its token was seen in a public log")["count"]
        after = show_alive(app, "after", fleet)
        print(f"  tokens killed: {count}")
        print()
    # An app has tokens of its own besides: those that it logs in with.
    is_all = count > len(RADIUS[level]) if level == "app" else count == len(RADIUS[level])
    return before == set(fleet) and before - after == RADIUS[level] and is_all


def show_alive(app: AgentWritApp, when: str, fleet: dict[str, Agent]) -> set[str]:
    """Who is alive, as any service would find out."""
    alive = {name for name, agent in fleet.items() if app.validate(agent.access_token).valid}
    columns = (name if name in alive else "-".ljust(len(name)) for name in fleet)
    print(f"  {when:6}  {'  '.join(columns)}".rstrip())
    return alive


def is_back(app: AgentWritApp, operator: OperatorClient) -> bool:
    """Create one more agent after the app was revoked, and look it up as the operator does."""
    with app.create_agent("claims", "claim-78", ["read:claim:78"]) as agent:
        listed = operator.list_agents(agent_id=agent.agent_id)["agents"]
        print(f"The app has logged in again by itself. Its live grants for claim-78: {len(listed)}")
    return len(listed) == 1


def main() -> int:
    secret = os.environ.get("AGENTWRIT_ADMIN_SECRET")
    if not secret:
        return fail("set AGENTWRIT_ADMIN_SECRET to the operator's secret")
    try:
        with AgentWritApp.from_env() as app, OperatorClient(app.broker_url, secret) as operator:
            held = [respond(app, operator, level) for level in RADIUS]
            return 0 if all(held) and is_back(app, operator) else 1
    except AgentWritError as error:
        return fail(str(error))


def fail(line: str) -> int:
    print(f"incident_response: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
