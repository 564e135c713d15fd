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
- Whoever publishes a workflow has the tokens made for all of it: for the steps of a chain, for groups, chords and their
  bodies, for callbacks and errbacks, for maps and chunks, and for what replaces a task. An argument that a step gets
  from the one before it is not known then: its token covers what the publisher may do that such a call could need.
- A worker makes a token only for what the body of a task publishes, and that body's agent delegates it. What came with
  a message without a token goes on without one, and does not begin.
- The worker asks the broker whether the token holds, and covers these arguments, before the body begins: who can write
  to the queue can neither make one up nor use one for another call. `autoretry_for` covers what is raised then, too.
- In the body `current_agent()` is the holder of that token. It is released after the task, however that ended, but by a
  retry: the next attempt goes on with the same token, as long as it lives (`token_ttl`). Where the body has published,
  what it delegated outlives it, up to the end of that token, which itself is dead.
- A task that names no scope is a task like any other.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from celery import Task, signals, signature
from celery.exceptions import Reject, Retry
from celery.utils import uuid

from agentwrit.client.agent import Agent
from agentwrit.client.app import AgentWritApp
from agentwrit.client.current import acting_as, current_agent
from agentwrit.client.log import logger
from agentwrit.client.requirement import Requirement, arguments, check_holes
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.domain.scope import MAX_SCOPES
from agentwrit.errors import AgentWritError, NoCurrentAgent
from agentwrit.integrations.celery_steps import CHUNKS, HEADER, MAPS, Steps, calls_of, following, seal, token_of_errback
from agentwrit.recent import Recent

__all__ = ["HEADER", "AgentWritTask"]

SHARED_TOKENS: Final = 1024  # of the steps of chords' bodies whose headers are being published

_MESSAGE: Final = "agentwrit_message"  # where a request has what came with it
_UNLOCK: Final = "celery.chord_unlock"
_GUARDED: Final = "agentwrit_guards"


