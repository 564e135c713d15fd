"""A trading agent that works for hours on tokens that live for seconds.

At 75 % of a token's life it takes the next one, and the one before is dead: whoever has copied a token out of a log
has copied a dead one.

    agentwrit dev -- python examples/trading_agent.py --account acc-31
"""

import argparse
import sys
import time

from agentwrit import Agent, AgentWritApp, AgentWritError, scope_is_subset, validate


class Exchange:
    """Takes orders. It asks the broker about each token that it is shown."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url

    def takes_order(self, token: str, account: str) -> bool:
        claims = validate(self._broker_url, token).claims
        return claims is not None and scope_is_subset([f"trade:account:{account}"], claims.scope)


def trade(app: AgentWritApp, account: str, ttl: int, ticks: int) -> bool:
    """Place an order on each token of a series. Returns whether each was good for its time, and for no longer."""
    exchange = Exchange(app.broker_url)
    with app.create_agent("trading", account, [f"trade:account:{account}"], max_ttl=ttl) as agent:
        print(f"Agent: {agent.agent_id}")
        print(f"Each token lives {agent.expires_in}s.")
        held = is_taken(exchange, agent, account)
        for tick in range(1, ticks + 1):
            before = agent.access_token
            time.sleep(renew_after(agent))
            agent.renew()
            print(f"[RENEWED] {tick} of {ticks}")
            held &= is_taken(exchange, agent, account)
            held &= is_rejected(exchange, before, account, "the token before")
    print("Agent released.")
    return is_rejected(exchange, agent.access_token, account, "the last token") and held


def renew_after(agent: Agent) -> float:
    """Seconds until 75 % of the life of a token are over that was just issued.

    It may live up to a second less than `expires_in` says: times in tokens are whole seconds, rounded down.
    """
    return 0.75 * (agent.expires_in - 1)


def is_taken(exchange: Exchange, agent: Agent, account: str) -> bool:
    """Place an order with the token in use."""
    if exchange.takes_order(agent.access_token, account):
        print(f"[ORDER] for {account}: taken")
        return True
    print(f"WARNING: the order for {account} was rejected!")
    return False


def is_rejected(exchange: Exchange, token: str, account: str, which: str) -> bool:
    """Place an order with a token whose time is over."""
    if exchange.takes_order(token, account):
        print(f"WARNING: an order with {which} was taken!")
        return False
    print(f"[BLOCKED] an order with {which}")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Trade for an account on tokens that live for seconds.")
    parser.add_argument("--account", required=True, help="for whom, for example acc-31")
    parser.add_argument("--ttl", type=int, default=3, help="seconds that a token lives, 2 or more")
    parser.add_argument("--ticks", type=int, default=2, help="how often to renew")
    arguments = parser.parse_args()
    try:
        with AgentWritApp.from_env() as app:
            return 0 if trade(app, arguments.account, arguments.ttl, arguments.ticks) else 1
    except AgentWritError as error:
        print(f"trading_agent: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
