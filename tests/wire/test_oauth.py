"""The routes under /oauth2, and the metadata, as the RFCs have them."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.oauth import (
    ACCESS_TOKEN,
    TOKEN_EXCHANGE,
    client_credentials,
    exchange,
    introspect,
    oauth_error,
    post,
    revoke,
)
from tests.support import BrokerProcess, TestApp, bearer, problem

BASIC = 'Basic realm="agentwrit", charset="UTF-8"'
ROUTES = ["token", "introspect", "revoke"]


@pytest.fixture
def app(broker: BrokerProcess) -> TestApp:
    return broker.app()


def claims(token: str) -> dict[str, Any]:
    """What a token says, whoever signed it."""
    return dict(jwt.decode(token, options={"verify_signature": False}))


# -- metadata (RFC 8414) ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker whose issuer is a URL with a path, and not the one where it is reached."""
    with BrokerProcess(
        tmp_path_factory.mktemp("named") / "data",
        AGENTWRIT_ISSUER="https://id.example/tenant/one/",
        AGENTWRIT_PUBLIC_URL="https://broker.example",
    ) as process:
        yield process


WELL_KNOWN = "/.well-known/oauth-authorization-server"


def test_without_a_url_for_an_issuer_there_is_no_metadata(broker: BrokerProcess) -> None:
    body = problem(broker.http.get(WELL_KNOWN), 404, "not_found")
    assert "AGENTWRIT_ISSUER" in body["hint"]


def test_the_metadata_says_where_everything_is(named_broker: BrokerProcess) -> None:
    answer = named_broker.http.get(WELL_KNOWN)
    assert answer.json() == {
        "issuer": "https://id.example/tenant/one/",
        "authorization_endpoint": "https://broker.example/oauth2/authorize",
        "token_endpoint": "https://broker.example/oauth2/token",
        "jwks_uri": "https://broker.example/.well-known/jwks.json",
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials", TOKEN_EXCHANGE],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "introspection_endpoint": "https://broker.example/oauth2/introspect",
        "introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "Bearer"],
        "revocation_endpoint": "https://broker.example/oauth2/revoke",
        "revocation_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "dpop_signing_alg_values_supported": ["EdDSA", "Ed25519", "ES256"],
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"].startswith("public")


def test_the_metadata_is_where_the_issuers_path_puts_it(named_broker: BrokerProcess) -> None:
    answer = named_broker.http.get(WELL_KNOWN + "/tenant/one")
    assert answer.json() == named_broker.http.get(WELL_KNOWN).json()
    problem(named_broker.http.get(WELL_KNOWN + "/tenant/two"), 404, "not_found")
    seen = {"if-none-match": answer.headers["etag"]}
    assert named_broker.http.get(WELL_KNOWN + "/tenant/one", headers=seen).status_code == 304


@pytest.mark.parametrize(
    "issuer", ["https://id.example?tenant=1", "https://id.example#one", "ftp://id.example", "urn:x"]
)
def test_an_issuer_that_can_have_no_metadata_has_none(tmp_path: Path, issuer: str) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_ISSUER=issuer) as broker:
        problem(broker.http.get(WELL_KNOWN), 404, "not_found")


def test_the_urls_are_the_issuers_where_there_is_no_public_url(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data", AGENTWRIT_ISSUER="https://id.example/") as broker:
        found = broker.http.get(WELL_KNOWN).json()
        assert (found["issuer"], found["token_endpoint"]) == ("https://id.example/", "https://id.example/oauth2/token")


# -- bodies and client authentication (RFC 6749 §2.3, §3.2, §5.2) -----------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"token",
        b"token=a&token=b",
        b"token=a&&client_id=b",
        b"token=%zz",
        b"token=%ff",
        b"token=\xff",
        b"&".join(b"x%d=1" % n for n in range(65)),
        b'{"token":"a"}',
    ],
)
def test_a_body_that_is_no_form_is_refused(app: TestApp, route: str, body: bytes) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    auth = (app.client_id, app.client_secret)
    answer = app.broker.http.post(f"/oauth2/{route}", content=body, headers=headers, auth=auth)
    oauth_error(answer, 400, "invalid_request")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "multipart/form-data; boundary=x", ""])
