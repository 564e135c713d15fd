"""Keeping secrets out of tracebacks.

Many tools show the variables of each frame of a traceback, by their repr. The rules:

- A secret is a `Secret` from where it comes in to where it is written to a connection or returned to a caller that
  asked for it. Its repr does not show it, and it is not a str, whose content such tools show whatever its repr is.
- In between, some frames hold it in plain text: those of the public function that received it, of codecs and of HTTP
  libraries. An exception that leaves a `discreet` function keeps its traceback, but without variables.
"""

import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from typing import Any, AnyStr, Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class Secret(Generic[AnyStr]):
    """A text or bytes that cannot be shown by accident. Equal values are the same secret.

    It is not a dataclass, which the JSON encoder would encode as an object.
    """

    __slots__ = ("_value",)

    def __init__(self, value: AnyStr) -> None:
        self._value: AnyStr = value

    def reveal(self) -> AnyStr:
        """The value, for code in which nothing can fail while it is held."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


def revealed(value: "str | Secret[str]") -> str:
    """The plain text of a value that may be a secret."""
    return value.reveal() if isinstance(value, Secret) else value


def discreet(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function or coroutine function raise its exceptions without the variables of the frames inside it.

    An exception that the caller was already handling is left as it is.
    """
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def discreet_coroutine(*args: Any, **kwargs: Any) -> Any:
            handled = sys.exception()
            try:
                return await function(*args, **kwargs)
            except BaseException as error:
                del args, kwargs  # this frame is in the traceback too
                forget_variables(error, handled)
                raise

        return cast(Callable[P, R], discreet_coroutine)

    @functools.wraps(function)
    def discreet_function(*args: P.args, **kwargs: P.kwargs) -> R:
        handled = sys.exception()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            del args, kwargs
            forget_variables(error, handled)
            raise

    return discreet_function


def forget_variables(error: BaseException, handled: BaseException | None) -> None:
    """Clear the frames of an error's traceback, and those of its causes and contexts, up to `handled`."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = {id(handled)}
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
