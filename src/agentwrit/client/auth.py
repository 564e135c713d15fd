"""Showing an agent's token to services, with whatever HTTP library they are called.

What is shown, and when it is renewed, `AgentLife` decides. An adapter gets a token, and when a service refuses it asks
for another: if there is one the request is repeated, once, unless its body was a stream. A library is imported when an
adapter for it is made.

A renewal is one for all requests. They wait a moment for it, because what it supersedes is dead then. Beside a broker
that does not answer in that time, or did not the last time, they go on with the token that is good yet.

A proof is for one request (RFC 9449 §4.2). So it goes along with no redirect: where a redirect stays at the origin, the
next request is refused without one, and sent again with one of its own. Where it leaves, neither token nor proof go.
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
    20  # that one request of the application's becomes, with redirects: what libraries allow by default
)
PARTS: Final = 10  # of that moment: a program that is held up in one of them loses no more than this one

Trace = Callable[[str, Any], Any]


class Tokens(Protocol):
    """Where adapters get tokens from, and the headers that show one.

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
    """Those of an `Agent`. A thread renews them, so that a token that is good yet does not wait for the broker."""

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
        """Have the token renewed, and wait for that as long as a request does that has a good one."""
        with self._lock:
            renewal = self._renewal
            if renewal is None or renewal.done.is_set():
                renewal = self._renewal = _Renewal(is_late=self._life.is_failing)
                thread = threading.Thread(target=self._renew, args=(renewal,), name="agentwrit-renewal", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # there is none to be had, as at the end of a program
                    renewal.done.set()
        for _ in range(PARTS):
            if renewal.is_late or renewal.done.wait(PATIENCE_SECONDS / PARTS):
                return
        renewal.is_late = True

    def _renew(self, renewal: "_Renewal") -> None:
        try:
            with suppress(AgentWritError):  # it is logged, and tried again with a later request
                self._driver.run(self._life.fresh_token())
        finally:
            renewal.done.set()


class _Renewal:
    """A renewal that is under way. `is_late`: whether requests with a good token wait for it no longer."""

    def __init__(self, *, is_late: bool) -> None:
        self.done = threading.Event()
        self.is_late = is_late


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
    """A token in the requests that one of the application's becomes. `repeatable`: the type of a body that stays."""

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
        """Whether the token was refused, in answer to a request that can be sent again."""
        sent = response.request  # where a redirect led to another origin, it is without the token
        return (
            self._left > 0
            and sent.headers.get(HEADER) == self._header.reveal()
            and isinstance(sent.stream, self._repeatable)
            and is_refusal(response.status_code, response.headers)
        )

    def needs_successor(self, response: Any) -> bool:
        """Whether the token itself was refused; else it came by a redirect, without its proof."""
        return response.request is self._shown or not self._tokens.is_bound

    def take(self, successor: Secret[str] | None) -> bool:
        """Go on with a token's successor. False if there is none, or if there was one already."""
        if successor is None or self._is_replaced:
            return False
        self.token, self._is_replaced = successor, True
        return True


def _forgetting(request: Any, proof: Secret[str], before: Trace | None) -> Trace:
    """What httpx calls when a request is on its way: it takes the proof from the request.

    For whoever follows a redirect copies the headers of the request before, to whatever origin. `before`: what the
    application wants to be called.
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
    if request.headers.get(PROOF) == proof.reveal():  # and not that of another attempt, while this one's answer is read
        del request.headers[PROOF]


def _requests_auth(library: Any, tokens: Tokens) -> Any:
    class AgentAuth(library.AuthBase):  # type: ignore[misc]  # the class is known at run time
        def __call__(self, request: Any) -> Any:
            token = tokens.fresh()
            request.headers.update(tokens.headers(request.method, request.url, token))
            shown = Secret(request.headers[HEADER])

            def answered(response: Any, **options: Any) -> Any:
                sent = response.request
                # Whoever follows a redirect copies the headers of the request before, for whatever origin.
                has_proof = sent.headers.pop(PROOF, None) is not None
                # Where one led to another host, the token was not sent, and is not now.
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
        response.content  # noqa: B018  # reads it to its end, so that the connection can be used again
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
        raise NotImplementedError  # nothing was shown

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
        """As that of `BlockingTokens`, in a task. Each loop has one of its own, for tasks belong to a loop."""
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
