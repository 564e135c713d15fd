"""Showing an agent's token to services, with the common HTTP libraries.

`AgentLife` decides which token is shown and when it is renewed. An adapter gets a token from it, and after a refusal
asks for a successor. If there is one, the request is repeated once, unless its body was a stream. A library is imported
when an adapter for it is created.

One renewal serves all requests. They wait briefly for it, because it supersedes the token that they would show. If the
broker does not answer in that time, or did not the last time, they use the token that is still valid.

A proof is for one request (RFC 9449 §4.2), so no redirect carries it along. If a redirect stays at the origin, the next
request is refused without a proof and sent again with its own. If it leads to another origin, it carries neither token
nor proof.
"""

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, Protocol

from agentwrit.client.async_driver import AsyncDriver
from agentwrit.client.driver import Driver
from agentwrit.client.life import PATIENCE_SECONDS, AgentLife
from agentwrit.client.secrecy import Secret
from agentwrit.errors import AgentWritError

HEADER: Final = "Authorization"
PROOF: Final = "DPoP"
MAX_REQUESTS: Final = (
    20  # requests, redirects included, for one request of the application: the default limit of the libraries
)
PARTS: Final = 10  # of that wait: a stall of the program uses up at most one of them

Trace = Callable[[str, Any], Any]


class Tokens(Protocol):
    """Where adapters get tokens and the headers that show them.

    All methods raise what `AgentLife.fresh_token` raises.
    """

    @property
    def is_bound(self) -> bool: ...

    def headers(self, method: str, url: str, token: Secret[str]) -> dict[str, str]: ...

    def fresh(self) -> Secret[str]: ...

    def after_refusal(self, refused: Secret[str]) -> Secret[str] | None: ...

    async def fresh_async(self) -> Secret[str]: ...

    async def after_refusal_async(self, refused: Secret[str]) -> Secret[str] | None: ...


