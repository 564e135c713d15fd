"""An order worker: one agent for one order of one customer, and not a key more.

The worker may read the customer whose order it is and write that order. Its authority comes from the work it was
given, lasts as long as the work, and is dead when the work is done: also for whoever has stolen the token meanwhile.

    agentwrit dev -- python examples/order_worker.py --customer cust-7291 --order ord-4823
"""

import argparse
import sys

from agentwrit import (
    Agent,
    AgentWritApp,
    AgentWritError,
    AuthenticationError,
    AuthorizationError,
    scope_is_subset,
    validate,
)


def process_order(app: AgentWritApp, customer: str, order: str) -> bool:
    """Process one order with an agent of its own. Returns whether all went as it should."""
    agent = app.create_agent(
        orch_id="order-worker",
        task_id=f"process-{order}",
        requested_scope=[f"read:data:customer-{customer}", f"write:data:order-{order}"],
    )
    try:
        print(f"Agent created: {agent.agent_id}")
        print(f"  Scope:   {agent.scope}")
        print(f"  Expires: {agent.expires_in}s")
        print(f"  Token:   {agent.access_token[:30]}...")
        print()
        if not introduce(app, agent):
            return False
        work(agent, customer, order)
    finally:
        # Whatever happened: the token ends here, and not when its time is over.
        agent.release()
    print("Agent released. Token is now dead at the broker.")
    return prove_dead(app, agent)


def introduce(app: AgentWritApp, agent: Agent) -> bool:
    """What a service sees of the agent that presents its token."""
    result = validate(app.broker_url, agent.access_token)
    if result.claims is None:
        print(f"Token invalid: {result.error}")
        return False
    print("Token is valid. Claims:")
    print(f"  Issuer:  {result.claims.iss}")
    print(f"  Subject: {result.claims.sub}")
    print(f"  Scope:   {result.claims.scope}")
    print(f"  Task:    {result.claims.task_id}")
    print(f"  Orch:    {result.claims.orch_id}")
    print(f"  JTI:     {result.claims.jti}")
    print()
    return True


def work(agent: Agent, customer: str, order: str) -> None:
    """What belongs to this order, and two attempts at what does not."""
    if may(agent, f"read:data:customer-{customer}"):
        print(f"[READ] Customer profile for {customer}: John Doe, Premium tier")
    else:
        print(f"[DENIED] Cannot read customer {customer}")

    if may(agent, f"write:data:order-{order}"):
        print(f"[WRITE] Order {order} confirmed for customer {customer}")
    else:
        print(f"[DENIED] Cannot write order {order}")

    if may(agent, "read:data:customer-cust-9999"):
        print("[READ] Customer cust-9999: this must not happen")
    else:
        print("[BLOCKED] Cannot access customer cust-9999 — scope isolation working")

    if may(agent, "write:data:order-ord-0000"):
        print("[WRITE] Order ord-0000: this must not happen")
    else:
        print("[BLOCKED] Cannot write order ord-0000 — scope isolation working")
    print()


def may(agent: Agent, scope: str) -> bool:
    """The gate in front of every action: the broker set the scope, the app holds the agent to it."""
    return scope_is_subset([scope], agent.scope)


def prove_dead(app: AgentWritApp, agent: Agent) -> bool:
    """Ask the broker once more about a token that has ended."""
    result = validate(app.broker_url, agent.access_token)
    if result.valid:
        print("WARNING: token is still valid after release!")
        return False
    print(f'Confirmed: token rejected — "{result.error}"')
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Process one order with an agent of its own.")
    parser.add_argument("--customer", required=True, help="whose order it is, for example cust-7291")
    parser.add_argument("--order", required=True, help="which order, for example ord-4823")
    arguments = parser.parse_args()
    try:
        with AgentWritApp.from_env() as app:
            print(f"Processing order {arguments.order} for customer {arguments.customer}")
            print("=" * 55)
            print()
            return 0 if process_order(app, arguments.customer, arguments.order) else 1
    except AuthenticationError as error:
        return fail(f"{error}. Check AGENTWRIT_CLIENT_ID and AGENTWRIT_CLIENT_SECRET.")
    except AuthorizationError as error:
        return fail(f"{error}. The app's ceiling must hold read:data:* and write:data:*.")
    except AgentWritError as error:
        return fail(str(error))


def fail(line: str) -> int:
    print(f"order_worker: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