def test_a_body_of_another_media_type_is_refused(app: TestApp, route: str, media_type: str) -> None:
    content = b"grant_type=client_credentials&token=a"
    headers = {"content-type": media_type}
    auth = (app.client_id, app.client_secret)
    answer = app.broker.http.post(f"/oauth2/{route}", content=content, headers=headers, auth=auth)
    assert "application/x-www-form-urlencoded" in oauth_error(answer, 400, "invalid_request")


def test_the_media_type_may_name_its_charset(app: TestApp) -> None:
    media_type = "Application/X-WWW-Form-URLEncoded; charset=UTF-8"
    content = b"grant_type=client_credentials"
    headers = {"content-type": media_type}
    auth = (app.client_id, app.client_secret)
    assert app.broker.http.post("/oauth2/token", content=content, headers=headers, auth=auth).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_over_1_mib_is_refused(app: TestApp, route: str) -> None:
    oauth_error(post(app.broker, route, {"token": "x" * 1024 * 1024}, app=app), 413, "invalid_request")


@pytest.mark.parametrize("route", ROUTES)
def test_parameters_in_the_url_are_refused(app: TestApp, route: str) -> None:
    answer = post(app.broker, f"{route}?client_id={app.client_id}", {"grant_type": "client_credentials", "token": "x"})
    assert "URL" in oauth_error(answer, 400, "invalid_request")


@pytest.mark.parametrize("route", ROUTES)
def test_a_client_authenticates_by_basic_or_by_post(app: TestApp, route: str) -> None:
    form = {"grant_type": "client_credentials", "token": "x"}
    by_post = {**form, "client_id": app.client_id, "client_secret": app.client_secret}
    assert post(app.broker, route, by_post).status_code == 200
    assert post(app.broker, route, form, app=app).status_code == 200
    assert post(app.broker, route, {**form, "client_id": app.client_id}, app=app).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_a_client_that_authenticates_in_two_ways_is_refused(app: TestApp, route: str) -> None:
    """RFC 6749 §2.3, whether they agree or not."""
    form = {"grant_type": "client_credentials", "token": "x"}
    for also in ({"client_secret": app.client_secret}, {"client_secret": "x"}, {"client_id": "another"}):
        oauth_error(post(app.broker, route, {**form, **also}, app=app), 400, "invalid_request")


