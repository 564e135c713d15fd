"""FastAPI and Starlette applications in front of a real broker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import FastAPI, Security
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agentwrit import AgentClaims, AgentWritError, AsyncVerifier
from agentwrit.integrations.fastapi import RESPONSES, AgentWrit
from agentwrit.integrations.starlette import Guard
from tests.proofs import Holder, p256_key
from tests.reports import AUDIENCE, ResourceServer
from tests.support import BrokerProcess, TestApp, bearer

READ = "read:data:customer-{customer_id}"
Application = FastAPI | Starlette


def fastapi_application(broker_url: str, **options: Any) -> tuple[Application, Guard]:
    auth = AgentWrit(broker_url, **options)
    app = FastAPI(lifespan=auth.lifespan, responses=RESPONSES)

    @app.get("/customers/{customer_id}")
    async def read_customer(
        customer_id: str, request: Request, agent: Annotated[AgentClaims, Security(auth, scopes=[READ])]
    ) -> dict[str, str]:
        assert request.state.agent == agent
        return {"customer": customer_id, "agent": agent.sub}

    @app.put("/orders/{number}")
    async def write_order(
        number: int,
        agent: Annotated[AgentClaims, Security(auth, scopes=["write:data:order-{number}", "read:data:orders"])],
    ) -> dict[str, int]:
        return {"order": number}

    return app, auth


def starlette_application(broker_url: str, **options: Any) -> tuple[Application, Guard]:
    guard = Guard(broker_url, **options)

    @guard.requires(READ)
    async def read_customer(request: Request) -> JSONResponse:
        return JSONResponse({"customer": request.path_params["customer_id"], "agent": request.state.agent.sub})

    @guard.requires("write:data:order-{number}", "read:data:orders")
    async def write_order(request: Request) -> JSONResponse:
        return JSONResponse({"order": request.path_params["number"]})

    routes = [
        Route("/customers/{customer_id}", read_customer),
        Route("/orders/{number:int}", write_order, methods=["PUT"]),
    ]
    return Starlette(routes=routes, lifespan=guard.lifespan), guard


Make = Callable[..., tuple[Application, Guard]]


@pytest.fixture(params=[fastapi_application, starlette_application], ids=["fastapi", "starlette"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@asynccontextmanager
async def serving(made: tuple[Application, Guard]) -> AsyncIterator[httpx2.AsyncClient]:
    app, guard = made
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://service") as http, guard.lifespan(app):
        yield http


def run(made: tuple[Application, Guard], claim: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with serving(made) as http:
            await claim(http)

    asyncio.run(main())


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app("read:data:*", "write:data:*")


def test_whoever_may_is_let_in_and_known(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    agent = app.agent("read:data:customer-7", "write:data:order-3", "read:data:orders")
    headers = bearer(agent["access_token"])

    async def claim(http: httpx2.AsyncClient) -> None:
        answer = await http.get("/customers/7", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"customer": "7", "agent": agent["agent_id"]})
        assert (await http.put("/orders/3", headers=headers)).json() == {"order": 3}

    run(make(broker.url), claim)


def test_whoever_may_not_is_told_what_is_needed(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    headers = bearer(app.agent("read:data:customer-7", "write:data:order-3")["access_token"])

    async def claim(http: httpx2.AsyncClient) -> None:
        answer = await http.get("/customers/8", headers=headers)
        assert answer.status_code == 403
        expected = 'Bearer error="insufficient_scope", scope="read:data:customer-8"'
        assert answer.headers["www-authenticate"] == expected
        answer = await http.put("/orders/3", headers=headers)  # one of two scopes is not enough
        assert answer.status_code == 403
        assert answer.headers["www-authenticate"].endswith('scope="write:data:order-3 read:data:orders"')

    run(make(broker.url), claim)


@pytest.mark.parametrize("value", ["*", "%2A", "7:8", "7%3A8", "%C3%A4", "7%20write:data:1", "7%22", "%00", "7%0a"])
def test_no_value_in_a_path_asks_for_another_scope(make: Make, broker: BrokerProcess, app: TestApp, value: str) -> None:
    headers = bearer(app.agent("read:data:*")["access_token"])

    async def claim(http: httpx2.AsyncClient) -> None:
        answer = await http.get(f"/customers/{value}", headers=headers)
        assert answer.status_code == 403
        assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{READ}"'

    run(make(broker.url), claim)


def test_without_a_token_that_holds_nobody_is_let_in(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    released = app.agent("read:data:*")["access_token"]
    broker.release(released)
    bad = 'Bearer error="invalid_token"'
    either = 'Bearer, DPoP algs="EdDSA Ed25519 ES256"'

    async def claim(http: httpx2.AsyncClient) -> None:
        for headers, challenge in (
            ([], either),
            ([("authorization", f"Bearer {released}")], bad),
            ([("authorization", "Bearer nonsense")], bad),
            ([("authorization", f"Bearer {app.token()}.")], bad),
            ([("authorization", "Bearer ")], either),
            ([("authorization", "Basic eDp5")], either),
        ):
            answer = await http.get("/customers/*", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, challenge)
            assert released not in answer.text
        twice = await http.get("/customers/7", headers=[("authorization", f"Bearer {released}")] * 2)
        assert (twice.status_code, twice.headers["www-authenticate"]) == (400, 'Bearer error="invalid_request"')

    run(make(broker.url), claim)


def test_a_bound_token_is_taken_from_its_holder_alone(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    holder, thief = Holder(app, "read:data:customer-7"), Holder(app, "read:data:customer-7")
    url = "http://service/customers/7"

    async def claim(http: httpx2.AsyncClient) -> None:
        async def ask(*proofs: str, token: str = holder.token, scheme: str = "DPoP") -> tuple[int, str]:
            headers = [("authorization", f"{scheme} {token}"), *(("dpop", proof) for proof in proofs)]
            answer = await http.get("/customers/7?page=2", headers=headers)
            assert token not in answer.text
            return answer.status_code, answer.headers.get("www-authenticate", "")

        token_refused = (401, 'DPoP algs="EdDSA Ed25519 ES256", error="invalid_token"')
        proof_refused = (401, 'DPoP algs="EdDSA Ed25519 ES256", error="invalid_dpop_proof"')
        good = holder.proof("GET", url)
        assert await ask(good) == (200, "")
        assert await ask(good) == proof_refused
        assert await ask(scheme="Bearer") == token_refused
        assert await ask(holder.proof("GET", url), scheme="Bearer") == token_refused
        assert await ask() == proof_refused
        assert await ask(holder.proof("GET", url), holder.proof("GET", url)) == proof_refused
        assert await ask(holder.proof("PUT", url)) == proof_refused
        assert await ask(holder.proof("GET", "http://service/customers/8")) == proof_refused
        assert await ask(thief.proof("GET", url, token=holder.token)) == token_refused
        assert await ask(holder.proof("GET", url), token=thief.token) == proof_refused
        assert await ask(holder.proof("GET", url)) == (200, "")
        unbound = app.agent("read:data:customer-7")["access_token"]
        plain = (401, 'Bearer error="invalid_token"')
        assert await ask(holder.proof("GET", url, token=unbound), token=unbound) == plain
        headers = {"authorization": f"DPoP {holder.token}", "dpop": holder.proof("GET", "http://service/customers/9")}
        beyond = await http.get("/customers/9", headers=headers)
        assert beyond.status_code == 403
        expected = 'DPoP algs="EdDSA Ed25519 ES256", error="insufficient_scope", scope="read:data:customer-9"'
        assert beyond.headers["www-authenticate"] == expected

    run(make(broker.url), claim)


def test_proofs_are_taken_by_every_algorithm_that_the_challenge_names(
    make: Make, broker: BrokerProcess, app: TestApp
) -> None:
    url = "http://service/customers/7"
    holders = [
        Holder(app, "read:data:*"),
        Holder(app, "read:data:*", alg="Ed25519"),
        Holder(app, "read:data:*", key=p256_key()),
    ]

    async def claim(http: httpx2.AsyncClient) -> None:
        assert 'algs="EdDSA Ed25519 ES256"' in (await http.get(url)).headers["www-authenticate"]
        for holder in holders:
            headers = {"authorization": f"DPoP {holder.token}", "dpop": holder.proof("GET", url)}
            assert (await http.get(url, headers=headers)).status_code == 200
            thief = {**headers, "dpop": Holder(app, key=p256_key()).proof("GET", url, token=holder.token)}
            assert (await http.get(url, headers=thief)).status_code == 401

    run(make(broker.url), claim)


def test_behind_a_proxy_proofs_are_for_the_public_url(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    holder = Holder(app, "read:data:customer-7")

    async def claim(http: httpx2.AsyncClient) -> None:
        for url, status in (("https://orders.example/customers/7", 200), ("http://service/customers/7", 401)):
            headers = {"authorization": f"DPoP {holder.token}", "dpop": holder.proof("GET", url)}
            assert (await http.get("/customers/7", headers=headers)).status_code == status

    run(make(broker.url, public_url="https://orders.example/"), claim)


def test_a_token_for_others_is_not_for_this_service(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    headers = bearer(app.agent("read:data:*")["access_token"])

    async def claim(http: httpx2.AsyncClient) -> None:
        assert (await http.get("/customers/7", headers=headers)).status_code == 401

    run(make(broker.url, audience="orders"), claim)


def test_where_it_cannot_be_told_nobody_is_let_in(make: Make) -> None:
    async def claim(http: httpx2.AsyncClient) -> None:
        answer = await http.get("/customers/7", headers=bearer("a.b.c"))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"

    run(make("http://127.0.0.1:9"), claim)


@pytest.mark.alone
def test_a_revoked_token_is_refused_soon(make: Make, broker: BrokerProcess, app: TestApp) -> None:
    agent = app.agent("read:data:*")
    headers = bearer(agent["access_token"])

    async def claim(http: httpx2.AsyncClient) -> None:
        assert (await http.get("/customers/7", headers=headers)).status_code == 200
        broker.revoke("agent", agent["agent_id"])
        async with asyncio.timeout(2):
            while (await http.get("/customers/7", headers=headers)).status_code == 200:
                await asyncio.sleep(0)

    run(make(broker.url), claim)


def test_the_document_says_what_is_needed(broker: BrokerProcess) -> None:
    app, _ = fastapi_application(broker.url)
    assert isinstance(app, FastAPI)
    document = app.openapi()
    scheme = document["components"]["securitySchemes"]["AgentWrit"]
    assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
    operation = document["paths"]["/customers/{customer_id}"]["get"]
    assert operation["security"] == [{"AgentWrit": [READ]}]
    assert {"401", "403", "503"} <= set(operation["responses"])


def test_tests_of_an_application_can_stand_in_for_the_broker() -> None:
    app, auth = fastapi_application("http://127.0.0.1:9")
    assert isinstance(app, FastAPI)
    assert isinstance(auth, AgentWrit)
    someone = AgentClaims("i", "me", ["i"], 0, 0, 0, "j", ["read:data:*"], "t", "o")

    def stand_in(request: Request) -> AgentClaims:
        request.state.agent = someone
        return someone

    app.dependency_overrides[auth] = stand_in

    async def claim(http: httpx2.AsyncClient) -> None:
        assert (await http.get("/customers/7")).json() == {"customer": "7", "agent": "me"}

    run((app, auth), claim)


def test_a_mistake_in_a_template_is_found(broker: BrokerProcess, app: TestApp) -> None:
    guard = Guard(broker.url)
    with pytest.raises(ValueError, match="template"):
        guard.requires("read:data")

    @guard.requires("read:data:{customer}")
    async def endpoint(request: Request) -> JSONResponse:
        return JSONResponse({})

    headers = bearer(app.agent("read:data:*")["access_token"])

    async def claim(http: httpx2.AsyncClient) -> None:
        with pytest.raises(LookupError, match="customer"):
            await http.get("/1", headers=headers)

    run((Starlette(routes=[Route("/{other}", endpoint)]), guard), claim)


def test_a_verifier_of_ones_own_is_left_open(broker: BrokerProcess, app: TestApp) -> None:
    token = app.agent("read:data:*")["access_token"]

    async def main() -> None:
        async with AsyncVerifier(broker.url) as verifier:
            made = Starlette(), Guard(verifier)
            async with serving(made):
                pass
            assert (await verifier.verify(token)).scope == ["read:data:*"]

    asyncio.run(main())


def test_a_guard_reports_each_request_that_it_lets_through(make: Make, broker: BrokerProcess) -> None:
    server = ResourceServer(broker)
    app = broker.app(audiences=[AUDIENCE])
    token = app.agent("read:data:*", "write:data:order-7", audience=[AUDIENCE])["access_token"]
    login = {"client_id": server.app.client_id, "client_secret": server.app.client_secret}

    async def claim(http: httpx2.AsyncClient) -> None:
        for _ in range(3):
            assert (await http.get("/customers/7?name=secret", headers=bearer(token))).status_code == 200
        assert (await http.put("/orders/7", headers=bearer(token))).status_code == 200
        assert (await http.put("/orders/8", headers=bearer(token))).status_code == 403
        assert (await http.get("/customers/7")).status_code == 401

    run(make(broker.url, audience=AUDIENCE, report=True, **login), claim)
    events = broker.events(event_type="resource_accessed", sid=broker.validate(token)["claims"]["sid"])
    found = {event["resource"]: event["data"] for event in events}
    assert {resource: data["count"] for resource, data in found.items()} == {"GET /customers/7": 3, "PUT /orders/7": 1}
    assert found["GET /customers/7"]["scope_used"] == ["read:data:customer-7"]
    assert found["GET /customers/7"]["scope_granted"] == ["read:data:*"]
    assert found["PUT /orders/7"]["scope_used"] == ["write:data:order-7", "read:data:orders"]


def test_a_guard_reports_with_the_verifier_that_it_is_given(broker: BrokerProcess) -> None:
    server = ResourceServer(broker)
    token = broker.app(audiences=[AUDIENCE]).agent("read:data:customer-1", audience=[AUDIENCE])["access_token"]

    async def main() -> None:
        login = {"client_id": server.app.client_id, "client_secret": server.app.client_secret}
        async with AsyncVerifier(broker.url, audience=AUDIENCE, **login) as verifier:  # type: ignore[arg-type]
            made = starlette_application(verifier, report=True)  # type: ignore[arg-type]
            async with serving(made) as http:
                assert (await http.get("/customers/1", headers=bearer(token))).status_code == 200

    asyncio.run(main())
    sid = broker.validate(token)["claims"]["sid"]
    assert len(broker.events(event_type="resource_accessed", sid=sid)) == 1


def test_a_route_without_scopes_is_let_through_and_has_nothing_to_report(broker: BrokerProcess) -> None:
    server = ResourceServer(broker)
    token = broker.app(audiences=[AUDIENCE]).agent("read:data:customer-1", audience=[AUDIENCE])["access_token"]
    login = {"client_id": server.app.client_id, "client_secret": server.app.client_secret}
    app, guard = starlette_application(broker.url, audience=AUDIENCE, report=True, **login)

    @guard.requires()
    async def who(request: Request) -> JSONResponse:
        return JSONResponse(request.state.agent.sub)

    app.router.routes.append(Route("/who", who))

    async def claim(http: httpx2.AsyncClient) -> None:
        assert (await http.get("/who", headers=bearer(token))).status_code == 200

    run((app, guard), claim)
    sid = broker.validate(token)["claims"]["sid"]
    assert broker.events(event_type="resource_accessed", sid=sid) == []


def test_a_guard_that_is_to_report_says_at_once_that_it_cannot(make: Make, broker: BrokerProcess) -> None:
    with pytest.raises(AgentWritError, match="client_id="):
        make(broker.url, report=True)