class BlockingTokens:
    """The tokens of an `Agent`. A thread renews them, so that a request with a valid token need not wait."""

    def __init__(self, driver: Driver, life: AgentLife) -> None:
        self._driver = driver
        self._life = life
        self._lock = threading.Lock()
        self._renewal: _Renewal | None = None

    @property
    def is_bound(self) -> bool:
        return self._life.is_bound

    def headers(self, method: str, url: str, token: Secret[str]) -> dict[str, str]:
        return self._life.headers(method, url, token)

    def fresh(self) -> Secret[str]:
        self._life.check_own()
        if self._life.is_due and not self._life.is_over:
            self._renew_beside()
        return self._driver.run(self._life.fresh_token()) if self._life.is_over else self._life.own_token()

    def after_refusal(self, refused: Secret[str]) -> Secret[str] | None:
        return self._driver.run(self._life.token_after_refusal(refused))

    async def fresh_async(self) -> Secret[str]:
        return await asyncio.to_thread(self.fresh) if self._life.is_due else self._life.own_token()

    async def after_refusal_async(self, refused: Secret[str]) -> Secret[str] | None:
        return await asyncio.to_thread(self.after_refusal, refused)

    def _renew_beside(self) -> None:
        """Start a renewal, and wait for it as long as a request with a valid token waits."""
        with self._lock:
            renewal = self._renewal
            if renewal is None or renewal.done.is_set():
                renewal = self._renewal = _Renewal(is_late=self._life.is_failing)
                thread = threading.Thread(target=self._renew, args=(renewal,), name="agentwrit-renewal", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread can be started, as at interpreter shutdown
                    renewal.done.set()
        for _ in range(PARTS):
            if renewal.is_late or renewal.done.wait(PATIENCE_SECONDS / PARTS):
                return
        renewal.is_late = True

    def _renew(self, renewal: "_Renewal") -> None:
        try:
            with suppress(AgentWritError):  # the failure is logged, and a later request tries again
                self._driver.run(self._life.fresh_token())
        finally:
            renewal.done.set()


class _Renewal:
    """A renewal in progress. `is_late`: whether requests with a valid token have stopped waiting for it."""

    def __init__(self, *, is_late: bool) -> None:
        self.done = threading.Event()
        self.is_late = is_late


def make_auth(library: str, tokens: Tokens) -> Any:
    """The object that an HTTP library takes for authentication, showing these tokens.

    Raises:
        ValueError: there is no adapter for the library.
        ImportError: the library is not installed.
    """
    match library:
        case "httpx2" | "httpx":
            return _httpx_auth(import_module(library), tokens)
        case "requests":
            return _requests_auth(import_module("requests.auth"), tokens)
        case "aiohttp":
            import_module("aiohttp")
            return _AiohttpMiddleware(tokens)
    raise ValueError('auth_for takes "httpx2", "httpx", "requests" or "aiohttp"')


def is_refusal(status: int, headers: Mapping[str, str]) -> bool:
    """Whether a service refused the token itself (RFC 6750 §3.1), rather than its scope."""
    challenge = next((value for name, value in headers.items() if name.lower() == "www-authenticate"), "")
    return status == 401 or (status == 403 and 'error="invalid_token"' in challenge)


def _httpx_auth(library: Any, tokens: Tokens) -> Any:
    """An Auth for httpx2 or httpx. The two are alike, but neither accepts the other's Auth."""

    class AgentAuth(library.Auth):  # type: ignore[misc]  # the class is chosen at run time
        def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            showing = _Showing(tokens, tokens.fresh(), request, library.ByteStream)
            while True:
                showing.show(request, _forgetting)
                response = yield request
                if not showing.is_refused(response):
                    return
                if showing.needs_successor(response) and not showing.take(tokens.after_refusal(showing.token)):
                    return
                request = response.request

        async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
            showing = _Showing(tokens, await tokens.fresh_async(), request, library.ByteStream)
            while True:
                showing.show(request, _forgetting_async)
                response = yield request
                if not showing.is_refused(response):
                    return
                if showing.needs_successor(response) and not showing.take(
                    await tokens.after_refusal_async(showing.token)
                ):
                    return
                request = response.request

    return AgentAuth()


class _Showing:
    """A token in all requests that one request of the application becomes. `repeatable`: the type of such bodies."""

    def __init__(self, tokens: Tokens, token: Secret[str], request: Any, repeatable: type) -> None:
        self.token = token
        self._tokens = tokens
        self._repeatable = repeatable
        self._trace = request.extensions.get("trace")
        self._shown: Any = None
        self._header = Secret("")
        self._is_replaced = False
        self._left = MAX_REQUESTS

    def show(self, request: Any, forgetting: Callable[[Any, Secret[str], Trace | None], Trace]) -> None:
        request.headers.update(self._tokens.headers(request.method, str(request.url), self.token))
        if self._tokens.is_bound:
            proof = Secret(request.headers[PROOF])
            request.extensions = {**request.extensions, "trace": forgetting(request, proof, self._trace)}
        self._shown, self._header = request, Secret(request.headers[HEADER])
        self._left -= 1

    def is_refused(self, response: Any) -> bool:
        """Whether the token was refused in a request that can be sent again."""
        sent = response.request  # after a redirect to another origin, it does not carry the token
        return (
            self._left > 0
            and sent.headers.get(HEADER) == self._header.reveal()
            and isinstance(sent.stream, self._repeatable)
            and is_refusal(response.status_code, response.headers)
        )

    def needs_successor(self, response: Any) -> bool:
        """Whether the token itself was refused. Otherwise a redirect brought the token here without its proof."""
        return response.request is self._shown or not self._tokens.is_bound

    def take(self, successor: Secret[str] | None) -> bool:
        """Continue with a token's successor. False if there is none, or if the token was already replaced."""
        if successor is None or self._is_replaced:
            return False
        self.token, self._is_replaced = successor, True
        return True


def _forgetting(request: Any, proof: Secret[str], before: Trace | None) -> Trace:
    """The trace function for httpx that removes the proof from the request once it is being sent.

    A client that follows a redirect copies the previous request's headers, to any origin. `before`: the application's
    own trace function.
    """

    def trace(event: str, info: Any) -> Any:
        _forget(request, proof)
        return None if before is None else before(event, info)

    return trace


def _forgetting_async(request: Any, proof: Secret[str], before: Trace | None) -> Trace:
    async def trace(event: str, info: Any) -> None:
        _forget(request, proof)
        if before is not None:
            await before(event, info)

    return trace


def _forget(request: Any, proof: Secret[str]) -> None:
    if request.headers.get(PROOF) == proof.reveal():  # not another attempt's proof, while this answer is read
        del request.headers[PROOF]


def _requests_auth(library: Any, tokens: Tokens) -> Any:
    class AgentAuth(library.AuthBase):  # type: ignore[misc]  # the class is known at run time
        def __call__(self, request: Any) -> Any:
            token = tokens.fresh()
            request.headers.update(tokens.headers(request.method, request.url, token))
            shown = Secret(request.headers[HEADER])

            def answered(response: Any, **options: Any) -> Any:
                sent = response.request
                # A client that follows a redirect copies the previous request's headers, to any origin.
                has_proof = sent.headers.pop(PROOF, None) is not None
                # After a redirect to another host, the token was not sent, and is not sent now.
                if sent.headers.get(HEADER) != shown.reveal() or not isinstance(sent.body, bytes | str | None):
                    return response
                if tokens.is_bound and not has_proof and is_refusal(response.status_code, response.headers):
                    response = again(response, token, options)
                if not is_refusal(response.status_code, response.headers):
                    return response
                successor = tokens.after_refusal(token)
                return response if successor is None else again(response, successor, options)

            request.register_hook("response", answered)
            return request

    def again(response: Any, token: Secret[str], options: dict[str, Any]) -> Any:
        response.content  # noqa: B018  # reads the body to its end, so that the connection can be reused
        response.close()
        request = response.request.copy()
        request.headers.update(tokens.headers(request.method, request.url, token))
        answer = response.connection.send(request, **options)
        request.headers.pop(PROOF, None)
        answer.history.append(response)
        answer.request = request
        return answer

    return AgentAuth()


class _AiohttpMiddleware:
    """For one origin, the first that it is used with: aiohttp calls a middleware for redirects too, to any origin."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._origin: object = None

    async def __call__(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        from aiohttp.payload import BytesPayload

        origin = request.url.origin()
        if self._origin is None:
            self._origin = origin
        if origin != self._origin:
            return await handler(request)
        token = await self._tokens.fresh_async()
        request.headers.update(self._tokens.headers(request.method, str(request.url), token))
        is_repeatable = not request.body or isinstance(request.body, bytes | BytesPayload)
        response = await handler(request)
        if is_repeatable and is_refusal(response.status, response.headers):
            successor = await self._tokens.after_refusal_async(token)
            if successor is not None:
                response.release()
                request.headers.update(self._tokens.headers(request.method, str(request.url), successor))
                response = await handler(request)
        return response


class AsyncTokens:
    """The tokens of an `AsyncAgent`."""

    def __init__(self, driver: AsyncDriver, life: AgentLife) -> None:
        self._driver = driver
        self._life = life
        self._renewals: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _AsyncRenewal]
        self._renewals = weakref.WeakKeyDictionary()

    @property
    def is_bound(self) -> bool:
        return self._life.is_bound

    def headers(self, method: str, url: str, token: Secret[str]) -> dict[str, str]:
        return self._life.headers(method, url, token)

    def fresh(self) -> Secret[str]:
        raise AgentWritError("an AsyncAgent shows its token through asynchronous clients: use one, or an Agent")

    def after_refusal(self, refused: Secret[str]) -> Secret[str] | None:
        raise NotImplementedError  # `fresh` raises, so no token was shown

    async def fresh_async(self) -> Secret[str]:
        self._life.check_own()
        if self._life.is_due and not self._life.is_over:
            await self._renew_beside()
        if self._life.is_over:
            return await self._driver.run_through(self._life.fresh_token())
        return self._life.own_token()

    async def after_refusal_async(self, refused: Secret[str]) -> Secret[str] | None:
        return await self._driver.run_through(self._life.token_after_refusal(refused))

    async def _renew_beside(self) -> None:
        """As `BlockingTokens._renew_beside`, in a task. Each loop has its own, because tasks belong to a loop."""
        loop = asyncio.get_running_loop()
        renewal = self._renewals.get(loop)
        if renewal is None or renewal.task.done():
            task = await self._driver.start(self._life.fresh_token())
            renewal = self._renewals[loop] = _AsyncRenewal(task, is_late=self._life.is_failing)
        for _ in range(PARTS):
            if renewal.is_late or (await asyncio.wait({renewal.task}, timeout=PATIENCE_SECONDS / PARTS))[0]:
                return
        renewal.is_late = True


class _AsyncRenewal:
    """As `_Renewal`."""

    def __init__(self, task: asyncio.Task[Secret[str]], *, is_late: bool) -> None:
        self.task = task
        self.is_late = is_late