NO_CREDENTIALS = ["", "Basic", "Basic !", "Basic " + base64.b64encode(b"no-colon").decode(), "Basic Og==", "Digest x"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("authorization", NO_CREDENTIALS)
def test_a_client_that_does_not_authenticate_is_told_how(app: TestApp, route: str, authorization: str) -> None:
    headers = {"authorization": authorization} if authorization else {}
    form = {"grant_type": "client_credentials", "token": "x", "client_id": app.client_id}
    answer = post(app.broker, route, form, headers=headers)
    oauth_error(answer, 401, "invalid_client")
    assert answer.headers["www-authenticate"] == BASIC


def test_a_field_without_a_value_is_as_if_left_out(app: TestApp) -> None:
    assert client_credentials(app, scope="", resource="").json()["scope"].count(" ") == 2
    oauth_error(post(app.broker, "token", {"grant_type": ""}, app=app), 400, "invalid_request")
    oauth_error(post(app.broker, "introspect", {"token": ""}, app=app), 400, "invalid_request")
    oauth_error(post(app.broker, "revoke", {"token": ""}, app=app), 400, "invalid_request")


@pytest.mark.parametrize("grant_type", ["password", "refresh_token", "authorization_code", "CLIENT_CREDENTIALS"])
def test_another_grant_type_is_refused(app: TestApp, grant_type: str) -> None:
    oauth_error(post(app.broker, "token", {"grant_type": grant_type}, app=app), 400, "unsupported_grant_type")


# -- client credentials (RFC 6749 §4.4) -------------------------------------------------------------------------------


def test_client_credentials_give_the_token_that_a_login_gives(app: TestApp) -> None:
    answer = client_credentials(app)
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    body, login = answer.json(), app.login().json()
    assert set(body) == {"access_token", "token_type", "expires_in", "scope"}
    assert (body["token_type"], body["expires_in"]) == ("Bearer", login["expires_in"])
    assert body["scope"].split(" ") == login["scopes"]
    ours, theirs = claims(body["access_token"]), claims(login["access_token"])
    own = ("jti", "sid", "iat", "nbf", "exp")
    assert {name: ours[name] for name in ours if name not in own} == {
        name: theirs[name] for name in theirs if name not in own
    }
    first, second = app.broker.events(event_type="app_authenticated", limit=1000)[-2:]
    assert (first["resource"], first["principal"]) == ("POST /oauth2/token", second["principal"])


def test_a_narrower_scope_is_all_that_the_token_has(app: TestApp) -> None:
    body = client_credentials(app, scope="app:audit:read").json()
    assert body["scope"] == "app:audit:read"
    token = bearer(body["access_token"])
    assert app.broker.http.get("/v1/audit/events", headers=token).status_code == 200
    policy = {"agent_name": "a", "allowed_scope": ["read:data:1"]}
    refused = app.broker.http.post("/v1/app/launch-tokens", json=policy, headers=token)
    problem(refused, 403, "insufficient_scope")


@pytest.mark.parametrize(
    "scope", ["admin:revoke:*", "read:data:1", "app:audit:read read:data:1", "nonsense", "app:audit:read ", "é:b:c"]
)
def test_a_scope_that_an_apps_token_cannot_have_is_refused(app: TestApp, scope: str) -> None:
    oauth_error(client_credentials(app, scope=scope), 400, "invalid_scope")
    given = [event["app_id"] for event in app.broker.events(event_type="app_authenticated")]
    assert app.app_id not in given


def test_an_apps_own_token_is_for_the_broker_alone(named_broker: BrokerProcess) -> None:
    app = named_broker.app(audiences=["https://orders.example"])
    for own in ("https://id.example/tenant/one/", "https://id.example/tenant/one", "https://broker.example"):
        assert client_credentials(app, resource=own).status_code == 200
    for other in ("https://payroll.example", "https://id.example/", "orders", "https://broker.example#x"):
        oauth_error(client_credentials(app, resource=other), 400, "invalid_target")
        oauth_error(client_credentials(app, audience=other), 400, "invalid_target")
    both = {"resource": ["https://broker.example", "https://orders.example"], "grant_type": "client_credentials"}
    oauth_error(post(named_broker, "token", both, app=app), 400, "invalid_target")


# -- client credentials for a resource (RFC 8707) ---------------------------------------------------------------------


def test_a_token_for_a_resource_is_that_of_an_agent_of_the_app(broker: BrokerProcess) -> None:
    app = broker.app("read:data:*", "write:data:1", audiences=["https://orders.example", "https://mcp.example/mcp"])
    body = client_credentials(app, resource="https://orders.example").json()
    assert set(body) == {"access_token", "token_type", "expires_in", "scope"}
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 300, "read:data:* write:data:1")
    said = claims(body["access_token"])
    assert (said["aud"], said["client_id"], said["orch_id"]) == (["https://orders.example"], app.client_id, app.name)
    assert said["sub"].startswith(f"spiffe://agentwrit.local/agent/{app.name}/client-credentials-")
    assert broker.is_valid(body["access_token"])
    [grant] = broker.http.get("/v1/agents", params={"app_id": app.app_id}, headers=broker.admin()).json()["agents"]
    assert (grant["agent_id"], grant["bound"]) == (said["sub"], False)
    assert [event["event_type"] for event in broker.events(sid=said["sid"])] == ["agent_registered", "token_issued"]
    narrow = client_credentials(app, resource="https://mcp.example/mcp", scope="read:data:7").json()
    assert (narrow["scope"], claims(narrow["access_token"])["aud"]) == ("read:data:7", ["https://mcp.example/mcp"])
    both = {"resource": ["https://orders.example", "https://mcp.example/mcp"], "grant_type": "client_credentials"}
    assert claims(post(broker, "token", both, app=app).json()["access_token"])["aud"] == both["resource"]


