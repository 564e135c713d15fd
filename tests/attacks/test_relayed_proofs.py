"""Attempts of a service to use, elsewhere, the token and the proof that a bound agent showed to it.

A proof is for one URL, so it is of use only where somebody can be made to believe that this URL is theirs.
"""

import http.client
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import FastAPI, Security
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agentwrit import AgentClaims, AgentWritApp, AgentWritError, InvalidToken, Verifier
from agentwrit.integrations.fastapi import AgentWrit
from agentwrit.integrations.starlette import Guard
from tests.client.peer import answer, peer
from tests.integrations.servers import serving
from tests.proofs import Creation, Holder
from tests.support import BrokerProcess, TestApp, problem

RENEW, RELEASE, DELEGATE = "/v1/token/renew", "/v1/token/release", "/v1/delegate"
EVIL = "http://evil.example"


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app()


@pytest.fixture
def victim(app: TestApp) -> Holder:
    return Holder(app, "read:data:*")


def relayed(victim: Holder, path: str, url: str, *fields: tuple[str, str], json: Any = None) -> httpx2.Response:
    """What a service sends to the broker that was asked at `url`, with header fields of its choice."""
    shown = [("authorization", f"DPoP {victim.token}"), ("dpop", victim.proof("POST", url))]
    return victim.broker.http.post(path, json=json, headers=[*fields, *shown])


def assert_unharmed(victim: Holder) -> None:
    assert victim.post(RENEW).status_code == 200


def test_a_service_that_an_agent_calls_by_the_sdk_and_that_names_itself_to_the_broker(app: TestApp) -> None:
    weak = Holder(app)  # whose key is the thief's
    with AgentWritApp(app.broker.url, app.client_id, app.client_secret) as sdk, peer(answer(200, b"")) as evil:
        agent = sdk.create_agent("o", "t", ["read:data:*"], bound=True)
        for path in (DELEGATE, RELEASE, RENEW):
            httpx2.post(evil.url + path, auth=agent.auth)
            seen = {name.lower(): value for name, value in evil.seen[-1][2].items()}
            shown = {name: seen[name] for name in ("authorization", "dpop", "host")}
            body = {"delegate_to": weak.agent_id, "scope": ["read:data:*"]}
            problem(app.broker.http.post(path, json=body, headers=shown), 401, "unauthorized")
        agent.renew()


