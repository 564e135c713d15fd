"""`agentwrit agents` and `agentwrit delegations`: live agents, their grants and delegations."""

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from agentwrit.cli import options
from agentwrit.cli.output import Tree, print_json, print_table, print_tree
from agentwrit.domain.timestamps import parse_rfc3339

if TYPE_CHECKING:
    from agentwrit.client.operator import OperatorClient

PAGE = 1000
Grant = Mapping[str, Any]
_Page = Mapping[str, Any]


@click.group()
def agents() -> None:
    """Inspect agents."""


@click.group()
def delegations() -> None:
    """Inspect delegations."""


@agents.command(name="list")
@click.option("--app", metavar="APP", help="Only grants of this app, by its id or name.")
@click.option("--agent", metavar="AGENT", help="Only grants of this agent, by its SPIFFE ID.")
@click.option("--task", metavar="TASK", help="Only grants for this task.")
@click.option("--orch", metavar="ORCH", help="Only grants of this orchestrator.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N grants.")
@options.broker_url
@options.as_json
def list_(
    app: str | None,
    agent: str | None,
    task: str | None,
    orch: str | None,
    limit: int | None,
    broker_url: str,
    is_json: bool,
) -> None:
    """List the grants of live agents, the oldest first."""
    with options.operator_client(broker_url) as operator:
        filters = {
            "app_id": None if app is None else options.app_id(operator, app),
            "agent_id": agent,
            "task_id": task,
            "orch_id": orch,
        }
        if is_json:
            found, following = [], None
            for page in _pages(operator, filters, limit):
                found += page["agents"]
                following = page["next"]
            print_json({"agents": found, "next": following})
            return
        columns = ("agent", "task", "scope", "expires in", "given by")
        grants = (grant for page in _pages(operator, filters, limit) for grant in page["agents"])
        print_table(columns, (_row(grant) for grant in grants))


@agents.command()
@click.argument("agent")
@options.broker_url
@options.as_json
def show(agent: str, broker_url: str, is_json: bool) -> None:
    """Show all grants of AGENT, including ended ones, each with its delegations."""
    with options.operator_client(broker_url) as operator:
        shown = operator.show_agent(agent)
    if is_json:
        print_json(shown)
    else:
        print_tree(shown["agent_id"], map(_tree, shown["grants"]))


@delegations.command(name="show")
@click.argument("agent")
@options.broker_url
@options.as_json
def show_delegations(agent: str, broker_url: str, is_json: bool) -> None:
    """Show the delegations made by AGENT, and how many live tokens depend on them."""
    with options.operator_client(broker_url) as operator:
        grants = operator.show_agent(agent)["grants"]
    handed_on = [below for grant in grants for below in grant["delegations"]]
    if is_json:
        print_json({"agent_id": agent, "delegations": handed_on})
        return
    alive = sum(map(_live_tokens, handed_on))
    print_tree(f"{agent}: {alive} live token{'' if alive == 1 else 's'} below", map(_tree, handed_on))


def _pages(
    operator: "OperatorClient", filters: Mapping[str, str | None], limit: int | None
) -> Iterator[dict[str, Any]]:
    """The pages of the list, with at most `limit` entries in total."""
    left, after = limit, None
    while left is None or left > 0:
        page = operator.list_agents(**filters, after=after, limit=PAGE if left is None else min(left, PAGE))
        yield page
        after = page["next"]
        if after is None or not page["agents"]:
            return
        left = None if left is None else left - len(page["agents"])


def _row(grant: Grant) -> tuple[object, ...]:
    return grant["agent_id"], grant["task_id"], grant["scope"], _time_left(grant), grant["parent_agent"]


def _tree(grant: Grant) -> Tree:
    state = f"live for {_time_left(grant)}" if grant["status"] == "live" else grant["status"]
    if grant["end_reason"]:
        state = f"{state}: {grant['end_reason']}"
    kind = f"delegated to {grant['agent_id']}" if grant["parent"] else f"registered for task {grant['task_id']}"
    lines = [f"{kind} ({state})", f"sid {grant['sid']}", *grant["scope"]]
    return Tree(lines, [_tree(below) for below in grant["delegations"]])


def _live_tokens(grant: Grant) -> int:
    return int(grant["status"] == "live") + sum(map(_live_tokens, grant["delegations"]))


def _time_left(grant: Grant) -> str:
    """The remaining lifetime of the current token, for people."""
    seconds = max(0, int(parse_rfc3339(grant["expires_at"]) - time.time()))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds % 60:02}s" if minutes else f"{seconds}s"
