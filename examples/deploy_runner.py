"""A deployment in three hops: orchestrator, builder, deployer, verifier, each with less than the one before.

How the last one came to its token is written in it, signed by the broker, and cannot grow on the way.

    agentwrit dev -- python examples/deploy_runner.py --service checkout
"""

import argparse
import sys

from agentwrit import Agent, AgentWritApp, AgentWritError, AuthorizationError, scope_is_subset


def deploy(app: AgentWritApp, service: str) -> bool:
    """Deploy one service. Returns whether authority narrowed at each hop, and ended with the orchestrator's."""
    read = f"read:run:{service}"  # what the run is about: all that the three may do by themselves
    build, ship, verify = (f"{action}:service:{service}" for action in ("build", "deploy", "verify"))
    with (
        app.create_agent("deploy-runner", "builder", [read]) as builder,
        app.create_agent("deploy-runner", "deployer", [read]) as deployer,
        app.create_agent("deploy-runner", "verifier", [read]) as verifier,
    ):
        with app.create_agent("deploy-runner", "orchestrator", [read, build, ship, verify]) as orchestrator:
            # `accept` gives an agent that acts on what it was given, and can give some of that on.
            building = builder.accept(orchestrator.delegate(builder.agent_id, [build, ship, verify], ttl=120))
            held = works(building, build)
            deploying = deployer.accept(building.delegate(deployer.agent_id, [ship, verify], ttl=120))
            held &= works(deploying, ship)
            verifying = verifier.accept(deploying.delegate(verifier.agent_id, [verify], ttl=120))
            held &= works(verifying, verify)
            print()
            held &= is_narrowing(app, verifying)
            held &= is_refused(verifying, builder, ship)
            held &= is_refused(deploying, verifier, "deploy:service:payments")
            print()
        print("Orchestrator released.")
        for acting in (building, deploying, verifying):
            is_dead = not app.validate(acting.access_token).valid
            print(f"  {role(acting.agent_id)}: {'dead' if is_dead else 'WARNING: still valid!'}")
            held &= is_dead
    return held


def works(agent: Agent, scope: str) -> bool:
    """Do one step, if the agent may."""
    may = scope_is_subset([scope], agent.scope)
    print(f"[{'DONE' if may else 'BLOCKED'}] {role(agent.agent_id)}: {scope}")
    return may


def is_narrowing(app: AgentWritApp, last: Agent) -> bool:
    """Read the chain as a service does that is shown the last token: each hop hands on less than it was handed."""
    claims = app.validate(last.access_token).claims
    chain = claims.delegation_chain if claims is not None else None
    if not chain:
        print("WARNING: the last token is not valid, or has no chain!")
        return False
    for hop, record in enumerate(chain, start=1):
        print(f"Hop {hop}: {role(record.agent)} -> {role(record.delegate)}")
        print(f"  held:  {record.scope}")
        print(f"  given: {record.granted}")
        if scope_is_subset(record.scope, record.granted):
            print("  WARNING: nothing was held back!")
            return False
    print()
    return chain[-1].delegate == last.agent_id and chain[-1].granted == last.scope


def is_refused(giver: Agent, to: Agent, scope: str) -> bool:
    """Try to give what is not held."""
    try:
        giver.delegate(to.agent_id, [scope])
    except AuthorizationError as error:
        print(f"[REFUSED] {role(giver.agent_id)} -> {role(to.agent_id)}, {scope}: {error.problem.error_code}")
        return True
    print(f"WARNING: {role(giver.agent_id)} gave {scope}!")
    return False


def role(agent_id: str) -> str:
    """The task that an agent was registered for: the last segment but one of its SPIFFE id."""
    return agent_id.split("/")[-2]


def main() -> int:
    parser = argparse.ArgumentParser(description="Deploy one service by a chain of agents.")
    parser.add_argument("--service", required=True, help="which one, for example checkout")
    arguments = parser.parse_args()
    try:
        with AgentWritApp.from_env() as app:
            return 0 if deploy(app, arguments.service) else 1
    except AgentWritError as error:
        print(f"deploy_runner: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
