"""The steps of Celery's workflows: each is given its token before the first of them is published.

A message holds what is to be published after it: callbacks (`link`), errbacks (`link_error`), the rest of a chain, the
body of a chord. Workers publish that, and nobody acts there. So whoever publishes the message has tokens put into these
signatures first, and a worker that gets it (`seal`) notes which steps came without.

The rules:

- A step's token is in the headers of its own signature. Headers of a chain, a group or a chord would take the place of
  those of its steps when it is published: so they are handed down to the steps first.
- Celery puts what came before in front of a step's arguments, unless the step is immutable: a result, or of what failed
  its id, or its request, error and traceback. These values are not known yet.
- A signature is copied, never changed: users publish theirs again. What is made from a copy is the same for all copies
  of a chord's body, which comes with each task of its header and is run once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from celery import Celery, group, signature
from celery.utils import uuid
from celery.utils.functional import arity_greater, maybe_list

HEADER: Final = "agentwrit-token"
CHUNKS: Final = "celery.chunks"
MAPS: Final = ("celery.map", "celery.starmap", CHUNKS)

_COMPOSED: Final = ("chain", "group", "chord")

TokenFor = Callable[[str, Sequence[Any], Mapping[str, Any], int, str, str | None], str | None]
"""Gives a token for a task, by its name, arguments, how many values will come before these, its id, and the name that
it has where copies of it share one."""


class Steps:
    """Puts tokens into copies of signatures."""

    def __init__(self, app: Celery, token_for: TokenFor) -> None:
        self._app = app
        self._token_for = token_for

    def step(self, given: Mapping[str, Any], before: int, shared: str | None = None) -> Any:
        """A copy of a signature, with all that is to be published after it.

        `before`: how many values Celery puts in front of its arguments. `shared`: a name, where there are copies.
        """
        step = signature(given, app=self._app).clone()
        match step.subtask_type:
            case "chain":
                tasks = self._handed_down(step, first_alone=True)
                after = [before + len(step.args)] + [1] * len(tasks)
                step.tasks = [self.step(task, after[i], _below(shared, f"chain-{i}")) for i, task in enumerate(tasks)]
            case "group":
                tasks = self._handed_down(step)
                step.tasks = [self.step(task, before, _below(shared, f"group-{i}")) for i, task in enumerate(tasks)]
            case "chord":
                self._give_to_chord(step, before, shared)
            case _:
                self._give(step, 0 if step.immutable else before, shared)
        step.options.update(self.published_after(step.options, shared))
        return step

    def published_after(self, options: Mapping[str, Any], shared: str | None = None) -> dict[str, Any]:
        """Those of a task's options that say what is to be published after it, with tokens."""
        found: dict[str, Any] = {}
        for name, give in (("link", self._callback), ("link_error", self._errback), ("chain", self._callback)):
            if options.get(name):
                following = maybe_list(options[name])
                found[name] = [give(each, _below(shared, f"{name}-{i}")) for i, each in enumerate(following)]
        if options.get("chord"):
            found["chord"] = self.step(options["chord"], 1, options.get("group_id"))
        return found

    def _callback(self, given: Mapping[str, Any], shared: str | None) -> Any:
        return self.step(given, 1, shared)

    def _errback(self, given: Mapping[str, Any], shared: str | None) -> Any:
        if not _takes_a_request(self._app.tasks.get(given["task"])):
            return self.step(given, 1, shared)
        # Celery calls it in place, with request, error and traceback. What has its arguments already sees none of
        # these, and so has no place to find its token: in a group it is published.
        return self.step(group([signature(given)], app=self._app) if given["immutable"] else given, 3, shared)

    def _give_to_chord(self, step: Any, before: int, shared: str | None) -> None:
        headers = step.options.pop("headers", None)
        body = _with_headers(step.body, headers)
        header = step.tasks
        if isinstance(header, group):
            step.tasks = self.step(_with_headers(header, headers), before, _below(shared, "header"))
        else:
            tasks = enumerate(_with_headers(task, headers) for task in header)
            step.tasks = [self.step(task, before, _below(shared, f"header-{i}")) for i, task in tasks]
        if body is not None:
            step.body = self.step(body, 1, _below(shared, "body"))

    def _give(self, step: Any, before: int, shared: str | None) -> None:
        headers = dict(step.options.get("headers") or {})
        if HEADER not in headers:
            task_id = step.options.get("task_id") or uuid()
            token = self._token_for(step.task, step.args, step.kwargs, before, task_id, shared)
            if token is not None:
                step.options["headers"] = {**headers, HEADER: Shown(token)}

    @staticmethod
    def _handed_down(step: Any, *, first_alone: bool = False) -> list[Any]:
        """The tasks of a composed step, with its own headers."""
        headers = step.options.pop("headers", None)
        return [task if first_alone and i else _with_headers(task, headers) for i, task in enumerate(list(step.tasks))]


class Shown(str):
    """A token where JSON needs a text, which whoever prints the whole is not shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def seal(app: Celery, steps: Iterable[Any], is_guarded: Callable[[Any], bool]) -> None:
    """Note in steps that came with a message that those without a token have none, so that nobody here makes one.

    `is_guarded`: whether a task, or None for one that is not known here, needs a token.
    """
    for step in steps:
        inside = step["kwargs"]
        if step["subtask_type"] in _COMPOSED:
            composed = inside.get("tasks") or inside.get("header") or ()
            seal(app, [composed] if isinstance(composed, Mapping) else composed, is_guarded)
            if inside.get("body"):
                seal(app, [inside["body"]], is_guarded)
        else:
            headers = step["options"].get("headers") or {}
            token = headers.get(HEADER, "")
            if token or is_guarded(app.tasks.get(step["task"])):
                step["options"]["headers"] = {**headers, HEADER: Shown(token)}
        seal(app, following(step["options"]), is_guarded)


def following(options: Mapping[str, Any]) -> list[Any]:
    """What is published after a task with these options."""
    return [
        each
        for name in ("link", "link_error", "chain", "chord")
        for each in maybe_list(options.get(name)) or ()
        if each
    ]


def token_of_errback(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The token of a task that Celery calls in place, with the request that failed as its first argument."""
    if len(args) < 3:
        return None
    for each in getattr(args[0], "errbacks", None) or ():
        if (each["task"], tuple(each["args"]), each["kwargs"]) == (name, tuple(args[3:]), kwargs):
            token = (each["options"].get("headers") or {}).get(HEADER)
            return token if isinstance(token, str) else None
    return None


def calls_of(name: str, kwargs: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The arguments of each call that a map leads to."""
    return [(item,) if name == "celery.map" else tuple(item) for item in kwargs["it"]]


def _takes_a_request(task: Any) -> bool:
    """Whether Celery calls an errback in place: as in `celery.backends.base.Backend._call_task_errbacks`."""
    header = getattr(task, "__header__", None)
    return header is not None and not isinstance(header, partial) and bool(arity_greater(header, 1))


def _with_headers(step: Any, headers: Mapping[str, Any] | None) -> Any:
    if not headers or step is None:
        return step
    changed = signature(step).clone()
    changed.options["headers"] = {**(changed.options.get("headers") or {}), **headers}
    return changed


def _below(shared: str | None, place: str) -> str | None:
    return None if shared is None else f"{shared}/{place}"
