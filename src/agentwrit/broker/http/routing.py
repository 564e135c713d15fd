"""What stands at which path."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from starlette.routing import compile_path

from agentwrit.broker.http.exchange import MAX_USUAL_BODY_BYTES, Answer, Exchange
from agentwrit.domain.errors import MethodNotAllowed, NotFound, Refusal

Handler = Callable[[Exchange], Awaitable[Answer]]
Refusing = Callable[[Refusal], Answer]

_NO_PARAMETERS: Final[Mapping[str, str]] = {}


class Resource:
    """What stands at one path: a handler for each method.

    In a path `{name}` takes one segment, and `{name:path}` all that follows. `is_bounded`: whether only so many
    requests for this and for others of its kind may be under way. `max_body`: how many bytes a body may have.
    `refusing`: how a request is refused that no handler gets to see, if not by a problem document.
    """

    def __init__(
        self,
        path: str,
        handlers: Mapping[str, Handler],
        *,
        is_bounded: bool = False,
        max_body: int = MAX_USUAL_BODY_BYTES,
        refusing: Refusing | None = None,
    ) -> None:
        self.path = path
        self.is_bounded = is_bounded
        self.max_body = max_body
        self.refusing = refusing
        self._handlers = dict(handlers)
        if "GET" in self._handlers:
            self._handlers.setdefault("HEAD", self._handlers["GET"])
        self.routes = {method: f"{method} {path}" for method in self._handlers}

    def handler(self, method: str) -> Handler:
        """What answers this method.

        Raises:
            MethodNotAllowed: nothing does.
            NotFound: there is nothing at this path at all.
        """
        handler = self._handlers.get(method)
        if handler is None:
            raise MethodNotAllowed(frozenset(self._handlers))
        return handler


class _Nothing(Resource):
    """What stands at all other paths."""

    def handler(self, method: str) -> Handler:
        raise NotFound("there is nothing at this path")


UNKNOWN: Final[Resource] = _Nothing("unknown", {})


class Router:
    """Resources by path. Most paths are fixed, and are found at once."""

    def __init__(self, resources: Sequence[Resource]) -> None:
        self._fixed = {resource.path: resource for resource in resources if "{" not in resource.path}
        self._templates = [(compile_path(resource.path)[0], resource) for resource in resources if "{" in resource.path]

    def find(self, path: str) -> tuple[Resource, Mapping[str, str]]:
        """The resource at a path, or UNKNOWN, and the values of the path's parameters."""
        resource = self._fixed.get(path)
        if resource is not None:
            return resource, _NO_PARAMETERS
        for pattern, candidate in self._templates:
            match = pattern.match(path)
            if match is not None:
                return candidate, match.groupdict()
        return UNKNOWN, _NO_PARAMETERS
