"""What a call needs: scopes with holes, filled from its arguments, and checked before its body begins.

The rules:

- A hole is filled by the argument of that name, a default included, as the body gets it.
- A value that cannot stand in a scope, or that is missing, is refused: nothing that is passed can widen what is needed.
- Of a coroutine or a generator it is checked when the body begins, not when it is made: that may be elsewhere.
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
        """Read the templates.

        Raises:
            ValueError: one is no template of a scope, or there is none.
            TypeError: a bare string was given where a list belongs.
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
        """Check what is needed for these values against what is held.

        Raises:
            ScopeDenied: it is not covered. Where a value fits no scope, what is needed is told as its author wrote it.
        """
        needed = self.needed(values, held)
        if not scope_is_subset(needed, held):
            raise ScopeDenied(needed, list(held))

    def needed(self, values: Mapping[str, object], held: Sequence[str]) -> list[str]:
        """What is needed for these values.

        Raises:
            ScopeDenied: a value fits no scope.
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
        """Whether there are values for which what is needed is covered, as far as each scope can tell alone."""
        return all(template.is_within_reach(held) for template in self._templates)


def guarded(function: Callable[P, R], requirement: Requirement, held: Held) -> Callable[P, R]:
    """`function`, of the same kind and signature, whose body begins only if what is `held` then covers the requirement.

    Raises:
        TypeError: it is not a function, or is a classmethod or staticmethod already: the guard belongs below those.
        ValueError: a hole has no parameter of its name.
    """
    if isinstance(function, type | classmethod | staticmethod) or not callable(function):
        raise TypeError(
            f"{function!r} is no function: a guard stands at functions, below @classmethod or @staticmethod"
        )
    signature = inspect.signature(function)
    check_holes(function, signature, requirement)

    def check(*args: Any, **kwargs: Any) -> None:
        requirement.check(arguments(signature, args, kwargs), held())

    return cast(Callable[P, R], _of_its_kind(function, check))


def check_holes(function: object, signature: inspect.Signature, requirement: Requirement) -> None:
    """See that each hole has a parameter of its name.

    Raises:
        ValueError: one has none.
    """
    named = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    if missing := sorted(requirement.holes - named):
        raise ValueError(f"{function!r} has no parameter {missing[0]!r} to fill a scope with")


def arguments(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, object]:
    """The arguments of a call by name, as the body gets them, defaults included.

    Raises:
        TypeError: the function cannot be called like that.
    """
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _of_its_kind(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """A function of the same kind, so that those who look at the kind treat it alike."""
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
    """What `yield from` would do, which asynchronous generators do not have."""

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
                except BaseException as error:  # whatever was thrown in is for the function
                    step = inner.athrow(error)
                else:
                    step = inner.asend(sent)

    return async_generator
