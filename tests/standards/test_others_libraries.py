"""OAuth and JOSE clients that others wrote, with our broker as it is: all that they are told is the issuer's URL."""

import json
import subprocess
from typing import Any

import jwt
import pytest
from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import OAuth2Client
from joserfc import jwt as jose_jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from tests.oauth import ACCESS_TOKEN, TOKEN_EXCHANGE
from tests.support import BrokerProcess, TestApp

ORDERS = "https://orders.example"


@pytest.fixture
def endpoints(found_broker: BrokerProcess) -> dict[str, Any]:
    """What the metadata says, found as RFC 8414 §3 has it."""
    answer = found_broker.http.get(found_broker.url + "/.well-known/oauth-authorization-server")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def authlib(app: TestApp, **settings: Any) -> OAuth2Client:
    return OAuth2Client(app.client_id, app.client_secret, trust_env=False, **settings)


# -- PyJWT and joserfc ------------------------------------------------------------------------------------------------


def test_pyjwt_finds_the_key_and_verifies(app: TestApp, endpoints: dict[str, Any]) -> None:
    agent = app.agent(audience=[ORDERS])
    keys = jwt.PyJWKClient(endpoints["jwks_uri"])
    key = keys.get_signing_key_from_jwt(agent["access_token"])
    verified = jwt.decode(agent["access_token"], key, algorithms=["EdDSA"], audience=ORDERS, issuer=endpoints["issuer"])
    assert (verified["sub"], verified["scope"]) == (agent["agent_id"], "read:data:1")
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(agent["access_token"], key, algorithms=["EdDSA"], audience="https://billing.example")


# RFC 9864 gives the algorithm the name of its curve; EdDSA is what verifiers know today (RFC 8037).
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_joserfc_verifies_and_finds_the_actors(app: TestApp, endpoints: dict[str, Any]) -> None:
    root, delegate = app.agent(audience=[ORDERS]), app.agent()
    with authlib(app) as client:
        exchanged = client.fetch_token(endpoints["token_endpoint"], **exchange_of(root, delegate, "read:data:1"))
    keys = KeySet.import_key_set(app.broker.http.get(endpoints["jwks_uri"]).json())
    token = jose_jwt.decode(exchanged["access_token"], keys, algorithms=["EdDSA"])
    jose_jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": endpoints["issuer"]}, aud={"essential": True, "value": ORDERS}
    ).validate(token.claims)
    assert token.header["typ"] == "at+jwt"  # RFC 9068 §2.1
    assert token.claims["act"] == {"sub": delegate["agent_id"], "act": {"sub": root["agent_id"]}}
    with pytest.raises(JoseError):
        jose_jwt.decode(exchanged["access_token"][:-6] + "AAAAAA", keys, algorithms=["EdDSA"])


# -- Authlib ----------------------------------------------------------------------------------------------------------


def exchange_of(subject: dict[str, Any], actor: dict[str, Any], scope: str, **fields: str) -> dict[str, str]:
    return {
        "grant_type": TOKEN_EXCHANGE,
        "subject_token": subject["access_token"],
        "subject_token_type": ACCESS_TOKEN,
        "actor_token": actor["access_token"],
        "actor_token_type": ACCESS_TOKEN,
        "scope": scope,
        **fields,
    }


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_authlib_logs_an_app_in(app: TestApp, endpoints: dict[str, Any], method: str) -> None:
    assert method in endpoints["token_endpoint_auth_methods_supported"]
    with authlib(app, token_endpoint_auth_method=method) as client:
        token = client.fetch_token(endpoints["token_endpoint"], grant_type="client_credentials", scope="app:audit:read")
        assert (token["token_type"], token["scope"]) == ("Bearer", "app:audit:read")
        assert token["expires_at"] > 0
        # The client presents it by itself (RFC 6750 §2.1).
        events = client.get(app.broker.url + "/v1/audit/events")
        assert events.status_code == 200


def test_authlib_is_told_what_is_wrong(app: TestApp, endpoints: dict[str, Any]) -> None:
    url = endpoints["token_endpoint"]
    with OAuth2Client(app.client_id, "wrong", trust_env=False) as client:
        with pytest.raises(OAuthError) as wrong:
            client.fetch_token(url, grant_type="client_credentials")
        assert wrong.value.error == "invalid_client"
    with authlib(app) as client:
        with pytest.raises(OAuthError) as wider:
            client.fetch_token(url, grant_type="client_credentials", scope="admin:revoke:*")
        assert wider.value.error == "invalid_scope"
        with pytest.raises(OAuthError) as unsupported:
            client.fetch_token(url, grant_type="password", username="a", password="b")
        assert unsupported.value.error == "unsupported_grant_type"


def test_authlib_exchanges_introspects_and_revokes(app: TestApp, endpoints: dict[str, Any]) -> None:
    root, delegate = app.agent("read:data:*", audience=[ORDERS, "https://billing.example"]), app.agent("write:data:1")
    with authlib(app) as client:
        asked = exchange_of(root, delegate, "read:data:1", resource=ORDERS)
        exchanged = client.fetch_token(endpoints["token_endpoint"], **asked)
        assert (exchanged["issued_token_type"], exchanged["scope"]) == (ACCESS_TOKEN, "read:data:1")
        token = exchanged["access_token"]

        shown = client.introspect_token(endpoints["introspection_endpoint"], token=token).json()
        assert (shown["active"], shown["sub"], shown["aud"]) == (True, delegate["agent_id"], [ORDERS])
        assert shown["act"]["act"]["sub"] == root["agent_id"]

        revoked = client.revoke_token(endpoints["revocation_endpoint"], token=token, token_type_hint="access_token")
        assert revoked.status_code == 200
        again = client.introspect_token(endpoints["introspection_endpoint"], token=token)
        assert again.json() == {"active": False}
        assert app.broker.is_valid(root["access_token"])


# -- curl -------------------------------------------------------------------------------------------------------------


def curl(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return dict(json.loads(done.stdout))


def test_curl_introspects_as_a_proxy_does(app: TestApp, endpoints: dict[str, Any]) -> None:
    agent = app.agent()
    asked = ("--user", f"{app.client_id}:{app.client_secret}", "--header", "accept: application/json")
    form = ("--data-urlencode", f"token={agent['access_token']}", "--data", "token_type_hint=access_token")
    shown = curl(*asked, *form, endpoints["introspection_endpoint"])
    assert (shown["active"], shown["sub"], shown["client_id"]) == (True, agent["agent_id"], app.client_id)
    app.broker.release(agent["access_token"])
    assert curl(*asked, *form, endpoints["introspection_endpoint"]) == {"active": False}