@pytest.mark.parametrize(
    "fields",
    [
        [("host", "evil.example")],
        [("host", "EVIL.example:80")],
        [("x-forwarded-host", "evil.example")],
        [("host", "evil.example"), ("x-forwarded-host", "evil.example"), ("x-forwarded-proto", "http")],
        [("forwarded", "host=evil.example;proto=http")],
        [("x-original-host", "evil.example"), ("x-original-url", "http://evil.example/")],
        [],
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [RENEW, RELEASE, DELEGATE])
def test_a_service_that_names_itself_to_the_broker(victim: Holder, path: str, fields: list[tuple[str, str]]) -> None:
    weak = Holder(victim.app)  # by whose key the thief would use what is delegated
    body = {"delegate_to": weak.agent_id, "scope": ["read:data:*"]} if path == DELEGATE else None
    problem(relayed(victim, path, EVIL + path, *fields, json=body), 401, "unauthorized")
    assert_unharmed(victim)


def test_a_service_that_names_itself_when_it_creates_an_agent(app: TestApp) -> None:
    problem(Creation(app, url=EVIL).post(host="evil.example"), 401, "unauthorized")


def test_a_service_at_another_address_of_the_same_machine(victim: Holder) -> None:
    port = victim.broker.url.rpartition(":")[2]
    for host in (
        "127.0.0.2",
        "[::1]",
        "0.0.0.0",
        "127.0.0.1.",
        "localhost.",
        "localhost.localdomain",
        "[::ffff:127.0.0.1]",
    ):
        url = f"http://{host}:{port}{RELEASE}"
        problem(relayed(victim, RELEASE, url, ("host", f"{host}:{port}")), 401, "unauthorized")
    assert_unharmed(victim)


def test_a_service_at_another_port_or_scheme_of_the_same_name(victim: Holder) -> None:
    host, port = victim.broker.url.removeprefix("http://").split(":")
    for url in (f"http://{host}", f"http://{host}:{int(port) - 1}", f"https://{host}:{port}", f"http://{host}:0"):
        named = url.partition("//")[2]
        problem(relayed(victim, RELEASE, url + RELEASE, ("host", named)), 401, "unauthorized")
    assert_unharmed(victim)


def test_a_service_on_the_agents_own_loopback_at_a_broker_on_every_address(tmp_path: Path) -> None:
    """The agent's 127.0.0.1 is not that of whoever comes from the network."""
    address = "127.0.0.2"  # as good as any other that is not the loopback address itself
    with BrokerProcess(tmp_path / "data", AGENTWRIT_HOST="0.0.0.0") as broker:
        port = broker.url.rpartition(":")[2]
        victim = Holder(broker.app())
        with httpx2.Client(base_url=f"http://{address}:{port}", trust_env=False) as thief:
            for name in ("127.0.0.1", "localhost", "0.0.0.0"):
                shown = {
                    "authorization": f"DPoP {victim.token}",
                    "dpop": victim.proof("POST", f"http://{name}:{port}{RELEASE}"),
                    "host": f"{name}:{port}",
                }
                problem(thief.post(RELEASE, headers=shown), 401, "unauthorized")
            own = {
                "authorization": f"DPoP {victim.token}",
                "dpop": victim.proof("POST", f"http://{address}:{port}{RENEW}"),
            }
            assert thief.post(RENEW, headers=own).status_code == 200


def test_a_name_that_is_not_among_those_that_are_set(tmp_path: Path) -> None:
    urls = "https://broker.example, http://broker.agentwrit.svc"
    with BrokerProcess(tmp_path / "data", AGENTWRIT_PUBLIC_URL=urls) as broker:
        victim = Holder(broker.app(), url="https://broker.example")
        for url in (EVIL, broker.url, "https://broker.example.evil.example", "http://broker.example", "https://svc"):
            problem(relayed(victim, RELEASE, url + RELEASE, ("host", url.partition("//")[2])), 401, "unauthorized")
        assert relayed(victim, RENEW, f"http://broker.agentwrit.svc{RENEW}").status_code == 200


@pytest.mark.parametrize(
    "written",
    [
        "http://evil@{host}{path}",
        "http://evil.example@{host}{path}",
        " http://{host}{path}",
        "http://{host}{path}\n",
        "http://{host}/v1/token/re\tlease",
        "http:\\\\{host}{path}",
        "http://{host}\\v1\\token\\release",
        "http://{host}/{path}",
        "http://{host}{path}/",
        "http://{host}{path};x",
        "http://{host}/V1/token/release",
        "http://{host}/v1%2Ftoken%2Frelease",
        "//{host}{path}",
        "{path}",
        "",
    ],
)
def test_urls_that_lenient_readers_take_for_the_brokers(victim: Holder, written: str) -> None:
    url = written.format(host=victim.broker.url.removeprefix("http://"), path=RELEASE)
    problem(relayed(victim, RELEASE, url), 401, "unauthorized")
    assert_unharmed(victim)


def test_what_is_said_of_a_wrong_name_is_bounded_and_plain(victim: Holder) -> None:
    answer = relayed(victim, RELEASE, "http://evil.example/\u202e<script>\x1b[2J" + "\U0001f600" * 120)
    hint = problem(answer, 401, "unauthorized")["hint"]
    [event] = victim.broker.events(agent_id=victim.agent_id, event_type="token_auth_failed")
    for said in (hint, event["detail"]):
        assert said.isascii()
        assert said.isprintable()
        assert len(said) < 700
        assert "\\u202e" in said


# -- two tokens in one request ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [RENEW, RELEASE, DELEGATE])
@pytest.mark.parametrize("is_bound", [True, False])
def test_two_authorization_headers_at_an_agents_own_routes(app: TestApp, path: str, is_bound: bool) -> None:
    victim, other = Holder(app, bound=is_bound), Holder(app, bound=False)
    scheme = "DPoP" if is_bound else "Bearer"
    body = {"delegate_to": other.agent_id, "scope": ["read:data:1"]} if path == DELEGATE else None
    for second in (f"{scheme} {victim.token}", f"Bearer {other.token}", "Basic eDp5", ""):
        for first_is_theirs in (True, False):
            fields = [("authorization", f"{scheme} {victim.token}"), ("Authorization", second)]
            shown = victim.proof("POST", victim.broker.url + path)
            headers = [*(fields if first_is_theirs else fields[::-1]), *([("dpop", shown)] if is_bound else [])]
            problem(victim.broker.http.post(path, json=body, headers=headers), 401, "unauthorized")
    if is_bound:
        assert_unharmed(victim)
    assert app.broker.is_valid(other.token)
    assert is_bound or app.broker.is_valid(victim.token)


def test_two_authorization_headers_at_every_other_route(app: TestApp, broker: BrokerProcess) -> None:
    admin, own = broker.admin()["authorization"], f"Bearer {app.token()}"
    for method, path, right in (
        ("GET", "/v1/agents", admin),
        ("POST", "/v1/agents", own),
        ("GET", "/v1/audit/events", admin),
        ("POST", "/v1/audit/accesses", own),
        ("POST", "/v1/audit/checkpoint", admin),
        ("GET", "/v1/audit/archives", admin),
        ("POST", "/v1/app/launch-tokens", own),
        ("POST", "/v1/admin/launch-tokens", admin),
        ("POST", "/v1/revoke", admin),
        ("GET", "/v1/admin/apps", admin),
        ("POST", "/v1/admin/apps", admin),
        ("GET", "/v1/admin/keys", admin),
        ("GET", "/v1/admin/operators", admin),
    ):
        for second in (right, f"Bearer {app.agent()['access_token']}", "Basic eDp5"):
            answer = broker.http.request(
                method, path, json={}, headers=[("authorization", right), ("authorization", second)]
            )
            assert answer.status_code == 401, (method, path, answer.text)
    for path in ("/oauth2/introspect", "/oauth2/revoke", "/oauth2/token"):
        headers = [("authorization", own), ("authorization", own)]
        answer = broker.http.post(path, data={"token": "x", "grant_type": "client_credentials"}, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


# -- services ---------------------------------------------------------------------------------------------------------

Application = FastAPI | Starlette


def fastapi_application(guard: AgentWrit) -> Application:
    app = FastAPI(lifespan=guard.lifespan)

    @app.get("/c/{name:path}")
    async def read(name: str, agent: Annotated[AgentClaims, Security(guard, scopes=["read:data:1"])]) -> str:
        return name

    return app


def starlette_application(guard: Guard) -> Application:
    @guard.requires("read:data:1")
    async def read(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["name"])

    return Starlette(routes=[Route("/c/{name:path}", read)], lifespan=guard.lifespan)


@pytest.fixture(params=[(fastapi_application, AgentWrit), (starlette_application, Guard)], ids=["fastapi", "starlette"])
def service(request: pytest.FixtureRequest, broker: BrokerProcess) -> Callable[..., Any]:
    application, guard = request.param
    return lambda **options: serving(lambda _: application(guard(broker.url, **options)))


def ask(victim: Holder, at: str, path: str, url: str, **fields: str) -> int:
    """What a thief sends to a service that was itself asked at `url`."""
    shown = {"authorization": f"DPoP {victim.token}", "dpop": victim.proof("GET", url)}
    return httpx2.get(at + path, headers=shown | fields, trust_env=False).status_code


def test_a_service_that_names_itself_to_another_service(service: Callable[..., Any], app: TestApp) -> None:
    victim = Holder(app)
    with service() as url:
        port = url.rpartition(":")[2]
        for fields in ({"host": "evil.example"}, {"x-forwarded-host": "evil.example"}, {}):
            assert ask(victim, url, "/c/1", f"{EVIL}/c/1", **fields) == 401
        for host in ("127.0.0.2", "[::1]", "localhost."):
            assert ask(victim, url, "/c/1", f"http://{host}:{port}/c/1", host=f"{host}:{port}") == 401
        for name in ("127.0.0.1", "localhost"):
            assert ask(victim, url, "/c/1", f"http://{name}:{port}/c/1", host="whatever.example") == 200


def test_a_service_is_known_by_the_names_that_it_is_given(service: Callable[..., Any], app: TestApp) -> None:
    victim = Holder(app)
    with service(public_url=["https://orders.example/api/", "http://orders"]) as url:
        assert ask(victim, url, "/c/1", "https://orders.example/api/c/1") == 200
        assert ask(victim, url, "/c/1", "http://orders/c/1", host="evil.example") == 200
        assert ask(victim, url, "/c/1", "https://orders.example/c/1", host="orders.example") == 401
        assert ask(victim, url, "/c/1", "http://orders/api/c/1") == 401
        assert ask(victim, url, "/c/1", f"{url}/c/1") == 401
        assert ask(victim, url, "/c/1", f"{EVIL}/c/1", host="evil.example") == 401


def test_a_service_says_what_a_proof_is_for_and_what_it_is_called(service: Callable[..., Any], app: TestApp) -> None:
    victim = Holder(app)
    with service(public_url="https://orders.example") as url:
        shown = {"authorization": f"DPoP {victim.token}", "dpop": victim.proof("GET", f"{url}/c/1")}
        answer = httpx2.get(f"{url}/c/1", headers=shown)
        assert answer.status_code == 401
        assert f"'{url}/c/1', and this is 'https://orders.example/c/1'" in answer.text
        assert victim.token not in answer.text


@pytest.mark.parametrize(
    "public_url", ["orders.example", "https://", "https://user@orders.example", ["https://a", "b"]]
)
def test_a_name_that_is_no_url_is_a_mistake_of_the_services_author(public_url: Any) -> None:
    with pytest.raises(AgentWritError, match="public_url"):
        Guard("http://127.0.0.1:9", public_url=public_url)


def test_a_path_that_its_reader_resolves_and_the_router_does_not(service: Callable[..., Any], app: TestApp) -> None:
    victim = Holder(app)
    with service() as url:
        for path in ("/c/x/../1", "/c/./1", "/c/x/%2e%2E/1"):
            connection = http.client.HTTPConnection(url.removeprefix("http://"))
            shown = {"authorization": f"DPoP {victim.token}", "dpop": victim.proof("GET", f"{url}/c/1")}
            connection.request("GET", path, headers=shown)
            assert connection.getresponse().status == 401
            connection.close()


def test_two_authorization_headers_at_a_service(service: Callable[..., Any], app: TestApp) -> None:
    victim = Holder(app)
    with service() as url:
        own = ("authorization", f"DPoP {victim.token}")
        for other in (own, ("Authorization", "Bearer x"), ("authorization", "")):
            for fields in ([own, other], [other, own]):
                headers = [*fields, ("dpop", victim.proof("GET", f"{url}/c/1"))]
                assert httpx2.get(f"{url}/c/1", headers=headers).status_code == 400


def test_a_verifier_takes_a_proof_for_any_of_the_services_names_and_once(victim: Holder) -> None:
    names = ["https://orders.example/c/1", "http://orders/c/1"]
    for staleness in (5.0, 0.0):  # by itself, and by asking the broker
        with Verifier(victim.broker.url, max_staleness=staleness) as verifier:
            for name in names:
                shown = victim.proof("GET", name)
                assert verifier.verify(victim.token, proof=shown, htm="GET", htu=names).sub == victim.agent_id
                with pytest.raises(InvalidToken):
                    verifier.verify(victim.token, proof=shown, htm="GET", htu=names)
            for htu in (f"{EVIL}/c/1", "http://orders/c/2"):
                with pytest.raises(InvalidToken):
                    verifier.verify(victim.token, proof=victim.proof("GET", htu), htm="GET", htu=names)
            with pytest.raises(InvalidToken):
                verifier.verify(victim.token, proof=victim.proof("GET", names[0]), htm="GET", htu=[])
