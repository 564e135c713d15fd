"""The agent that code acts as: set where a task begins, and found by whatever the task calls.

    with app.agent_for(task_id="order-4823", scope=["read:data:customer-7291"]):
        read_customer("7291")

    @requires("read:data:customer-{customer_id}")
    def read_customer(customer_id: str) -> Customer:
        return fetch(customer_id, auth=current_agent().auth)

It is a context variable: each task of an event loop has its own, taken over from who started it. A thread has none of
another one's, but through `asyncio.to_thread` or `contextvars.copy_context().run`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, ParamSpec, TypeAlias, TypeVar, Union

from agentwrit.client.requirement import Requirement, guarded
from agentwrit.errors import NoCurrentAgent

if TYPE_CHECKING:
    from agentwrit.client.agent import Agent
    from agentwrit.client.async_agent import AsyncAgent

P = ParamSpec("P")
R = TypeVar("R")
AnyAgent: TypeAlias = Union["Agent", "AsyncAgent"]
A = TypeVar("A", bound="Agent | AsyncAgent")

_current: ContextVar["AnyAgent | None"] = ContextVar("agentwrit_current_agent", default=None)


def current_agent() -> "AnyAgent":
    """The agent that this code acts as: an `AsyncAgent` if an `AsyncAgentWritApp` made it.

    Raises:
        NoCurrentAgent: there is none here.
    """
    agent = _current.get()
    if agent is None:
        raise NoCurrentAgent("no agent is at work here: begin the task `with app.agent_for(…)` or `acting_as(agent)`")
    return agent


@contextlib.contextmanager
def acting_as(agent: A) -> Iterator[A]:
    """Make an agent the current one inside the `with`. It is released by whoever made it."""
    before = _current.get()
    _current.set(agent)
    try:
        yield agent
    finally:
        # Not by a token: fixtures and generators may be left in another context than they were entered in.
        _current.set(before)


def act_as(agent: "AnyAgent") -> None:
    """Make an agent the current one for the rest of this task. For frameworks that give a task to each call."""
    _current.set(agent)


def requires(*scopes: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function begin only if the current agent's scope covers all of these.

    `scopes`: templates, whose holes are filled from the call's arguments: `read:data:customer-{customer_id}`. It stands
    at functions, methods, coroutine functions and generators of both kinds, below `@classmethod` or `@staticmethod`.

    It guards against what an agent should not do by mistake or by a model's wish. Code in this process can go around
    it: what services hold back, they check themselves, with a `Verifier`.

    Raises:
        ValueError: one is no template of a scope, or the function has no parameter of a hole's name.
        TypeError: it stands at something else than a function.

    A call then also raises:
        ScopeDenied: what is needed is not covered; `needed` and `held` say what.
        NoCurrentAgent: there is no current agent.
        AgentWritError: the agent was released.
    """
    requirement = Requirement(scopes)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return guarded(function, requirement, _held)

    return decorate


def _held() -> Sequence[str]:
    agent = current_agent()
    agent.check()
    return agent.scope
