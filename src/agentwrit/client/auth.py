"""Showing an agent's token to services, with whatever HTTP library they are called.

What is shown, and when it is renewed, `AgentLife` decides. An adapter gets a token, and when a service refuses it asks
for another: if there is one the request is repeated, once, unless its body was a stream. A library is imported when an
adapter for it is made.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from importlib import import_module
from typing import Any, Protocol

from agentwrit.client.async_driver import AsyncDriver
from agentwrit.client.driver import Driver
from agentwrit.client.life import AgentLife
from agentwrit.errors import AgentWritError

HEADER = "Authorization"


class Tokens(Protocol):
    """Where adapters get tokens from, and the headers that show one.

    All methods raise what `AgentLife.fresh_token` raises.
    """

    def headers(self, method: str, url: str, token: str) -> dict[str, str]: ...

    def fresh(self) -> str: ...

    def after_refusal(self, refused: str) -> str | None: ...

    async def fresh_async(self) -> str: ...

    async def after_refusal_async(self, refused: str) -> str | None: ...


class BlockingTokens:
    """Those of an `Agent`. On an event loop a thread renews them, so that the loop is not held up."""

    def __init__(self, driver: Driver, life: AgentLife) -> None:
        self._driver = driver
        self._life = life

    def headers(self, method: str, url: str, token: str) -> dict[str, str]:
        return self._life.headers(method, url, token)

    def fresh(self) -> str:
        return self._driver.run(self._life.fresh_token()) if self._life.is_due else self._life.live_token()

    def after_refusal(self, refused: str) -> str | None:
        return self._driver.run(self._life.token_after_refusal(refused))

    async def fresh_async(self) -> str:
        return await asyncio.to_thread(self.fresh) if self._life.is_due else self._life.live_token()

    async def after_refusal_async(self, refused: str) -> str | None:
        return await asyncio.to_thread(self.after_refusal, refused)


def make_auth(library: str, tokens: Tokens) -> Any:
    """What an HTTP library takes to show these tokens.

    Raises:
        ValueError: there is no adapter for it.
        ImportError: it is not there.
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
    """Whether a service refused the token itself (RFC 6750 §3.1), and not how far it reaches."""
    challenge = next((value for name, value in headers.items() if name.lower() == "www-authenticate"), "")
    return status == 401 or (status == 403 and 'error="invalid_token"' in challenge)


def _httpx_auth(library: Any, tokens: Tokens) -> Any:
    """httpx2 and httpx are alike, but neither takes the other's Auth."""

    def authorize(request: Any, token: str) -> None:
        request.headers.update(tokens.headers(request.method, str(request.url), token))

    def is_refused(request: Any, response: Any) -> bool:
        try:
            request.content  # noqa: B018  # reading it tells whether it can be sent again
        except library.RequestNotRead:
            return False
        return is_refusal(response.status_code, response.headers)

    class AgentAuth(library.Auth):  # type: ignore[misc]  # the class is chosen at run time
        def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
            token = tokens.fresh()
            authorize(request, token)
            response = yield request
            if is_refused(request, response):
                successor = tokens.after_refusal(token)
                if successor is not None:
                    authorize(request, successor)
                    yield request

        async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
            token = await tokens.fresh_async()
            authorize(request, token)
            response = yield request
            if is_refused(request, response):
                successor = await tokens.after_refusal_async(token)
                if successor is not None:
                    authorize(request, successor)
                    yield request

    return AgentAuth()


def _requests_auth(library: Any, tokens: Tokens) -> Any:
    class AgentAuth(library.AuthBase):  # type: ignore[misc]  # the class is known at run time
        def __call__(self, request: Any) -> Any:
            token = tokens.fresh()
            shown = tokens.headers(request.method, request.url, token)
            request.headers.update(shown)

            def repeat(response: Any, **options: Any) -> Any:
                sent = response.request
                # Where a redirect led to another host, the token was not sent, and is not now.
                if sent.headers.get(HEADER) != shown[HEADER] or not isinstance(sent.body, bytes | str | None):
                    return response
                if not is_refusal(response.status_code, response.headers):
                    return response
                successor = tokens.after_refusal(token)
                if successor is None:
                    return response
                response.content  # noqa: B018  # reads it to its end, so that the connection can be used again
                response.close()
                again = sent.copy()
                again.headers.update(tokens.headers(again.method, again.url, successor))
                answer = response.connection.send(again, **options)
                answer.history.append(response)
                answer.request = again
                return answer

            request.register_hook("response", repeat)
            return request

    return AgentAuth()


class _AiohttpMiddleware:
    """For one origin, the first that it is used with: aiohttp calls it for redirects too, wherever they lead."""

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
    """Those of an `AsyncAgent`."""

    def __init__(self, driver: AsyncDriver, life: AgentLife) -> None:
        self._driver = driver
        self._life = life

    def headers(self, method: str, url: str, token: str) -> dict[str, str]:
        return self._life.headers(method, url, token)

    def fresh(self) -> str:
        raise AgentWritError("an AsyncAgent shows its token through asynchronous clients: use one, or an Agent")

    def after_refusal(self, refused: str) -> str | None:
        raise NotImplementedError  # nothing was shown

    async def fresh_async(self) -> str:
        if self._life.is_due:
            return await self._driver.run_through(self._life.fresh_token())
        return self._life.live_token()

    async def after_refusal_async(self, refused: str) -> str | None:
        return await self._driver.run_through(self._life.token_after_refusal(refused))
