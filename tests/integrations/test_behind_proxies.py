"""Guards whose broker is behind real proxies, on a database: whatever part is killed, they answer 503, and soon."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from agentwrit import AgentWritApp, TransportError, Verifier, validate
from tests.cluster.support import member
from tests.integrations.test_out_of_reach import (
    JSON,
    LIMIT,
    RESOURCE,
    SCOPE,
    SERVICES,
    SLACK,
    ask,
    serving,
    until,
)
from tests.postgres import PostgresServer
from tests.proxies import NAMES, proxy
from tests.support import SOAK, BrokerProcess

STALENESS = 2.0
PATIENCE = 60.0  # for anything that is waited for
KINDS = {
    "mcp": ("initialize", "tools/list", "tools/call", "GET"),
    "fastmcp": ("initialize", "tools/list", "tools/call"),
}


@dataclass
class Scene:
    """A broker on a database of its own, behind each proxy that there is here."""

    server: PostgresServer
    broker: BrokerProcess
    headers: dict[str, str]
    urls: dict[str, str]
    proxies: ExitStack

    @property
    def token(self) -> str:
        return self.headers["Authorization"].split()[1]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with closing(PostgresServer()) as server, member(server.url, tmp_path / "data") as broker, ExitStack() as proxies:
        registered = broker.app(audiences=[RESOURCE])
        with AgentWritApp(broker.url, registered.client_id, registered.client_secret) as app:
            agent = app.create_agent("o", "t", SCOPE, audience=RESOURCE, max_ttl=3600)
        urls = {}
        for name in NAMES if SOAK > 1 else NAMES[:2]:  # what each of them says, `test_out_of_reach` has
            directory = tmp_path / name
            directory.mkdir()
            directory.chmod(0o755)
            urls[name] = proxies.enter_context(proxy(name, broker.url, directory))
        yield Scene(server, broker, {**JSON, **agent.bearer_header}, urls, proxies)


Guards = dict[tuple[str, str], httpx2.AsyncClient]


@contextlib.asynccontextmanager
async def guards(scene: Scene) -> AsyncIterator[Guards]:
    """A service of each kind behind each proxy, by both names, with guards that know nothing yet."""
    async with AsyncExitStack() as opened:
        made: Guards = {}
        for proxy_name, url in scene.urls.items():
            for service, (make, _) in SERVICES.items():
                http = await opened.enter_async_context(serving(make(url, max_staleness=STALENESS)))
                made[proxy_name, service] = http
        yield made


def requests(service: str) -> dict[str, Any]:
    known = SERVICES[service][1]
    return {kind: known[kind] for kind in KINDS.get(service, ("GET",))}


async def all_answer(made: Guards, headers: dict[str, str], status: int) -> bool:
    async def one(service: str, http: httpx2.AsyncClient) -> bool:
        request = requests(service).get("tools/call", SERVICES[service][1]["GET"])
        return (await ask(http, request, headers)).status_code == status

    return all(await asyncio.gather(*(one(service, http) for (_, service), http in made.items())))


async def wrong(made: Guards, headers: dict[str, str], what: str) -> list[object]:
    """The answers that are not 503 within the limit: there should be none."""

    async def one(place: tuple[str, str], http: httpx2.AsyncClient) -> list[object]:
        found: list[object] = []
        for kind, request in requests(place[1]).items():
            began = time.monotonic()
            answer = await ask(http, request, headers)
            seconds = time.monotonic() - began
            is_right = answer.status_code == 503 and int(answer.headers.get("retry-after", 0)) >= 1
            if not is_right or seconds > LIMIT + SLACK:
                found.append((what, place, kind, answer.status_code, round(seconds, 2)))
        return found

    return [each for found in await asyncio.gather(*(one(*pair) for pair in made.items())) for each in found]


def check_blocking(scene: Scene, what: str) -> None:
    """The same for who calls without an event loop."""
    for name, url in scene.urls.items():
        verifier = Verifier(url, audience=RESOURCE)
        for call in (lambda v=verifier: v.verify(scene.token), lambda u=url: validate(u, scene.token, timeout=LIMIT)):
            began = time.monotonic()
            with pytest.raises(TransportError):
                call()
            assert time.monotonic() - began < LIMIT + SLACK, (what, name)


@pytest.mark.alone
def test_whatever_is_killed_behind_whichever_proxy_guards_answer_503(scene: Scene) -> None:
    found: list[object] = []  # told at the end: what leaves the services of others is a group of groups

    async def while_away(what: str, before: Guards) -> None:
        async def are_stale() -> bool:
            return await all_answer(before, scene.headers, 503)

        await until(are_stale, PATIENCE)  # what they know is relied on for a moment
        found.extend(await wrong(before, scene.headers, what))
        async with guards(scene) as made:  # with guards that know nothing yet
            found.extend(await wrong(made, scene.headers, what))
        await asyncio.to_thread(check_blocking, scene, what)

    async def main() -> None:
        async with guards(scene) as before:

            async def are_well() -> bool:
                return await all_answer(before, scene.headers, 200)

            await until(are_well, PATIENCE)
            kills: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {
                "the database": (lambda: scene.server.stop("immediate"), scene.server.start),
                "the broker": (scene.broker.kill, None),
                "the proxies": (scene.proxies.close, None),
            }
            for what, (kill, mend) in kills.items():
                await asyncio.to_thread(kill)
                await while_away(what, before)
                if mend is not None:
                    await asyncio.to_thread(mend)
                    await until(are_well, PATIENCE)

    asyncio.run(main())
    assert not found
