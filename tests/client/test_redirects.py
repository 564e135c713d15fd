"""Redirects of services that agents call: each request within the origin has its own proof, nothing goes beyond it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

from agentwrit import Agent, AgentWritApp, InvalidToken, Verifier
from tests.client.peer import Handler, Peer, answer, peer
from tests.support import BrokerProcess

SCOPE = ["read:data:1"]
Ask = Callable[..., tuple[int, bytes]]


def by_client(library: Any, name: Any) -> Ask:
    def ask(agent: Agent, method: str, url: str, content: bytes | None = None) -> tuple[int, bytes]:
        with library.Client(auth=agent.auth_for(name), follow_redirects=True, trust_env=False) as client:
            response = client.request(method, url, content=content)
            return response.status_code, response.content

    return ask


def by_async_client(library: Any, name: Any) -> Ask:
    def ask(agent: Agent, method: str, url: str, content: bytes | None = None) -> tuple[int, bytes]:
        async def run() -> tuple[int, bytes]:
            auth = agent.auth_for(name)
            async with library.AsyncClient(auth=auth, follow_redirects=True, trust_env=False) as client:
                response = await client.request(method, url, content=content)
                return response.status_code, response.content

        return asyncio.run(run())

    return ask


def by_requests(agent: Agent, method: str, url: str, content: bytes | None = None) -> tuple[int, bytes]:
    with requests.Session() as session:
        response = session.request(method, url, auth=agent.auth_for("requests"), data=content, timeout=10)
        return response.status_code, response.content


def by_aiohttp(agent: Agent, method: str, url: str, content: bytes | None = None) -> tuple[int, bytes]:
    async def run() -> tuple[int, bytes]:
        async with (
            aiohttp.ClientSession(middlewares=[agent.auth_for("aiohttp")]) as session,
            session.request(method, url, data=content) as response,
        ):
            return response.status, await response.read()

    return asyncio.run(run())


LIBRARIES: dict[str, Ask] = {
    "httpx2": by_client(httpx2, "httpx2"),
    "httpx": by_client(httpx, "httpx"),
    "requests": by_requests,
    "async httpx2": by_async_client(httpx2, "httpx2"),
    "async httpx": by_async_client(httpx, "httpx"),
    "aiohttp": by_aiohttp,
}


TOO_MANY = (httpx2.TooManyRedirects, httpx.TooManyRedirects, requests.TooManyRedirects, aiohttp.TooManyRedirects)


@pytest.fixture(params=LIBRARIES.values(), ids=list(LIBRARIES))
def ask(request: pytest.FixtureRequest) -> Ask:
    made: Ask = request.param
    return made


@pytest.fixture(scope="module")
def sdk(broker: BrokerProcess) -> Iterator[AgentWritApp]:
    app = broker.app()
    with AgentWritApp(broker.url, app.client_id, app.client_secret) as made:
        yield made


@pytest.fixture(scope="module")
def verifier(broker: BrokerProcess) -> Iterator[Verifier]:
    with Verifier(broker.url) as made:
        yield made


@pytest.fixture(params=[True, False], ids=["bound", "unbound"])
def agent(request: pytest.FixtureRequest, sdk: AgentWritApp) -> Agent:
    return sdk.create_agent("o", "t", SCOPE, bound=request.param)


class Service:
    """A service that redirects some paths, and guards the others. `guarded`: what it guards before it redirects."""

    def __init__(self, verifier: Verifier, redirects: dict[str, tuple[int, str]], *guarded: str) -> None:
        self.verifier = verifier
        self.redirects = redirects
        self.guarded = guarded
        self.accepted: list[tuple[str, str]] = []

    def __call__(self, handler: Handler) -> None:
        path = handler.path
        if path in self.redirects and path not in self.guarded:
            self.redirect(handler)
        elif not self.is_shown(handler):
            answer(401, b"")(handler)
        elif path in self.redirects:
            self.redirect(handler)
        else:
            answer(200, b"welcome")(handler)

    def redirect(self, handler: Handler) -> None:
        status, location = self.redirects[handler.path]
        answer(status, b"", location=location)(handler)

    def is_shown(self, handler: Handler) -> bool:
        scheme, _, token = handler.headers.get("authorization", "").partition(" ")
        proof = handler.headers.get("dpop") if scheme == "DPoP" else None
        url = f"{handler.server.url}{handler.path}"
        try:
            self.verifier.verify(token, scope=SCOPE, proof=proof, htm=handler.command, htu=url)
        except InvalidToken:
            return False
        self.accepted.append((handler.command, handler.path))
        return True


def headers_of(seen: Peer) -> list[set[str]]:
    return [{name.lower() for name in headers} for _, _, headers in seen.seen]


def test_a_redirect_within_the_service(ask: Ask, agent: Agent, verifier: Verifier) -> None:
    service = Service(verifier, {"/orders": (307, "/orders/"), "/a": (308, "/b"), "/b": (302, "/c?d=e")})
    with peer(service) as at:
        assert ask(agent, "GET", f"{at.url}/orders") == (200, b"welcome")
        assert ask(agent, "GET", f"{at.url}/a") == (200, b"welcome")
    assert service.accepted[-1] == ("GET", "/c?d=e")


def test_a_redirect_that_keeps_the_body(ask: Ask, agent: Agent, verifier: Verifier) -> None:
    service = Service(verifier, {"/orders": (307, "/orders/")})
    with peer(service) as at:
        assert ask(agent, "POST", f"{at.url}/orders", b'{"the":"order"}') == (200, b"welcome")
        assert {str(body) for _, body, _ in at.seen} == {"{'the': 'order'}"}
    assert service.accepted == [("POST", "/orders/")]


def test_what_was_done_before_a_redirect_is_done_once(ask: Ask, agent: Agent, verifier: Verifier) -> None:
    service = Service(verifier, {"/orders": (303, "/orders/7")}, "/orders")
    with peer(service) as at:
        assert ask(agent, "POST", f"{at.url}/orders", b"{}") == (200, b"welcome")
    assert service.accepted == [("POST", "/orders"), ("GET", "/orders/7")]


def test_a_token_that_is_replaced_between_two_redirects(ask: Ask, agent: Agent, verifier: Verifier) -> None:
    class Late(Service):
        def redirect(self, handler: Handler) -> None:
            agent.renew()
            super().redirect(handler)

        def is_shown(self, handler: Handler) -> bool:
            token = handler.headers.get("authorization", "").partition(" ")[2]
            return token == agent.access_token and super().is_shown(handler)  # as the verifier will see it soon

    service = Late(verifier, {"/orders": (303, "/orders/7")}, "/orders")
    with peer(service) as at:
        assert ask(agent, "POST", f"{at.url}/orders", b"{}") == (200, b"welcome")
    assert service.accepted == [("POST", "/orders"), ("GET", "/orders/7")]


@contextmanager
def two_origins(verifier: Verifier, status: int, host: str, *guarded: str) -> Iterator[tuple[Peer, Peer]]:
    """A service that redirects to another origin, which answers `status`."""
    with ExitStack() as stack:
        other = stack.enter_context(peer(answer(status, b"")))
        there = other.url.replace("127.0.0.1", host) + "/x"
        service = Service(verifier, {"/away": (307, there), "/in": (307, "/away")}, *guarded)
        yield stack.enter_context(peer(service)), other


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 401), ("localhost", 200)])
def test_nothing_goes_along_to_another_origin(
    ask: Ask, agent: Agent, verifier: Verifier, host: str, status: int
) -> None:
    with two_origins(verifier, status, host) as (at, other):
        assert ask(agent, "GET", f"{at.url}/away")[0] == status
        assert ask(agent, "GET", f"{at.url}/in")[0] == status
        assert len(other.seen) == 2
        assert all(not names & {"authorization", "dpop"} for names in headers_of(other))
        assert [path for path, _, _ in at.seen] == ["/away", "/in", "/away"]


def test_nothing_goes_along_from_where_the_token_was_taken(ask: Ask, agent: Agent, verifier: Verifier) -> None:
    with two_origins(verifier, 401, "127.0.0.1", "/away") as (at, other):
        assert ask(agent, "POST", f"{at.url}/in", b"{}")[0] == 401
        assert all(not names & {"authorization", "dpop"} for names in headers_of(other))
        assert other.seen


def test_redirects_without_end_come_to_one(ask: Ask, agent: Agent, verifier: Verifier) -> None:
    for guarded in ((), ("/round",)):
        service = Service(verifier, {"/round": (307, "/round")}, *guarded)
        with peer(service) as at, suppress(*TOO_MANY):
            assert ask(agent, "GET", f"{at.url}/round")[0] == 401
        assert len(at.seen) < 100


@pytest.mark.parametrize("library", [httpx2, httpx], ids=["httpx2", "httpx"])
def test_an_applications_own_trace_is_called_as_before(library: Any, sdk: AgentWritApp, verifier: Verifier) -> None:
    agent, name = sdk.create_agent("o", "t", SCOPE, bound=True), library.__name__
    events: list[str] = []

    async def note_later(event: str, info: Any) -> None:
        events.append(event)

    async def run(url: str) -> int:
        async with library.AsyncClient(auth=agent.auth_for(name), follow_redirects=True) as client:
            return int((await client.get(url, extensions={"trace": note_later})).status_code)

    with peer(Service(verifier, {"/orders": (307, "/orders/")})) as at:
        with library.Client(auth=agent.auth_for(name), follow_redirects=True) as client:
            extensions = {"trace": lambda event, info: events.append(event)}
            assert client.get(f"{at.url}/orders", extensions=extensions).status_code == 200
        assert asyncio.run(run(f"{at.url}/orders")) == 200
        sent = [event for event in events if event.endswith("send_request_headers.complete")]
        assert len(sent) == len(at.seen) == 6  # each twice: the redirect, what it led to, and that with its proof


def test_redirects_that_the_application_follows_itself(sdk: AgentWritApp, verifier: Verifier) -> None:
    agent = sdk.create_agent("o", "t", SCOPE, bound=True)
    libraries: list[tuple[Any, Any]] = [(httpx2, "httpx2"), (httpx, "httpx")]
    with peer(Service(verifier, {"/orders": (307, "/orders/")})) as at:
        for library, name in libraries:
            with library.Client(auth=agent.auth_for(name)) as client:
                response = client.get(f"{at.url}/orders")
                assert "dpop" not in response.next_request.headers
                assert client.send(response.next_request).status_code == 200
        with requests.Session() as session:
            answered = session.get(f"{at.url}/orders", auth=agent.auth_for("requests"), allow_redirects=False)
            assert answered.next is not None
            assert "dpop" not in answered.next.headers
            assert session.send(answered.next).status_code == 200
