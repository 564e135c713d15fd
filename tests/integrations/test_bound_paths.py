"""Bound tokens at services whose paths hold all that paths can hold, shown by every HTTP library."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Annotated, Any

import aiohttp
import httpx
import httpx2
import pytest
import requests
from fastapi import FastAPI, Security
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from agentwrit import Agent, AgentClaims, AgentWritApp
from agentwrit.integrations.fastapi import AgentWrit
from agentwrit.integrations.starlette import Guard
from tests.integrations.servers import serving
from tests.support import BrokerProcess

PATHS = [
    "/c/Meier",
    "/c/Müller",
    "/c/M%C3%BCller",
    "/c/m%c3%bcller",
    "/c/Ann Lee",
    "/c/Ann%20Lee",
    "/c/a%2Fb",
    "/c/a%2fb",
    "/c/x~y",
    "/c/x%7Ey",
    "/c/%61bc",
    "/c/a'b(c)!*",
    "/c/a%27b",
    "/c/a:b@c;d=e,f&g$h+i",
    "/c/a%3Fb%23c%25d",
    "/c/[1]",
    "/c/a|b^c`d{e}",
    '/c/a"b<c>',
    "/c/日本/%E6%97%A5",
    "/c/a/../b",
    "/c//a///",
    "/c/a?q=/%2F&r=ä#top",
    "/c/100%25",
]


def routes(guard: Guard) -> list[Route]:
    @guard.requires("read:data:1")
    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["name"])

    return [Route("/c/{name:path}", read)]


def fastapi_application(broker_url: str, **options: Any) -> FastAPI:
    guard = AgentWrit(broker_url, **options)
    app = FastAPI(lifespan=guard.lifespan)

    @app.get("/c/{name:path}")
    async def read(name: str, agent: Annotated[AgentClaims, Security(guard, scopes=["read:data:1"])]) -> str:
        return name

    return app


def starlette_application(broker_url: str, **options: Any) -> Starlette:
    guard = Guard(broker_url, **options)
    return Starlette(routes=routes(guard), lifespan=guard.lifespan)


@pytest.fixture
def agent(broker: BrokerProcess) -> Iterator[Agent]:
    app = broker.app()
    with AgentWritApp(broker.url, app.client_id, app.client_secret) as sdk:
        yield sdk.create_agent("o", "t", ["read:data:1"], bound=True)


def statuses(agent: Agent, urls: list[str]) -> dict[tuple[str, str], int]:
    """What each library gets for each URL."""
    got: dict[tuple[str, str], int] = {}
    clients: list[tuple[str, Any]] = [
        ("httpx2", httpx2.Client(auth=agent.auth, trust_env=False)),
        ("httpx", httpx.Client(auth=agent.auth_for("httpx"), trust_env=False)),
        ("requests", requests.Session()),
    ]
    clients[2][1].auth = agent.auth_for("requests")
    for name, client in clients:
        with client:
            got |= {(name, url): client.get(url).status_code for url in urls}

    async def with_aiohttp() -> None:
        async with aiohttp.ClientSession(middlewares=[agent.auth_for("aiohttp")]) as session:
            for url in urls:
                async with session.get(url) as response:
                    got["aiohttp", url] = response.status

    asyncio.run(with_aiohttp())
    with httpx2.Client(trust_env=False) as by_hand:
        got |= {("by hand", url): by_hand.get(url, headers=agent.headers("GET", url)).status_code for url in urls}
    return got


@pytest.fixture(params=[fastapi_application, starlette_application], ids=["fastapi", "starlette"])
def make(request: pytest.FixtureRequest, broker: BrokerProcess) -> Callable[..., Any]:
    return partial(request.param, broker.url)


@pytest.mark.parametrize("is_named", [False, True], ids=["by address", "by name"])
def test_a_bound_token_holds_whatever_the_path(make: Callable[..., Any], is_named: bool, agent: Agent) -> None:
    with serving(lambda url: make(public_url=url if is_named else None)) as url:
        got = statuses(agent, [url + path for path in PATHS])
    assert {key: status for key, status in got.items() if status != 200} == {}


def test_paths_that_only_look_alike_are_not_the_same(make: Callable[..., Any], agent: Agent) -> None:
    pairs = [
        ("/c/a%2Fb", "/c/a/b"),
        ("/c/a%27b", "/c/a'b"),
        ("/c/a%20b", "/c/a+b"),
        ("/c/a", "/c/a/"),
        ("/c/a", "/c/A"),
    ]
    with serving(lambda url: make()) as url, httpx2.Client(trust_env=False) as http:
        for one, other in [*pairs, *((other, one) for one, other in pairs)]:
            assert http.get(url + one, headers=agent.headers("GET", url + other)).status_code == 401, (one, other)


PUBLIC = "https://orders.example"


@pytest.mark.parametrize("public_url", [PUBLIC, f"{PUBLIC}/api", f"{PUBLIC}/api/"])
@pytest.mark.parametrize("said_by", ["server", "application"])
def test_behind_a_proxy_that_takes_a_part_of_the_path_away(
    make: Callable[..., Any], public_url: str, said_by: str, agent: Agent
) -> None:
    def application(url: str) -> Any:
        made = make(public_url=public_url)
        return rooted(made, "/api") if said_by == "application" else made

    options = {"root_path": "/api"} if said_by == "server" else {}
    with serving(application, **options) as url, httpx2.Client(trust_env=False) as http:
        for path in ("/c/M%C3%BCller", "/c/a%2Fb"):
            for asked, status in (("/api", 200), ("", 401), ("/api/api", 401)):
                shown = agent.headers("GET", f"{PUBLIC}{asked}{path}")
                assert http.get(url + path, headers=shown).status_code == status, (asked, path)


def rooted(app: Any, root: str) -> Any:
    """An application that is told where it stands, as by FastAPI(root_path=…)."""

    async def told(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": root} if scope["type"] == "http" else scope, receive, send)

    return told


def test_in_an_application_that_is_mounted_in_another(make: Callable[..., Any], agent: Agent) -> None:
    def application(url: str) -> Any:
        return Starlette(routes=[Mount("/inner", Starlette(routes=[Mount("/most", make())]))])

    with serving(application) as url, httpx2.Client(trust_env=False) as http:
        for path in ("/inner/most/c/M%C3%BCller", "/inner/most/c/a%2Fb"):
            assert http.get(url + path, headers=agent.headers("GET", url + path)).status_code == 200
            inner = agent.headers("GET", url + path.removeprefix("/inner/most"))
            assert http.get(url + path, headers=inner).status_code == 401


def test_a_server_that_does_not_say_how_a_path_was_written(make: Callable[..., Any], agent: Agent) -> None:
    def without_raw_path(app: Any) -> Any:
        async def told(scope: Any, receive: Any, send: Any) -> None:
            await app({name: value for name, value in scope.items() if name != "raw_path"}, receive, send)

        return told

    with serving(lambda _: without_raw_path(make())) as url, httpx2.Client(trust_env=False) as http:
        for path in ("/c/Meier", "/c/Müller", "/c/Ann%20Lee", "/c/x%7Ey", "/c/100%25", "/c/%2541", "/c/a'b:c@d"):
            assert http.get(url + path, headers=agent.headers("GET", url + path)).status_code == 200, path
        assert http.get(f"{url}/c/a%2Fb", headers=agent.headers("GET", f"{url}/c/a%2Fb")).status_code == 401