def test_a_resource_without_a_path_may_be_named_with_a_slash(broker: BrokerProcess) -> None:
    app = broker.app(audiences=["https://orders.example", "https://billing.example/", "https://mcp.example/mcp"])
    for listed in app_audiences(app)[:2]:
        for named in (listed.removesuffix("/"), listed.removesuffix("/") + "/"):
            body = client_credentials(app, resource=named).json()
            assert claims(body["access_token"])["aud"] == [listed]  # as the service knows itself
    for other in ("https://mcp.example/mcp/", "https://orders.example//", "https://orders.example/x"):
        oauth_error(client_credentials(app, resource=other), 400, "invalid_target")


def app_audiences(app: TestApp) -> list[str]:
    path = f"/v1/admin/apps/{app.app_id}"
    return list(app.broker.http.get(path, headers=app.broker.admin()).json()["audiences"])


def test_a_token_for_a_resource_ends_like_any_agents(broker: BrokerProcess) -> None:
    app = broker.app(audiences=["https://orders.example"])

    def token() -> str:
        return str(client_credentials(app, resource="https://orders.example").json()["access_token"])

    released, revoked, forgotten, suspended = (token() for _ in range(4))
    assert broker.release(released).status_code == 204
    assert revoke(app, revoked).status_code == 200
    broker.revoke("task", claims(forgotten)["task_id"])
    assert broker.is_valid(suspended)
    broker.http.post(f"/v1/admin/apps/{app.app_id}/suspend", headers=broker.admin())
    assert [broker.is_valid(each) for each in (released, revoked, forgotten, suspended)] == [False] * 4
    oauth_error(client_credentials(app, resource="https://orders.example"), 401, "invalid_client")


def test_there_is_an_authorization_endpoint_where_nobody_is_asked(named_broker: BrokerProcess) -> None:
    query = {"response_type": "code", "client_id": "x", "redirect_uri": "https://evil.example"}
    answer = named_broker.http.get("/oauth2/authorize", params=query)
    assert "/oauth2/token" in oauth_error(answer, 400, "unsupported_response_type")
    assert "location" not in answer.headers


# -- introspection (RFC 7662) -----------------------------------------------------------------------------------------


def test_introspection_says_what_a_token_says(app: TestApp) -> None:
    agent = app.agent("read:data:1", "write:data:2")
    said = claims(agent["access_token"])
    shown = introspect(app, agent["access_token"])
    assert shown == {**said, "active": True, "token_type": "Bearer"}
    assert (shown["scope"], shown["sub"]) == ("read:data:1 write:data:2", agent["agent_id"])
    assert (shown["task_id"], shown["orch_id"]) == ("task-1", "orchestrator")


def test_introspection_answers_any_app_for_any_token(broker: BrokerProcess, app: TestApp) -> None:
    operators = broker.admin()["authorization"].removeprefix("Bearer ")
    for token in (app.agent()["access_token"], app.token(), operators):
        assert introspect(broker.app(), token)["active"] is True
        assert introspect(broker.app(), token)["sub"] == claims(token)["sub"]


def test_introspection_says_nothing_of_a_token_that_does_not_hold(app: TestApp) -> None:
    agent = app.agent()
    renewed = app.broker.renew(agent["access_token"]).json()["access_token"]
    released = app.agent()["access_token"]
    app.broker.release(released)
    forged = renewed[:-8] + "AAAAAAAA"
    for token in (agent["access_token"], released, forged, "nonsense", "x" * 10_000, renewed + "."):
        assert introspect(app, token) == {"active": False}
    assert introspect(app, renewed)["active"] is True


def test_introspection_takes_an_apps_and_the_operators_token(broker: BrokerProcess, app: TestApp) -> None:
    token = app.agent()["access_token"]
    for who in (bearer(app.token()), broker.admin()):
        assert post(broker, "introspect", {"token": token}, headers=who).json()["active"] is True


