"""The revocation feed behind a real nginx that compresses whatever it passes on: verifiers stay fresh."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentwrit import AgentWritApp, AsyncVerifier, InvalidToken, Verifier
from tests.proxies import NAMES, proxy
from tests.support import BrokerProcess

GZIP = "gzip on; gzip_min_length 0; gzip_types *; gzip_proxied any;"
FORCED = f"{GZIP} proxy_set_header Accept-Encoding gzip;"  # whatever a client asks for
STALENESS = 2.0
CHECKED_FOR = 3 * STALENESS
SCOPE = ["read:data:1"]

pytestmark = [pytest.mark.skipif("nginx" not in NAMES, reason="nginx is for Linux")]


@pytest.fixture(scope="module", params=[GZIP, FORCED], ids=["gzip", "forced"])
def url(
    request: pytest.FixtureRequest, broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("nginx")
    directory.chmod(0o755)
    with proxy("nginx", broker.url, directory, more=request.param) as served:
        yield served


@pytest.fixture(scope="module")
def app(broker: BrokerProcess) -> Iterator[AgentWritApp]:
    registered = broker.app()
    with AgentWritApp(broker.url, registered.client_id, registered.client_secret) as made:
        yield made


def test_a_verifier_stays_fresh_and_hears_of_an_end(url: str, app: AgentWritApp) -> None:
    agent = app.create_agent("o", "t", SCOPE)
    with Verifier(url, on_stale="refuse", max_staleness=STALENESS, timeout=10) as verifier:
        deadline = time.monotonic() + CHECKED_FOR
        while time.monotonic() < deadline:
            verifier.verify(agent.access_token, scope=SCOPE)
            time.sleep(0.05)
        agent.release()

        def until_it_is_known() -> None:
            deadline = time.monotonic() + CHECKED_FOR
            while time.monotonic() < deadline:
                verifier.verify(agent.access_token)
                time.sleep(0.01)

        with pytest.raises(InvalidToken):
            until_it_is_known()


def test_so_does_one_on_an_event_loop(url: str, app: AgentWritApp) -> None:
    agent = app.create_agent("o", "t", SCOPE)

    async def main() -> None:
        async with AsyncVerifier(url, on_stale="refuse", max_staleness=STALENESS, timeout=10) as verifier:
            deadline = time.monotonic() + CHECKED_FOR
            while time.monotonic() < deadline:
                await verifier.verify(agent.access_token, scope=SCOPE)
                await asyncio.sleep(0.05)
            agent.release()

            async def until_it_is_known() -> None:
                deadline = time.monotonic() + CHECKED_FOR
                while time.monotonic() < deadline:
                    await verifier.verify(agent.access_token)
                    await asyncio.sleep(0.01)

            with pytest.raises(InvalidToken):
                await until_it_is_known()

    asyncio.run(main())
