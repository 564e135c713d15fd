"""The current agent: set where a task begins, and found by all code that the task calls.

    with app.agent_for(task_id="order-4823", scope=["read:data:customer-7291"]):
        read_customer("7291")

    @requires("read:data:customer-{customer_id}")
    def read_customer(customer_id: str) -> Customer:
        return fetch(customer_id, auth=current_agent().auth)

It is a context variable: each task of an event loop has its own, inherited from the task that started it. A thread does
not inherit it, except through `asyncio.to_thread` or `contextvars.copy_context().run`.
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
    """The agent that this code acts as: an `Agent`, or an `AsyncAgent` if an `AsyncAgentWritApp` created it.

    Raises:
        NoCurrentAgent: there is no current agent.
    """
    agent = _current.get()
    if agent is None:
        raise NoCurrentAgent("no agent is at work here: begin the task `with app.agent_for(…)` or `acting_as(agent)`")
    return agent


@contextlib.contextmanager
def acting_as(agent: A) -> Iterator[A]:
    """Make an agent the current one inside the `with`. Whoever created the agent releases it."""
    before = _current.get()
    _current.set(agent)
    try:
        yield agent
    finally:
        # Not by a token: fixtures and generators may exit in another context than the one that they entered.
        _current.set(before)


def act_as(agent: "AnyAgent") -> None:
    """Make an agent the current one for the rest of this task. For frameworks that run each call in its own task."""
    _current.set(agent)


def requires(*scopes: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that it runs only if the current agent's scope covers all of `scopes`.

        @requires("read:data:customer-{customer_id}")
        def read_customer(customer_id: str) -> Customer: ...

    `scopes`: scope templates whose placeholders are filled from the call's arguments. The decorator applies to
    functions, methods, coroutine functions and both kinds of generators; put it below `@classmethod` or
    `@staticmethod`.

    It prevents what an agent should not do by mistake or because a model asks for it. Code in the same process can
    bypass it: services protect their data themselves, with a `Verifier`.

    Raises:
        ValueError: a template is invalid, or the function has no parameter with a placeholder's name.
        TypeError: the decorated object is not a function.

    Each call also raises:
        ScopeDenied: the agent's scope does not cover what is needed; `needed` and `held` show both.
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