class AgentWritTask(Task):  # type: ignore[misc] # Celery has no types
    """The base of tasks that run as agents: `Celery(task_cls=AgentWritTask)`, or `@celery.task(base=AgentWritTask)`.

    With `task_cls` all tasks of the app are. With `base` it is these alone: maps, workflows that begin with another
    task, and what the body of another task publishes carry no tokens then, and are refused by the worker.

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
        body = inspect.getattr_static(cls, "run")
        if not hasattr(body, _GUARDED):
            cls.run = _guarded(body)
        cls._parameters = _without_the_task(inspect.signature(cls.run))
        if cls._needs is not None and not cls.__dict__.get("abstract", False):
            check_holes(cls.run, cls._parameters, cls._needs)

    @discreet
    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        **options: Any,
    ) -> Any:
        """As Celery's; the message carries a token for these arguments, and one for each step that comes after it.

        Raises:
            ScopeDenied: an argument fits no scope, or a later step could need nothing that the current agent holds.
            AuthorizationError: what is needed exceeds the current agent's scope, or the app's.
            AgentWritError: the current agent was released, is asynchronous, or has a bound token; or a map needs more
                scopes than a token has.
            TransportError: the broker was not reached.
        """
        task_id = task_id or uuid()
        options = {**options, "link": link, "link_error": link_error}
        with _publication(self) as publication:
            if publication is not None:
                options.update(publication.steps.published_after(options))
                options["headers"] = publication.headers(self, args, kwargs, task_id, options.get("headers"))
                if self.name == _UNLOCK and args:
                    args = (args[0], publication.steps.step(args[1], 1, args[0]), *args[2:])
            return super().apply_async(args, kwargs, task_id, producer, shadow=shadow, **options)

    @discreet
    def apply(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *rest: Any,
        task_id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """As Celery's: in this process, as the agent that a worker would run the task as. Raises as `apply_async`."""
        task_id = task_id or uuid()
        with _publication(self) as publication:
            if publication is not None:
                headers = publication.headers(self, args, kwargs, task_id, headers)
        with _set(_publishes, _may_publish(self)), _set(_is_here, True):
            return super().apply(args, kwargs, *rest, task_id=task_id, headers=headers, **options)

    def replace(self, sig: Any) -> Any:
        """As Celery's: the agent of this task delegates to what replaces it. Raises as `apply_async`."""
        with _publication(self) as publication:
            if publication is not None:
                sig = publication.steps.step(sig, 0)
        return super().replace(sig)

    def retry(self, *args: Any, **options: Any) -> Any:
        """As Celery's: the next attempt carries the token that the task has now."""
        message = _known(self.request)
        try:
            again = super().retry(*args, **options)
        except Retry:
            if message is not None:
                message.comes_again = True
            raise
        if message is not None:
            message.comes_again = True
        return again

    @discreet
    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, queue: Any = None, **options: Any
    ) -> Any:
        """As Celery's: what `retry` publishes. It carries the token that the task has now."""
        request = self.request if request is None else request
        message = _known(request)
        given = options.get("headers") or {}
        if message is not None and HEADER not in given:
            options["headers"] = {**(request.headers or {}), **given, **message.headers}
        return super().signature_from_request(request, args, kwargs, queue, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body as the agent of this task; called from elsewhere than a worker, as the current agent.

        Raises:
            ScopeDenied: the token does not cover these arguments.
            AgentWritError: the message carries no token, or one that does not hold.
            TransportError: the broker was not reached.
        """
        request = self.request
        if request.called_directly or _known(request) is not None:
            return super().__call__(*args, **kwargs)
        with _message_of(self, request):
            return self.run(*args, **kwargs)

    def _run(self, body: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What `run` does before the body. `autoretry_for` stands around it."""
        request = self.request
        message = _known(request)
        if not request.called_directly and message is None:  # a subclass has a `__call__` of its own
            with _message_of(self, request) as message:
                return self._run_message(message, body, args, kwargs)
        if message is not None and not message.is_running:
            return self._run_message(message, body, args, kwargs)
        calls = _calls(self, args, kwargs)
        if not calls:
            return self._run_body(body, args, kwargs)
        token = token_of_errback(self.name, args, kwargs)
        if token is not None:
            with _ended(self, _Message(Secret(str(token)))) as message:
                return self._run_message(message, body, args, kwargs)
        agent = current_agent()
        for call in calls:
            agent.check(*call.needed(agent.scope))
        return self._run_body(body, args, kwargs)

    def _run_message(self, message: "_Message", body: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        message.is_running = True
        try:
            calls = _calls(self, args, kwargs)
            if not calls:
                return self._run_body(body, args, kwargs)
            agent = message.holder(self.name, _app_of(calls[0].task))
            for call in calls:
                agent.check(*call.needed(agent.scope))
            with _set(_at_work, message), acting_as(agent):
                return self._run_body(body, args, kwargs)
        finally:
            message.is_running = False

    def _run_body(self, body: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        # Celery's own tasks publish what came with their message. Of these, chunks come with a token for all of them.
        with _set(_publishes, not _is_celerys(self) or (self.name == CHUNKS and _at_work.get() is not None)):
            return body(*args, **kwargs)


class _Message:
    """What came with a message for a task, and what became of it."""

    def __init__(self, token: Secret[str] | None) -> None:
        self._token = token
        self.agent: Agent | None = None
        self.is_running = False
        self.has_published = False  # by delegation from `agent`
        self.comes_again = False

    @property
    def headers(self) -> dict[str, str]:
        """What the next attempt carries."""
        if self.agent is not None:
            return {HEADER: self.agent.access_token}
        return {} if self._token is None else {HEADER: self._token.reveal()}

    @discreet
    def holder(self, name: str, app: AgentWritApp) -> Agent:
        """Whom the token, which came for the task of this name, makes of who has it.

        Raises:
            AgentWritError: there is none, or one that does not hold.
            TransportError: the broker was not reached.
        """
        if self._token is None:
            raise AgentWritError(
                f"the message carries no token for {name}: publish it through the task itself, in a worker from"
                " the body of an AgentWritTask"
            )
        told = app.validate(self._token.reveal())
        if not told.valid:
            raise AgentWritError(f"the token for {name} does not hold any more: {told.error}")
        self.agent = app.take_over(self._token.reveal())
        return self.agent

    def end(self, task: AgentWritTask) -> None:
        """Have the token end, unless the task comes again."""
        if self.agent is None or self.comes_again:
            return
        try:
            if self.has_published:
                # What was delegated has to outlive it, so the grant goes on, with a token that nobody holds. Whoever
                # shows a predecessor to be renewed is given the successor, unless that was renewed as well.
                self.agent.renew()
                self.agent.renew()
            else:
                self.agent.release()
        except AgentWritError as failure:
            # The work is done: to fail it now would have it done again. The token ends by itself.
            logger.warning("the token for %s was not released: %s", task.name, failure)


@discreet
def _taken(task: AgentWritTask, request: Any) -> _Message:
    """What came with a request. Whatever shows or logs the request afterwards shows no token."""
    token = (request.headers or {}).pop(HEADER, None)
    vars(request).pop(HEADER, None)
    if not _is_here.get():
        published = {
            "link": request.callbacks,
            "link_error": request.errbacks,
            "chain": request.chain,
            "chord": request.chord,
        }
        seal(task.app, following(published), _is_guarded)
    return _Message(Secret(str(token)) if isinstance(token, str) and token else None)


def _known(request: Any) -> _Message | None:
    message = vars(request).get(_MESSAGE)
    return message if isinstance(message, _Message) else None  # a header of this name becomes the request's, too


@contextlib.contextmanager
def _message_of(task: AgentWritTask, request: Any) -> Iterator[_Message]:
    message = _taken(task, request)
    vars(request)[_MESSAGE] = message
    with _set(_is_here, False), _ended(task, message):
        yield message


@contextlib.contextmanager
def _ended(task: AgentWritTask, message: _Message) -> Iterator[_Message]:
    try:
        yield message
    except Reject as error:
        message.comes_again |= bool(error.requeue)
        raise
    finally:
        message.end(task)


class _Publication:
    """The tokens of one message."""

    def __init__(self, task: AgentWritTask) -> None:
        self.steps = Steps(task.app, self._token_for)
        self._tasks = task.app.tasks
        self._made: list[Agent] = []
        self._shared: list[str] = []

    def headers(
        self,
        task: AgentWritTask,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        task_id: str,
        given: Mapping[str, Any] | None,
    ) -> Mapping[str, Any] | None:
        if given is not None and HEADER in given:
            return given
        token = self._token_for(task.name, args or (), kwargs or {}, 0, task_id, None)
        return given if token is None else {**(given or {}), HEADER: token}

    def undo(self) -> None:
        """End what was made for a message that is not published."""
        for name in self._shared:
            _shared_tokens.drop(name)
        for agent in self._made:
            with contextlib.suppress(AgentWritError):  # it ends by itself
                agent.release()

    def _token_for(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        before: int,
        task_id: str,
        shared: str | None,
    ) -> str | None:
        calls = _calls(self._tasks.get(name), args, kwargs)
        if not calls:
            return None
        if shared is None:
            return self._made_for(calls, before, task_id)
        known = _shared_tokens.get(shared)
        if known is None:
            known = Secret(self._made_for(calls, before, task_id))
            _shared_tokens.put(shared, known)
            self._shared.append(shared)
        return known.reveal()

    @discreet
    def _made_for(self, calls: Sequence["_Call"], before: int, task_id: str) -> str:
        task = calls[0].task
        ttl = task.token_ttl
        try:
            agent = current_agent()
        except NoCurrentAgent:
            app = _app_of(task)
            made = app.create_agent(app.client_id, task_id, _all_needed(calls, before, None), max_ttl=ttl)
            self._made.append(made)
            return made.access_token
        if not isinstance(agent, Agent):
            raise AgentWritError(
                f"Celery does not await: delegate first, and publish the token as the header {HEADER!r}"
            )
        if agent.is_bound:
            raise AgentWritError("a bound token is of no use in a queue: the key that it is bound to stays here")
        delegated = agent.delegate(agent.agent_id, _all_needed(calls, before, agent.scope), ttl=ttl)
        self._made.append(agent.accept(delegated))
        working = _at_work.get()
        if working is not None and working.agent is agent:
            working.has_published = True
        return delegated.access_token


class _Call(NamedTuple):
    """A call of a task that has scopes."""

    task: AgentWritTask
    needs: Requirement
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def needed(self, held: Sequence[str]) -> list[str]:
        return self.needs.needed(self._bound(0), held)

    def needed_at_most(self, before: int, held: Sequence[str] | None) -> list[str]:
        """What covers it, whatever the values are that come before its arguments."""
        try:
            values = self._bound(before)
        except TypeError:
            if not before:
                raise
            values = {}  # the call will fail for that, and Celery says so where it is made
        known = {name: value for name, value in values.items() if value is not _UNKNOWN}
        return self.needs.needed_at_most(known, held)

    def _bound(self, before: int) -> Mapping[str, object]:
        return arguments(self.task._parameters, [*[_UNKNOWN] * before, *self.args], self.kwargs)


def _calls(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[_Call]:
    """The calls of tasks with scopes that a message for a task leads to: its own, or those of a map."""
    if not isinstance(task, AgentWritTask):
        return []
    if task._needs is not None:
        return [_Call(task, task._needs, args, kwargs)]
    if task.name not in MAPS or "task" not in kwargs:
        return []
    mapped = task.app.tasks.get(signature(kwargs["task"], app=task.app).task)
    return [call for each in calls_of(task.name, kwargs) for call in _calls(mapped, each, {})]


def _all_needed(calls: Sequence[_Call], before: int, held: Sequence[str] | None) -> list[str]:
    needed = list(dict.fromkeys(each for call in calls for each in call.needed_at_most(before, held)))
    if len(needed) > MAX_SCOPES:
        raise AgentWritError(
            f"the calls of a map need {len(needed)} scopes, and a token has {MAX_SCOPES} at most: publish it in parts"
        )
    return needed


def _is_guarded(task: Any) -> bool:
    return isinstance(task, AgentWritTask) and (task._needs is not None or task.name in MAPS)


def _is_celerys(task: Task) -> bool:
    return str(task.name).startswith("celery.")


@contextlib.contextmanager
def _publication(task: AgentWritTask) -> Iterator[_Publication | None]:
    """The tokens of what is published inside the `with`, which end if it fails; None where none are made."""
    if not _may_publish(task):
        yield None
        return
    publication = _Publication(task)
    try:
        yield publication
    except BaseException:
        publication.undo()
        raise


def _may_publish(task: AgentWritTask) -> bool:
    """Whether it is code of the application's that publishes here, and not a worker that has a message before it."""
    told = _publishes.get()
    if told is not None:
        return told
    return not _is_worker and task.app.current_worker_task is None


@contextlib.contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    before = variable.get()
    variable.set(value)
    try:
        yield
    finally:
        variable.set(before)


def _guarded(body: Any) -> Any:
    function = getattr(body, "__func__", body)
    signature = inspect.signature(function)
    if isinstance(body, staticmethod):
        task = inspect.Parameter("agentwrit_task", inspect.Parameter.POSITIONAL_ONLY)
        signature = signature.replace(parameters=[task, *signature.parameters.values()])

    @functools.wraps(function)
    def run(task: AgentWritTask, /, *args: Any, **kwargs: Any) -> Any:
        return task._run(body.__get__(task, type(task)), args, kwargs)

    run.__signature__ = signature  # type: ignore[attr-defined]
    setattr(run, _GUARDED, True)
    return run


def _without_the_task(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


@discreet
def _app_of(task: AgentWritTask) -> AgentWritApp:
    if task.agentwrit is not None:
        return task.agentwrit
    global _of_environment
    if _of_environment is None:
        _of_environment = AgentWritApp.from_env()
    return _of_environment


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _note_worker(**_: Any) -> None:
    """In the process of `celery worker`, and those that it forks, it is bodies of tasks alone that publish."""
    global _is_worker
    _is_worker = True


@signals.beat_embedded_init.connect  # type: ignore[untyped-decorator]
def _note_schedule(**_: Any) -> None:
    """The schedule in a worker (`--beat`) publishes what the application has in it."""
    _publishes.set(True)


_UNKNOWN: Final = object()

_of_environment: AgentWritApp | None = None
_is_worker = False
_publishes: ContextVar[bool | None] = ContextVar("agentwrit_celery_publishes", default=None)
_is_here: ContextVar[bool] = ContextVar("agentwrit_celery_is_here", default=False)  # run where it is published
_at_work: ContextVar[_Message | None] = ContextVar("agentwrit_celery_at_work", default=None)
_shared_tokens: Recent[str, Secret[str]] = Recent(SHARED_TOKENS)
