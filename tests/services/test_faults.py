"""What use cases do when the store fails under them: nothing is half done, and nobody is told that it was done."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx2
from nacl.signing import SigningKey

from agentwrit.broker.bootstrap import open_on
from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.services.housekeeping import Housekeeping
from agentwrit.broker.services.operators import set_secret
from agentwrit.broker.storage.base import EventQuery, Transaction
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.domain import audit
from agentwrit.domain.errors import Unavailable
from tests.in_process import InProcess
from tests.support import ADMIN_SECRET, bearer, problem


class Time:
    """A wall clock that tests move."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Setup:
    """A broker over a store in memory, asked in process, with faults and time in the test's hand."""

    def __init__(self) -> None:
        self.time = Time()
        self.failing: set[str] = set()
        self.at: dict[str, Callable[[], Exception | None]] = {}
        """What happens at these points, and what comes up there, if anything."""
        self.meanwhile: Callable[[Transaction], object] | None = None
        """What somebody else commits before the next unit of work, once."""
        self.clock = Clock(self.time, self.time)
        self.store = MemoryStore(self.clock, fault=self._fault)
        self.http: httpx2.AsyncClient
        self.housekeeping: Housekeeping

    def _fault(self, point: str) -> None:
        if point in self.failing:
            raise Unavailable("the disk is full")
        if point in self.at and (error := self.at[point]()) is not None:
            raise error
        unit = self.meanwhile
        if point == "begin" and unit is not None:
            self.meanwhile = None
            with suppress(StopIteration):
                self.store.write(unit).send(None)

    async def admin(self) -> dict[str, str]:
        answer = await self.http.post("/v1/admin/auth", json={"secret": ADMIN_SECRET})
        return bearer(answer.json()["access_token"])

    async def app(self, name: str = "tester") -> dict[str, Any]:
        body = {"name": name, "scopes": ["read:data:*"]}
        return dict((await self.http.post("/v1/admin/apps", json=body, headers=await self.admin())).json())

    async def login(self, app: dict[str, Any]) -> httpx2.Response:
        body = {"client_id": app["client_id"], "client_secret": app["client_secret"]}
        return await self.http.post("/v1/app/auth", json=body)

    async def launch_token(self, app: dict[str, Any], **policy: Any) -> str:
        token = (await self.login(app)).json()["access_token"]
        body = {"agent_name": "a", "allowed_scope": ["read:data:1"], **policy}
        answer = await self.http.post("/v1/app/launch-tokens", json=body, headers=bearer(token))
        return str(answer.json()["launch_token"])

    async def registration(self, launch_token: str) -> dict[str, Any]:
        key = SigningKey.generate()
        nonce = (await self.http.get("/v1/challenge")).json()["nonce"]
        return {
            "launch_token": launch_token,
            "nonce": nonce,
            "public_key": base64.b64encode(bytes(key.verify_key)).decode(),
            "signature": base64.b64encode(key.sign(bytes.fromhex(nonce)).signature).decode(),
            "orch_id": "o",
            "task_id": "t",
            "requested_scope": ["read:data:1"],
        }

    async def agent(self, **policy: Any) -> str:
        launch_token = await self.launch_token(await self.app(f"app-{len(self.events())}"), **policy)
        answer = await self.http.post("/v1/register", json=await self.registration(launch_token))
        return str(answer.json()["access_token"])

    async def is_valid(self, token: str) -> bool:
        return bool((await self.http.post("/v1/token/validate", json={"token": token})).json()["valid"])

    def events(self) -> list[audit.Event]:
        found: list[audit.Event] = []
        reading = self.store.read(lambda snapshot: found.extend(snapshot.events(EventQuery(limit=10_000))))
        with suppress(StopIteration):
            reading.send(None)
        return found


CONFIG = Config(max_lifetime=1000)


