"""What a call needs: scope templates, filled from its arguments, and checked before its body begins.

The rules:

- A placeholder ("hole") is filled with the argument of that name, defaults included, as the body receives it.
- A value that cannot be part of a scope, or that is missing, is refused: no argument can widen what is needed.
- A coroutine or generator is checked when its body begins, not when it is created, because that may happen elsewhere.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

from agentwrit.domain.scope import scope_is_subset
from agentwrit.domain.scope_template import ScopeTemplate, UnfitValue
from agentwrit.errors import ScopeDenied

P = ParamSpec("P")
R = TypeVar("R")

Held = Callable[[], Sequence[str]]


class Requirement:
    """Scopes that are all needed, as templates: `read:data:customer-{customer_id}`."""

    def __init__(self, scopes: Iterable[str]) -> None:
        """Parse the templates.

        Raises:
            ValueError: a template is invalid, or there is none.
            TypeError: a single string was given instead of a list.
        """
        if isinstance(scopes, str):
            raise TypeError("scopes are given as a list of strings, not as one string")
        self._templates = [ScopeTemplate(scope) for scope in scopes]
        if not self._templates:
            raise ValueError("name at least one scope that is needed")

    @property
    def holes(self) -> set[str]:
        """The names of all holes."""
        return {hole for template in self._templates for hole in template.holes}

    def check(self, values: Mapping[str, object], held: Sequence[str]) -> None:
        """Check the scopes needed for these values against `held`.

        Raises:
            ScopeDenied: they are not covered. If a value cannot be part of a scope, the error shows the templates as
                written.
        """
        needed = self.needed(values, held)
        if not scope_is_subset(needed, held):
            raise ScopeDenied(needed, list(held))

    def needed(self, values: Mapping[str, object], held: Sequence[str]) -> list[str]:
        """The scopes needed for these values.

        Raises:
            ScopeDenied: a value cannot be part of a scope.
        """
        try:
            return [template.fill(values) for template in self._templates]
        except (UnfitValue, KeyError):
            raise ScopeDenied([template.text for template in self._templates], list(held)) from None

    def needed_at_most(self, values: Mapping[str, object], held: Sequence[str] | None) -> list[str]:
        """What covers the need of a call of which only these values are known yet: the least there is of `held`.

        `held`: None for whoever may be given anything.

        Raises:
            ScopeDenied: a value fits no scope, or nothing that is held covers any such call.
        """
        found: dict[str, None] = {}
        for template in self._templates:
            try:
                if values.keys() >= set(template.holes):
                    covering = [template.fill(values)]
                else:
                    covering = template.reach(values, [template.everything] if held is None else held)
            except UnfitValue:
                covering = []
            if not covering:
                raise ScopeDenied([template.text for template in self._templates], list(held or []))
            found.update(dict.fromkeys([template.everything] if template.everything in covering else covering))
        return list(found)

    def is_within_reach(self, held: Sequence[str]) -> bool:
        """Whether `held` covers the needed scopes for some values, each template taken alone."""
        return all(template.is_within_reach(held) for template in self._templates)


def guarded(function: Callable[P, R], requirement: Requirement, held: Held) -> Callable[P, R]:
    """`function`, of the same kind and signature, whose body begins only if `held` then covers the requirement.

    Raises:
        TypeError: it is not a function, or already a classmethod or staticmethod: the guard belongs below those.
        ValueError: the function has no parameter for a hole.
    """
    if isinstance(function, type | classmethod | staticmethod) or not callable(function):
        raise TypeError(
            f"{function!r} is not a function: put the guard on functions, below @classmethod or @staticmethod"
        )
    signature = inspect.signature(function)
    check_holes(function, signature, requirement)

    def check(*args: Any, **kwargs: Any) -> None:
        requirement.check(arguments(signature, args, kwargs), held())

    return cast(Callable[P, R], _of_its_kind(function, check))


def check_holes(function: object, signature: inspect.Signature, requirement: Requirement) -> None:
    """Check that the function has a parameter for each hole.

    Raises:
        ValueError: a hole has none.
    """
    named = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if missing := sorted(requirement.holes - named):
        raise ValueError(f"{function!r} has no parameter {missing[0]!r} to fill a scope with")


def arguments(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, object]:
    """The arguments of a call by name, as the body receives them, defaults included.

    Raises:
        TypeError: the function does not accept these arguments.
    """
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _of_its_kind(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A function of the same kind, so that code that inspects the kind treats it alike."""
    if inspect.isasyncgenfunction(function):
        return _async_generator(function, check)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            check(*args, **kwargs)
            return await function(*args, **kwargs)

        return coroutine
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generator(*args: Any, **kwargs: Any) -> Any:
            check(*args, **kwargs)
            return (yield from function(*args, **kwargs))

        return generator

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return function(*args, **kwargs)

    return plain


def _async_generator(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """Does what `yield from` would do, which asynchronous generators do not have."""

    @functools.wraps(function)
    async def async_generator(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        async with contextlib.aclosing(function(*args, **kwargs)) as inner:
            step = inner.asend(None)
            while True:
                try:
                    item = await step
                except StopAsyncIteration:
                    return
                try:
                    sent = yield item
                except GeneratorExit:
                    raise
                except BaseException as error:  # any exception thrown in is for the function
                    step = inner.athrow(error)
                else:
                    step = inner.asend(sent)

    return async_generator
