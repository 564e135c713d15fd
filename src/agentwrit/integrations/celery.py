"""Celery tasks that run as agents: a message carries a token for this one task, and no key.

    celery = Celery("orders", task_cls=AgentWritTask)

    @celery.task(scope=["write:data:order-{order_id}"])
    def write_order(order_id: int) -> None:
        orders.put(order_id, auth=current_agent().auth)

    with app.agent_for(task_id="checkout-7", scope=["write:data:*"]):
        write_order.delay(7).get()

The rules:

- A task that names scopes gets a token for them, filled from the call's arguments. Where there is a current agent, it
  delegates: the token is no wider than its own, and dead when that agent is released. Elsewhere the app registers an
  agent for the task, so that what is fired and forgotten has an end of its own.
- The worker asks the broker whether the token holds, and covers these arguments, before the body begins: who can write
  to the queue can neither make one up nor use one for another call.
- In the body `current_agent()` is the holder of that token. It is released after the task, however that ended, but by a
  retry: the next attempt goes on with the same token, as long as it lives (`token_ttl`).
- A task that names no scope is a task like any other.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from celery import Task
from celery.exceptions import Reject, Retry
from celery.utils import uuid

from agentwrit.client.agent import Agent
from agentwrit.client.app import AgentWritApp
from agentwrit.client.current import acting_as, current_agent
from agentwrit.client.requirement import Requirement, arguments, check_holes
from agentwrit.client.secrecy import discreet
from agentwrit.errors import AgentWritError, NoCurrentAgent

HEADER: Final = "agentwrit-token"

logger = logging.getLogger(__name__)


class AgentWritTask(Task):  # type: ignore[misc] # Celery has no types
    """The base of tasks that run as agents: `Celery(task_cls=AgentWritTask)`, or `@celery.task(base=AgentWritTask)`.

    Options of `@celery.task`: `scope`, what a call needs, as templates that its arguments fill; `token_ttl`, seconds
    that its token lives at most, time in the queue included; `agentwrit`, the AgentWritApp to use, else the one that
    the environment names (`AgentWritApp.from_env`).

    Raises:
        ValueError: a scope is no template, or the task has no parameter of a hole's name.
        TypeError: a bare string was given where a list belongs.
    """

    abstract = True
    scope: Sequence[str] = ()
    token_ttl: int = 300
    agentwrit: AgentWritApp | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._needs = Requirement(cls.scope) if len(cls.scope) else None
        if cls._needs is not None and not cls.__dict__.get("abstract", False):
            check_holes(cls.run, inspect.signature(cls.run), cls._needs)

    @discreet
    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        *rest: Any,
        **options: Any,
    ) -> Any:
        """As Celery's; the message carries a token for these arguments.

        Raises:
            ScopeDenied: an argument fits no scope.
            AuthorizationError: what is needed exceeds the current agent's scope, or the app's.
            AgentWritError: the current agent was released, is asynchronous, or has a bound token.
            TransportError: the broker was not reached.
        """
        headers = dict(options.pop("headers", None) or {})
        if self._needs is not None and HEADER not in headers:
            task_id = task_id or uuid()
            values = arguments(inspect.signature(self.run), args or (), kwargs or {})
            headers[HEADER] = _token_for(self, self._needs.needed(values, []), task_id)
        return super().apply_async(args, kwargs, task_id, *rest, headers=headers, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body as the agent of this task.

        Raises:
            ScopeDenied: the token does not cover these arguments.
            AgentWritError: the message carries no token, or one that does not hold.
            TransportError: the broker was not reached.
        """
        if self._needs is None:
            return self.run(*args, **kwargs)
        values = arguments(inspect.signature(self.run), args, kwargs)
        if self.request.called_directly:
            agent = current_agent()
            agent.check(*self._needs.needed(values, agent.scope))
            return self.run(*args, **kwargs)
        agent = _holder_of(self)
        try:
            agent.check(*self._needs.needed(values, agent.scope))
            with acting_as(agent):
                result = self.run(*args, **kwargs)
        except BaseException as error:
            if not _comes_again(error):
                _release(self, agent)
            raise
        _release(self, agent)
        return result

    @discreet
    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, queue: Any = None, **options: Any
    ) -> Any:
        """As Celery's: what `retry` publishes. It carries the token that the task has now."""
        if self._needs is not None and HEADER not in (options.get("headers") or {}):
            given = (self.request if request is None else request).headers
            options["headers"] = {**(given or {}), HEADER: current_agent().access_token}
        return super().signature_from_request(request, args, kwargs, queue, **options)


def _token_for(task: AgentWritTask, needed: Sequence[str], task_id: str) -> str:
    try:
        agent = current_agent()
    except NoCurrentAgent:
        app = _app_of(task)
        return app.create_agent(app.client_id, task_id, needed, max_ttl=task.token_ttl).access_token
    if not isinstance(agent, Agent):
        raise AgentWritError(f"Celery does not await: delegate first, and publish the token as the header {HEADER!r}")
    if agent.is_bound:
        raise AgentWritError("a bound token is of no use in a queue: the key that it is bound to stays here")
    return agent.delegate(agent.agent_id, needed, ttl=task.token_ttl).access_token


@discreet
def _holder_of(task: AgentWritTask) -> Agent:
    # Taken out: whatever shows or logs the request shows no token.
    request = task.request
    token = (request.headers or {}).pop(HEADER, None)
    request.__dict__.pop(HEADER, None)
    if not isinstance(token, str):
        raise AgentWritError(f"the message carries no token for {task.name}: publish it through the task itself")
    app = _app_of(task)
    told = app.validate(token)
    if not told.valid:
        raise AgentWritError(f"the token for {task.name} does not hold any more: {told.error}")
    return app.take_over(token)


def _app_of(task: AgentWritTask) -> AgentWritApp:
    if task.agentwrit is not None:
        return task.agentwrit
    global _of_environment
    if _of_environment is None:
        _of_environment = AgentWritApp.from_env()
    return _of_environment


def _release(task: AgentWritTask, agent: Agent) -> None:
    try:
        agent.release()
    except AgentWritError as failure:
        # The work is done: to fail it now would have it done again. The token ends by itself.
        logger.warning("the token for %s was not released: %s", task.name, failure)


def _comes_again(error: BaseException) -> bool:
    return isinstance(error, Retry) or (isinstance(error, Reject) and bool(error.requeue))


_of_environment: AgentWritApp | None = None