@asynccontextmanager
async def setup(config: Config) -> AsyncIterator[Setup]:
    made = Setup()
    await set_secret(made.store, ADMIN_SECRET)
    key = MasterKey.parse("00" * 32)
    async with open_on(
        made.store, made.clock, config, key, is_draining=lambda: False, is_stopping=lambda: False
    ) as broker:
        made.housekeeping = broker.housekeeping
        transport = InProcess(broker.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://broker") as made.http:
            yield made
        made.failing.clear()
        made.at.clear()


def run(test: Callable[[Setup], Awaitable[None]], config: Config = CONFIG) -> None:
    async def main() -> None:
        async with setup(config) as made:
            await test(made)

    asyncio.run(main())


def test_a_revocation_by_an_app_that_cannot_be_made_durable_is_refused_and_the_token_lives_on() -> None:
    async def claim(made: Setup) -> None:
        app = await made.app()
        launch_token = await made.launch_token(app)
        registered = await made.http.post("/v1/register", json=await made.registration(launch_token))
        token = registered.json()["access_token"]
        form = {"token": token, "client_id": app["client_id"], "client_secret": app["client_secret"]}
        before = made.events()
        made.failing = {"commit"}
        refused = await made.http.post("/oauth2/revoke", data=form)
        assert (refused.status_code, refused.json()["error"]) == (503, "temporarily_unavailable")
        assert refused.headers["retry-after"]
        made.failing = set()
        assert await made.is_valid(token)
        assert made.events() == before
        assert (await made.http.post("/oauth2/revoke", data=form)).status_code == 200
        assert not await made.is_valid(token)

    run(claim)


def test_a_release_that_cannot_be_made_durable_is_refused_and_the_token_lives_on() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent()
        before = made.events()
        made.failing = {"commit"}
        answer = await made.http.post("/v1/token/release", headers=bearer(token))
        problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        made.failing = set()
        assert await made.is_valid(token)
        assert made.events() == before
        assert (await made.http.post("/v1/token/release", headers=bearer(token))).status_code == 204

    run(claim)


def test_a_renewal_that_fails_can_be_tried_again_with_the_same_token() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent()
        made.failing = {"commit"}
        problem(await made.http.post("/v1/token/renew", headers=bearer(token)), 503, "unavailable")
        made.failing = set()
        assert await made.is_valid(token)
        assert (await made.http.post("/v1/token/renew", headers=bearer(token))).status_code == 200

    run(claim)


def test_a_registration_that_fails_spends_neither_launch_token_nor_nonce() -> None:
    async def claim(made: Setup) -> None:
        body = await made.registration(await made.launch_token(await made.app()))
        for point in ("begin", "commit"):
            made.failing = {point}
            problem(await made.http.post("/v1/register", json=body), 503, "unavailable")
        made.failing = set()
        assert (await made.http.post("/v1/register", json=body)).status_code == 200

    run(claim)


def test_a_denial_that_cannot_be_recorded_is_503_and_the_next_one_is_recorded() -> None:
    async def claim(made: Setup) -> None:
        made.failing = {"commit"}
        answer = await made.http.get("/v1/admin/apps", headers=bearer("nonsense"))
        problem(answer, 503, "unavailable")
        made.failing = set()
        problem(await made.http.get("/v1/admin/apps", headers=bearer("nonsense")), 401, "unauthorized")
        assert [event.event_type for event in made.events()].count("token_auth_failed") == 1

    run(claim)


def test_validation_goes_on_without_a_writable_store() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent()
        made.failing = {"begin", "commit", "read"}
        assert await made.is_valid(token)
        health = await made.http.get("/v1/health")
        assert (health.status_code, health.json()["status"], health.json()["db_connected"]) == (503, "degraded", False)
        problem(await made.http.get("/readyz"), 503, "unavailable")
        assert (await made.http.get("/livez")).status_code == 200

    run(claim)


def test_where_it_cannot_be_known_whether_a_token_was_revoked_the_answer_is_503_and_never_valid() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent()
        made.failing = {"catch_up"}
        problem(await made.http.post("/v1/token/validate", json={"token": token}), 503, "unavailable")
        problem(await made.http.post("/v1/token/renew", headers=bearer(token)), 503, "unavailable")
        made.failing = set()
        assert await made.is_valid(token)

    run(claim)


def test_a_token_is_valid_to_the_second_before_its_exp_and_not_at_it() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=10)
        made.time.now += 9.999
        assert await made.is_valid(token)
        made.time.now += 0.001
        assert not await made.is_valid(token)
        problem(await made.http.post("/v1/token/release", headers=bearer(token)), 401, "unauthorized")

    run(claim)


