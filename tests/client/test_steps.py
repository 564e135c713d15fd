"""The protocol's steps, with no network: what they ask for, and what they make of the answers."""

import base64
import hashlib
import json
import pickle
import time
from typing import Any, TypeVar

import jwt
import pytest
from nacl.signing import VerifyKey

from agentwrit.client import steps
from agentwrit.client.exchange import HttpRequest, HttpResponse, LoginNeeded, Steps, retry_delay
from agentwrit.client.keys import AgentKey
from agentwrit.client.secrecy import Secret
from agentwrit.errors import (
    AgentWritError,
    AuthenticationError,
    AuthorizationError,
    ProblemResponseError,
    TransportError,
    from_response,
)
from agentwrit.models import AgentClaims, DelegationRecord

T = TypeVar("T")

NONCE = bytes(range(32)).hex()
REFUSED = {"title": "Unauthorized", "detail": "no", "error_code": "unauthorized"}


def answer(status: int, content: object = None, **headers: str) -> HttpResponse:
    return HttpResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, encoded(content))


def encoded(content: object) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def carry_out(program: Steps[T], *answers: HttpResponse | str) -> tuple[list[HttpRequest | LoginNeeded], T]:
    """Run steps on these answers: what they asked for, and what they returned."""
    given = [Secret(each) if isinstance(each, str) else each for each in answers]  # a text is a login's token
    asked = [next(program), *map(program.send, given[:-1])]
    with pytest.raises(StopIteration) as done:
        program.send(given[-1])
    result: T = done.value.value
    return asked, result


def body_of(request: HttpRequest | LoginNeeded) -> dict[str, Any]:
    assert isinstance(request, HttpRequest)
    assert isinstance(request.json, dict)
    return request.json


def content_of(request: HttpRequest) -> bytes:
    content = request.content()
    assert content is not None
    return content.reveal()


def in_one_step(key: AgentKey, ceremony: steps.Ceremony | None = None, **changes: Any) -> Steps[Any]:
    arguments: dict[str, Any] = {
        "orch_id": "orders",
        "task_id": "o-1",
        "requested_scope": ["read:data:1"],
        "max_ttl": 60,
        "label": None,
        "audience": None,
    }
    wanted = steps.WantedAgent(**(arguments | changes))
    return steps.create_agent(ceremony or steps.Ceremony("http://broker"), key, wanted)


def ceremony(key: AgentKey, **changes: Any) -> Steps[Any]:
    """At a broker that is known to have the three steps alone."""
    known = steps.Ceremony("http://broker")
    known.is_one_step = False
    return in_one_step(key, known, **changes)