def test_introspection_with_a_bearer_that_does_not_do_is_refused_as_bearers_are(app: TestApp) -> None:
    agent, gone = app.agent()["access_token"], app.token()
    revoke(app, gone)
    for token, status, error in [
        ("nonsense", 401, "invalid_token"),
        (gone, 401, "invalid_token"),
        (agent, 403, "insufficient_scope"),
    ]:
        answer = post(app.broker, "introspect", {"token": agent}, headers=bearer(token))
        oauth_error(answer, status, error)
        assert answer.headers["www-authenticate"] == f'Bearer error="{error}"'


# -- revocation (RFC 7009) --------------------------------------------------------------------------------------------


def test_an_app_revokes_its_agents_token_and_all_below_it(app: TestApp) -> None:
    parent, delegate = app.agent("read:data:*"), app.agent("write:data:1")
    below = exchange(app, parent["access_token"], delegate["access_token"], "read:data:1").json()["access_token"]
    answer = revoke(app, parent["access_token"], token_type_hint="refresh_token")
    assert answer.status_code == 200
    assert not app.broker.is_valid(parent["access_token"])
    assert not app.broker.is_valid(below)
    assert app.broker.is_valid(delegate["access_token"])
    assert revoke(app, parent["access_token"]).status_code == 200  # again, it changes nothing
    events = app.broker.events(event_type="token_revoked", agent_id=parent["agent_id"])
    assert [event["principal"] for event in events] == [f"app:{app.app_id}"]


def test_an_app_revokes_its_own_token(app: TestApp) -> None:
    token, other = app.token(), app.token()
    assert revoke(app, token).status_code == 200
    assert not app.broker.is_valid(token)
    assert app.broker.is_valid(other)


def test_a_superseded_token_stands_for_its_grant(app: TestApp) -> None:
    first = app.agent()["access_token"]
    second = app.broker.renew(first).json()["access_token"]
    assert revoke(app, first).status_code == 200
    assert not app.broker.is_valid(second)


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "x" * 100_000, "é"])
def test_revoking_what_is_no_token_is_no_error(app: TestApp, token: str) -> None:
    assert revoke(app, token).status_code == 200


def test_a_launch_token_is_not_taken_for_revoked(app: TestApp) -> None:
    oauth_error(revoke(app, app.launch_token()), 400, "unsupported_token_type")