def test_a_clock_set_back_revives_nothing() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=10)
        made.time.now += 11
        assert not await made.is_valid(token)
        made.time.now -= 3600
        assert not await made.is_valid(token)

    run(claim)


def test_a_predecessor_presented_after_the_retry_window_ends_the_grant() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=300)
        successor = (await made.http.post("/v1/token/renew", headers=bearer(token))).json()["access_token"]
        made.time.now += 30
        again = await made.http.post("/v1/token/renew", headers=bearer(token))
        assert again.json()["access_token"] == successor
        made.time.now += 1
        problem(await made.http.post("/v1/token/renew", headers=bearer(token)), 401, "unauthorized")
        assert not await made.is_valid(successor)
        assert made.events()[-1].data["reason"] == "renewal_reuse"

    run(claim)


def test_a_predecessor_past_its_own_exp_is_merely_expired() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=60)
        made.time.now += 40
        successor = (await made.http.post("/v1/token/renew", headers=bearer(token))).json()["access_token"]
        made.time.now += 21
        problem(await made.http.post("/v1/token/renew", headers=bearer(token)), 401, "unauthorized")
        assert await made.is_valid(successor)

    run(claim)


def test_no_token_is_issued_in_the_grants_last_second() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=600)
        made.time.now += 500
        token = (await made.http.post("/v1/token/renew", headers=bearer(token))).json()["access_token"]
        made.time.now += 499
        renewed = await made.http.post("/v1/token/renew", headers=bearer(token))
        assert (renewed.status_code, renewed.json()["expires_in"]) == (200, 1)
        made.time.now += 1
        problem(await made.http.post("/v1/token/renew", headers=bearer(token)), 401, "unauthorized")

    run(claim)


def test_tokens_issued_on_an_old_secret_die_with_its_overlap() -> None:
    async def claim(made: Setup) -> None:
        app = await made.app()
        before = (await made.login(app)).json()["access_token"]
        path = f"/v1/admin/apps/{app['app_id']}/secret"
        await made.http.post(path, json={"overlap": 60}, headers=await made.admin())
        during = (await made.login(app)).json()
        assert during["expires_in"] == 60
        made.time.now += 59
        assert await made.is_valid(before)
        assert await made.is_valid(during["access_token"])
        made.time.now += 1
        assert not await made.is_valid(before)
        assert not await made.is_valid(during["access_token"])
        problem(await made.login(app), 401, "unauthorized")

    run(claim)


def test_a_nonce_and_a_launch_token_end_with_their_time() -> None:
    async def claim(made: Setup) -> None:
        app = await made.app()
        body = await made.registration(await made.launch_token(app, ttl=3600))
        made.time.now += 30
        problem(await made.http.post("/v1/register", json=body), 401, "unauthorized")
        body = await made.registration(await made.launch_token(app, ttl=5))
        made.time.now += 5
        problem(await made.http.post("/v1/register", json=body), 401, "unauthorized")

    run(claim)


def test_the_whole_log_verifies() -> None:
    async def claim(made: Setup) -> None:
        await made.http.post("/v1/token/release", headers=bearer(await made.agent()))
        assert audit.verify(made.events()) == len(made.events()) > 8

    run(claim)
