"""A nightly batch over three tenants: each tenant's rows are read by an agent that can read nobody else's.

One tenant's batch fails on a broken row. Its agent is released all the same, and the others do not notice.

    agentwrit dev -- python examples/data_pipeline.py
"""

import sys

from agentwrit import Agent, AgentWritApp, AgentWritError, scope_is_subset, validate

ROWS = {
    "acme": ["199", "50", "125"],
    "birch": ["72", "n/a", "30"],  # one row that is no number
    "cedar": ["80", "20"],
}


class Warehouse:
    """Holds every tenant's rows. It knows nothing of its callers but the token that they present."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url

    def rows(self, token: str, tenant: str) -> list[str]:
        claims = validate(self._broker_url, token).claims
        if claims is None or not scope_is_subset([f"read:tenant:{tenant}"], claims.scope):
            raise PermissionError(f"this token does not open the rows of {tenant}")
        return ROWS[tenant]


def run_batch(app: AgentWritApp) -> bool:
    """Process every tenant. Returns whether all stayed apart, and no token outlived its tenant's batch."""
    warehouse = Warehouse(app.broker_url)
    agents: dict[str, Agent] = {}
    is_isolated = True
    for tenant in ROWS:
        print(f"Tenant {tenant}")
        try:
            # One agent per tenant, not one for the batch: a mistake in here reaches one tenant's rows.
            with app.create_agent("data-pipeline", f"nightly-{tenant}", [f"read:tenant:{tenant}"]) as agent:
                agents[tenant] = agent
                print(f"  Agent: {agent.agent_id}")
                print(f"  Scope: {agent.scope}")
                for other in ROWS:
                    if other != tenant:
                        is_isolated &= is_blocked(warehouse, agent, other)
                rows = warehouse.rows(agent.access_token, tenant)
                print(f"  [DONE] {len(rows)} rows, {sum(map(int, rows))} sold")
        except ValueError as error:
            # By now the `with` has released the agent.
            print(f"  [FAILED] {error}")
        print()
    are_dead = [prove_dead(app, tenant, agent) for tenant, agent in agents.items()]
    return is_isolated and all(are_dead)


def is_blocked(warehouse: Warehouse, agent: Agent, tenant: str) -> bool:
    """Try the rows of a tenant that is not this agent's."""
    try:
        warehouse.rows(agent.access_token, tenant)
    except PermissionError as error:
        print(f"  [BLOCKED] {error}")
        return True
    print(f"  WARNING: it read the rows of {tenant}!")
    return False


def prove_dead(app: AgentWritApp, tenant: str, agent: Agent) -> bool:
    """Ask the broker about a token whose batch is over, however that ended."""
    if app.validate(agent.access_token).valid:
        print(f"WARNING: the token for {tenant} is still valid!")
        return False
    print(f"The token for {tenant} is dead.")
    return True


def main() -> int:
    try:
        with AgentWritApp.from_env() as app:
            return 0 if run_batch(app) else 1
    except AgentWritError as error:
        print(f"data_pipeline: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