def test_a_revocation_survives_a_kill(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        app = broker.app()
        token = app.agent()["access_token"]
        assert revoke(app, token).status_code == 200
        broker.kill()
        broker.start()
        assert not broker.is_valid(token)


# -- token exchange (RFC 8693) ----------------------------------------------------------------------------------------


def test_an_exchange_gives_the_delegates_token_with_the_chain_and_the_actors(app: TestApp) -> None:
    root, middle, last = app.agent("read:data:*"), app.agent("write:data:1"), app.agent("write:data:2")
    answer = exchange(app, root["access_token"], middle["access_token"], "read:data:1 read:data:2")
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    body = answer.json()
    assert set(body) == {"access_token", "issued_token_type", "token_type", "expires_in", "scope"}
    assert (body["issued_token_type"], body["token_type"]) == (ACCESS_TOKEN, "Bearer")
    assert (body["scope"], body["expires_in"]) == ("read:data:1 read:data:2", 60)
    first = app.broker.validate(body["access_token"])["claims"]
    assert first["sub"] == middle["agent_id"]
    assert [hop["agent"] for hop in first["delegation_chain"]] == [root["agent_id"]]
    assert first["act"] == {"sub": middle["agent_id"], "act": {"sub": root["agent_id"]}}

    second = exchange(app, body["access_token"], last["access_token"], "read:data:2", ttl="30").json()
    assert second["expires_in"] == 30
    assert app.broker.renew(second["access_token"]).status_code == 200
    shown = app.broker.validate(app.broker.renew(second["access_token"]).json()["access_token"])["claims"]
    assert shown["act"] == {"sub": last["agent_id"], "act": first["act"]}
    assert [hop["delegate"] for hop in shown["delegation_chain"]] == [middle["agent_id"], last["agent_id"]]
    assert introspect(app, body["access_token"])["act"] == first["act"]


def test_an_exchange_is_recorded_as_a_delegation(app: TestApp) -> None:
    root, delegate = app.agent("read:data:*"), app.agent("write:data:1")
    exchange(app, root["access_token"], delegate["access_token"], "read:data:1")
    [event] = app.broker.events(event_type="delegation_created", agent_id=root["agent_id"])
    assert (event["resource"], event["data"]["delegate"]) == ("POST /oauth2/token", delegate["agent_id"])


def test_only_an_exchange_names_actors(app: TestApp) -> None:
    root, delegate = app.agent("read:data:*"), app.agent("write:data:1")
    request = {"delegate_to": delegate["agent_id"], "scope": ["read:data:1"]}
    answer = app.broker.http.post("/v1/delegate", json=request, headers=bearer(root["access_token"]))
    assert "act" not in app.broker.validate(answer.json()["access_token"])["claims"]


def test_a_delegation_to_oneself_is_a_hop_like_any_other(app: TestApp) -> None:
    agent = app.agent("read:data:*")
    body = exchange(app, agent["access_token"], agent["access_token"], "read:data:1").json()
    shown = app.broker.validate(body["access_token"])["claims"]
    assert shown["act"] == {"sub": agent["agent_id"], "act": {"sub": agent["agent_id"]}}


def test_an_exchange_is_for_some_of_those_whom_the_subject_is_for(broker: BrokerProcess) -> None:
    ours = ["https://orders.example", "https://billing.example", "payroll"]
    app = broker.app(audiences=ours)
    root, delegate = app.agent("read:data:*", audience=ours), app.agent("write:data:1")

    def audience(**fields: str | list[str]) -> list[str]:
        answer = exchange(app, root["access_token"], delegate["access_token"], "read:data:1", **fields)
        assert answer.status_code == 200, answer.text
        return list(broker.validate(answer.json()["access_token"])["claims"]["aud"])

    assert audience() == ours
    assert audience(resource="https://orders.example") == ["https://orders.example"]
    assert audience(audience="payroll") == ["payroll"]
    both = ["https://orders.example", "https://billing.example"]
    assert audience(resource=both, audience="https://orders.example") == both
    refused = exchange(app, root["access_token"], delegate["access_token"], "read:data:1", resource="payroll")
    oauth_error(refused, 400, "invalid_target")  # RFC 8707 §2: not an absolute URI


@pytest.mark.parametrize("missing", ["subject_token", "subject_token_type", "actor_token", "actor_token_type", "scope"])
def test_an_exchange_names_the_field_that_is_missing(app: TestApp, missing: str) -> None:
    agent = app.agent()["access_token"]
    fields = {missing: ""}
    asked = {"subject": agent, "actor": agent, "scope": "read:data:1"}
    if missing in ("subject_token", "actor_token"):
        asked[missing.removesuffix("_token")] = ""
        fields = {}
    elif missing == "scope":
        asked["scope"], fields = "", {}
    assert missing in oauth_error(exchange(app, **asked, **fields), 400, "invalid_request")


@pytest.mark.parametrize(
    "fields",
    [
        {"subject_token_type": "urn:ietf:params:oauth:token-type:jwt"},
        {"actor_token_type": "urn:ietf:params:oauth:token-type:id_token"},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"ttl": "0"},
        {"ttl": "-1"},
        {"ttl": "1.5"},
        {"ttl": "9" * 40},
        {"audience": "x" * 257},
        {"audience": [str(n) for n in range(17)]},
    ],
)
def test_an_exchange_of_another_form_is_refused(app: TestApp, fields: dict[str, str | list[str]]) -> None:
    agent = app.agent()["access_token"]
    oauth_error(exchange(app, agent, agent, "read:data:1", **fields), 400, "invalid_request")


def test_the_type_that_is_given_can_be_asked_for(app: TestApp) -> None:
    agent = app.agent()["access_token"]
    assert exchange(app, agent, agent, "read:data:1", requested_token_type=ACCESS_TOKEN).status_code == 200