def proven(request: HttpRequest | LoginNeeded, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of an attempt to create an agent in one step, and what its proof says, checked by PyJWT."""
    assert isinstance(request, HttpRequest)
    assert (request.method, request.path, request.bearer) == ("POST", "/v1/agents", Secret(token))
    assert request.is_idempotent
    assert request.idempotency_key
    body = json.loads(content_of(request))
    header = jwt.get_unverified_header(body["proof"])
    assert (header["typ"], header["alg"]) == ("dpop+jwt", "EdDSA")
    assert base64.urlsafe_b64decode(header["jwk"]["x"] + "=") == base64.b64decode(body["public_key"])
    claims = json.loads(jwt.PyJWS().decode(body["proof"], jwt.PyJWK(header["jwk"]), algorithms=["EdDSA"]))
    ath = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
    assert (claims["htm"], claims["htu"], claims["ath"]) == ("POST", "http://broker/v1/agents", ath)
    return body, claims


CREATED = {"agent_id": "spiffe://x/agent/orders/o-1/1", "access_token": "a.b.c", "expires_in": 60}


def test_one_step_proves_the_key_for_this_broker_and_this_login() -> None:
    asked, registered = carry_out(
        in_one_step(AgentKey(), label="worker", audience=["https://orders"]), "app-token", answer(201, CREATED)
    )
    body, claims = proven(asked[1], "app-token")
    assert {
        name: body[name] for name in ("orch_id", "task_id", "requested_scope", "max_ttl", "agent_name", "audience")
    } == {
        "orch_id": "orders",
        "task_id": "o-1",
        "requested_scope": ["read:data:1"],
        "max_ttl": 60,
        "agent_name": "worker",
        "audience": ["https://orders"],
    }
    assert abs(claims["iat"] - time.time()) < 5
    assert registered.agent_id == CREATED["agent_id"]


def test_each_attempt_carries_a_proof_of_its_own_under_the_same_key() -> None:
    asked, _ = carry_out(in_one_step(AgentKey()), "app-token", answer(201, CREATED))
    attempts = [proven(asked[1], "app-token") for _ in range(3)]
    assert len({claims["jti"] for _, claims in attempts}) == 3
    assert len({body["public_key"] for body, _ in attempts}) == 1


def test_a_clock_that_is_wrong_is_made_up_for_once_by_the_brokers_nonce() -> None:
    asked_for = answer(401, REFUSED, dpop_nonce="ff")
    program = in_one_step(AgentKey())
    next(program)
    first = program.send(Secret("app-token"))
    again = program.send(asked_for)
    assert proven(again, "app-token")[1]["nonce"] == "ff"
    assert isinstance(first, HttpRequest)
    assert isinstance(again, HttpRequest)
    assert first.idempotency_key == again.idempotency_key
    with pytest.raises(AuthenticationError):
        program.send(asked_for)


def test_a_dead_login_is_replaced_and_proven_anew() -> None:
    dead = answer(403, REFUSED, www_authenticate='Bearer error="invalid_token"')
    asked, _ = carry_out(in_one_step(AgentKey()), "old", dead, "new", answer(201, CREATED))
    assert asked[2] == LoginNeeded(stale=Secret("old"))
    proven(asked[3], "new")


@pytest.mark.parametrize("order", [("login", "clock"), ("clock", "login")])
def test_a_dead_login_and_a_clock_that_is_wrong_are_made_up_for_together_and_once_each(order: tuple[str, str]) -> None:
    """A machine that slept has both."""
    dead = answer(403, REFUSED, www_authenticate='Bearer error="invalid_token"')
    asked_for = answer(401, REFUSED, dpop_nonce="ff")
    program = in_one_step(AgentKey())
    next(program)
    request = program.send(Secret("old"))
    for what in order:
        request = program.send(asked_for if what == "clock" else dead)
        if what == "login":
            assert request == LoginNeeded(stale=Secret("old"))
            request = program.send(Secret("new"))
    assert proven(request, "new")[1]["nonce"] == "ff"
    for refused in (dead, asked_for):
        again = in_one_step(AgentKey())
        next(again)
        again.send(Secret("old"))
        again.send(dead)
        again.send(Secret("new"))
        again.send(asked_for)
        with pytest.raises(AuthorizationError if refused is dead else AuthenticationError):
            again.send(refused)


@pytest.mark.parametrize("status", [404, 405])
def test_a_broker_without_the_one_step_is_asked_for_it_once(status: int) -> None:
    known = steps.Ceremony("http://broker")
    three = (
        "app-token",
        answer(201, {"launch_token": "ab" * 32}),
        answer(200, {"nonce": NONCE, "expires_in": 30}),
        answer(200, CREATED),
    )
    asked, _ = carry_out(in_one_step(AgentKey(), known), "app-token", answer(status, REFUSED), *three)
    paths = [request.path for request in asked if isinstance(request, HttpRequest)]
    assert paths == ["/v1/agents", "/v1/app/launch-tokens", "/v1/challenge", "/v1/register"]
    asked, _ = carry_out(in_one_step(AgentKey(), known), *three)
    assert len(asked) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 409, 429, 500, 503])
def test_no_other_refusal_leads_to_the_three_steps(status: int) -> None:
    known = steps.Ceremony("http://broker")
    program = in_one_step(AgentKey(), known)
    next(program)
    program.send(Secret("app-token"))
    if status == 401:  # the login may be to blame: tried once more with another one
        assert program.send(answer(status, REFUSED)) == LoginNeeded(stale=Secret("app-token"))
        program.send("new")
    with pytest.raises(ProblemResponseError):
        program.send(answer(status, REFUSED))
    assert known.is_one_step


def test_the_ceremony_proves_the_key_over_the_bytes_of_the_nonce() -> None:
    key = AgentKey()
    asked, registered = carry_out(
        ceremony(key),
        "app-token",
        answer(201, {"launch_token": "ab" * 32}),
        answer(200, {"nonce": NONCE, "expires_in": 30}),
        answer(200, {"agent_id": "spiffe://x/agent/orders/o-1/1", "access_token": "a.b.c", "expires_in": 60}),
    )
    login, launch, challenge, register = asked
    assert isinstance(login, LoginNeeded)
    assert isinstance(launch, HttpRequest)
    assert isinstance(challenge, HttpRequest)
    assert isinstance(register, HttpRequest)
    assert (launch.path, launch.bearer, launch.is_idempotent) == ("/v1/app/launch-tokens", Secret("app-token"), False)
    assert (challenge.method, challenge.is_idempotent) == ("GET", True)
    assert (register.bearer, register.is_idempotent) == (None, False)
    assert body_of(launch) == {
        "agent_name": "orders/o-1",
        "allowed_scope": ["read:data:1"],
        "max_ttl": 60,
        "single_use": True,
    }
    body = body_of(register)
    VerifyKey(base64.b64decode(body["public_key"])).verify(bytes.fromhex(NONCE), base64.b64decode(body["signature"]))
    assert (body["launch_token"], body["nonce"]) == (Secret("ab" * 32), NONCE)
    assert "a.b.c" not in repr(registered)


def test_a_label_and_an_audience_go_into_the_launch_token() -> None:
    program = ceremony(AgentKey(), label="worker", audience=["https://orders"])
    next(program)
    policy = body_of(program.send(Secret("app-token")))
    assert (policy["agent_name"], policy["audience"]) == ("worker", ["https://orders"])


@pytest.mark.parametrize("nonce", ["", "zz" * 32, "00" * 31, "00" * 33, "00" * 2000])
def test_a_challenge_that_is_not_32_bytes_is_not_signed(nonce: str) -> None:
    program = ceremony(AgentKey())
    next(program)
    program.send(Secret("app-token"))
    program.send(answer(201, {"launch_token": "ab" * 32}))
    with pytest.raises(TransportError, match="32 bytes"):
        program.send(answer(200, {"nonce": nonce}))


@pytest.mark.parametrize(
    "refusal", [answer(401, REFUSED), answer(403, REFUSED, www_authenticate='Bearer error="invalid_token"')]
)
def test_a_dead_login_is_replaced_once(refusal: HttpResponse) -> None:
    request = HttpRequest("GET", "/v1/admin/apps", is_idempotent=True)
    asked, response = carry_out(steps.logged_in(request), "old", refusal, "new", refusal)
    assert asked[2] == LoginNeeded(stale=Secret("old"))
    assert [step.bearer for step in asked if isinstance(step, HttpRequest)] == [Secret("old"), Secret("new")]
    assert response is refusal


def test_a_login_that_lacks_a_scope_is_not_replaced() -> None:
    refusal = answer(403, REFUSED, www_authenticate='Bearer error="insufficient_scope"')
    asked, response = carry_out(steps.logged_in(HttpRequest("GET", "/x")), "token", refusal)
    assert len(asked) == 2
    assert response is refusal


@pytest.mark.parametrize("status", [204, 401, 403])
def test_release_of_a_dead_token_counts_as_released(status: int) -> None:
    asked, _ = carry_out(steps.release(Secret("a.b.c")), answer(status, REFUSED))
    assert [step.is_idempotent for step in asked if isinstance(step, HttpRequest)] == [True]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_release_that_the_broker_could_not_do_is_an_error(status: int) -> None:
    program = steps.release(Secret("a.b.c"))
    next(program)
    with pytest.raises(ProblemResponseError):
        program.send(answer(status, REFUSED))


def test_a_renewal_is_not_retried_by_the_driver() -> None:
    asked, _ = carry_out(steps.renew(Secret("a.b.c")), answer(200, {"access_token": "d.e.f", "expires_in": 60}))
    assert [step.is_idempotent for step in asked if isinstance(step, HttpRequest)] == [False]


@pytest.mark.parametrize("token", ["", "tok en", "tok\r\nen", "tökén"])
def test_a_token_that_cannot_stand_in_a_header_is_no_token(token: str) -> None:
    program = steps.renew(Secret("a.b.c"))
    next(program)
    with pytest.raises(TransportError) as caught:
        program.send(answer(200, {"access_token": token, "expires_in": 60}))
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("token", ["", "\ud800"])
def test_what_cannot_be_sent_is_an_invalid_token(token: str) -> None:
    with pytest.raises(StopIteration) as done:
        next(steps.validate(Secret(token)))
    assert done.value.value.error == "token is invalid or expired"


def test_claims_are_read_from_any_broker_of_the_protocol() -> None:
    claims = {"iss": "i", "sub": "s", "aud": "one", "scope": "read:a:1 read:a:2", "sid": None, "client_id": None}
    _, result = carry_out(steps.validate(Secret("x")), answer(200, {"valid": True, "claims": {**claims, "later": [1]}}))
    assert result.claims == AgentClaims(
        iss="i",
        sub="s",
        aud=["one"],
        exp=0,
        nbf=0,
        iat=0,
        jti="",
        scope=["read:a:1", "read:a:2"],
        task_id="",
        orch_id="",
    )


def test_a_delegation_chain_is_read() -> None:
    record = {"agent": "spiffe://x/a", "scope": ["read:a:1"], "signature": "sig", "prev": ""}
    record["delegated_at"] = "1970-01-01T00:00:07Z"
    older = {**record, "delegated_at": 7}
    claims = AgentClaims.from_wire({"delegation_chain": [record, older, {}], "chain_hash": "h"})
    read = DelegationRecord("spiffe://x/a", ["read:a:1"], "1970-01-01T00:00:07Z", "sig")
    assert claims.delegation_chain == [read, read, DelegationRecord("", [], "", "")]


@pytest.mark.parametrize(
    "claims", [{"scope": 5}, {"scope": [5]}, {"aud": 7}, {"exp": "never"}, {"delegation_chain": [1]}]
)
def test_claims_of_another_shape_are_no_brokers_answer(claims: dict[str, object]) -> None:
    program = steps.validate(Secret("x"))
    next(program)
    with pytest.raises(TransportError, match="is this a broker"):
        program.send(answer(200, {"valid": True, "claims": claims}))


def test_a_refusal_is_one_line_whatever_the_other_side_wrote() -> None:
    problem = {"title": "Forbidden", "detail": "\x1b[2Jone\ntwo" + "x" * 100_000, "hint": "a\r\nb"}
    error = from_response(403, {}, encoded(problem))
    assert isinstance(error, AuthorizationError)
    assert str(error).isprintable()
    assert len(str(error)) < 4000
    assert error.problem.detail == problem["detail"]


def test_a_retry_keeps_its_jitter_when_the_broker_says_when() -> None:
    delays = {retry_delay(3, asked_for) for asked_for in (0.0, 1.0) for _ in range(50)}
    assert len(delays) == 100
    assert min(retry_delay(3, 1.0) for _ in range(50)) >= 1


def test_a_secret_is_shown_by_nothing_but_the_body_it_is_sent_in() -> None:
    request = HttpRequest("POST", "/v1/app/auth", json={"client_secret": Secret("hidden")})
    assert content_of(request) == b'{"client_secret":"hidden"}'
    assert "hidden" not in repr(request) + repr(request.json)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(Secret("hidden"))


def test_a_text_that_is_none_is_refused_without_being_shown() -> None:
    request = HttpRequest("POST", "/v1/app/auth", json={"client_secret": Secret("hidden\udc80")})
    with pytest.raises(AgentWritError, match="no text") as caught:
        request.content()
    assert "hidden" not in str(caught.value)
    assert caught.value.__context__ is None
