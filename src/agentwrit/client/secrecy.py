"""Keeping what is secret out of what tracebacks show.

Many tools show the variables of each frame of a traceback, by their repr. The rules:

- What is secret is a `Secret` from where it comes in to where it is written to a connection, or given to whoever asked
  for it: it has no repr that shows it, and it is no str, which such tools would show whatever its repr is.
- In between there are frames that hold it in the open: of the public function that it was given to, of codecs and of
  HTTP libraries. What leaves a `discreet` function as an exception keeps its traceback, and no variables in it.
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
    """A text, or bytes, that nobody is shown by accident. Equal ones are the same secret.

    No dataclass, since the JSON encoder would take one for an object.
    """

    __slots__ = ("_value",)

    def __init__(self, value: AnyStr) -> None:
        self._value: AnyStr = value

    def reveal(self) -> AnyStr:
        """What it is, for a place where nothing fails while it is held."""
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
    """A text that may be a secret, in the open."""
    return value.reveal() if isinstance(value, Secret) else value


def discreet(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function, or a coroutine function, raise what it raises without the variables of the frames inside it.

    What the caller was handling already, when it called, is left as it is.
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
    """Clear the frames that an error came through, and those of the errors that it came from, up to `handled`."""
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
