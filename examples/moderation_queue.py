"""A moderation queue: the moderator gives one item, and only that, to a specialist, for a minute.

The specialist acts on the moderator's authority and under its own name, for as long as that authority lasts.

    agentwrit dev -- python examples/moderation_queue.py --item item-17
"""

import argparse
import sys

from agentwrit import Agent, AgentWritApp, AgentWritError, scope_is_subset

QUEUE = ("item-16", "item-17", "item-18")


def moderate(app: AgentWritApp, hard: str) -> bool:
    """Decide the queue, one item of it by a specialist. Returns whether the specialist could do that and no more."""
    with (
        app.create_agent("moderation", "moderator", ["write:queue:*"]) as moderator,
        app.create_agent("moderation", "specialist", ["read:policy:medical-claims"]) as specialist,
    ):
        print(f"Moderator:  {moderator.agent_id}, {moderator.scope}")
        print(f"Specialist: {specialist.agent_id}, {specialist.scope}")
        print()

        # This is what travels to the specialist: a token in its name, for one item, for a minute.
        delegated = moderator.delegate(specialist.agent_id, [f"write:queue:{hard}"], ttl=60)
        acting = specialist.accept(delegated)
        print(f"Delegated:  {acting.scope} for {acting.expires_in}s")
        held = shows_who_gave_it(app, acting, moderator)
        print()

        for item in QUEUE:
            decides = decide(app, acting, item)
            held &= decides == (item == hard)
            if not decides:
                held &= decide(app, moderator, item)
        print()

        moderator.release()
        print("Moderator released.")
        is_over = not app.validate(acting.access_token).valid
        print(f"  what it delegated: {'dead' if is_over else 'WARNING: still valid!'}")
        is_there = app.validate(specialist.access_token).valid
        print(f"  the specialist's own token: {'alive' if is_there else 'WARNING: dead!'}")
    return held and is_over and is_there


def shows_who_gave_it(app: AgentWritApp, acting: Agent, giver: Agent) -> bool:
    """What a service sees of the delegation."""
    claims = app.validate(acting.access_token).claims
    if claims is None or not claims.delegation_chain:
        print("WARNING: the delegated token is not valid!")
        return False
    [record] = claims.delegation_chain
    print(f"  Subject:  {claims.sub}")
    print(f"  Given by: {record.agent}")
    print(f"  Out of:   {record.scope}")
    return (claims.sub, record.agent) == (acting.agent_id, giver.agent_id)


def decide(app: AgentWritApp, agent: Agent, item: str) -> bool:
    """The queue's own check, made before any decision is written."""
    claims = app.validate(agent.access_token).claims
    role = agent.agent_id.split("/")[-2]  # the task that it was registered for
    if claims is None or not scope_is_subset([f"write:queue:{item}"], claims.scope):
        print(f"[BLOCKED] {item}: not by {role}")
        return False
    print(f"[DECIDED] {item}: by {role}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Moderate a queue, one item of it by a specialist.")
    parser.add_argument("--item", choices=QUEUE, default="item-17", help="which one needs the specialist")
    arguments = parser.parse_args()
    try:
        with AgentWritApp.from_env() as app:
            return 0 if moderate(app, arguments.item) else 1
    except AgentWritError as error:
        print(f"moderation_queue: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
