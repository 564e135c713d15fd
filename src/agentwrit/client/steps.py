"""The protocol, step by step, without I/O."""

import base64
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import msgspec

from agentwrit.client.exchange import HttpRequest, HttpResponse, LoginNeeded, Steps
from agentwrit.client.keys import AgentKey
from agentwrit.client.log import logger
from agentwrit.client.secrecy import Secret, revealed
from agentwrit.domain import proof
from agentwrit.errors import (
    AgentWritError,
    AuthenticationError,
    AuthorizationError,
    ProblemResponseError,
    TransportError,
    from_response,
    unavailable,
)
from agentwrit.models import (
    AgentClaims,
    DelegatedToken,
    HealthStatus,
    RegisterResult,
    ValidateResult,
    chain_from_wire,
)

T = TypeVar("T")

NONCE_BYTES: Final = 32
MAX_NUMBER: Final = 2**63 - 1
MAX_SECONDS: Final = 2**31 - 1  # that clocks and timers of all systems can add and wait for
UNBINDING: Final = "this broker does not bind tokens to keys, and a bound one was asked for"
AGENTS: Final = "/v1/agents"

INVALID = ValidateResult(valid=False, error="token is invalid or expired")


@dataclass(frozen=True)
class AccessToken:
    """A token, and its lifetime in seconds."""

    access_token: Secret[str]
    expires_in: int


@dataclass(frozen=True)
class ShownProof:
    """A proof that a service received with a token (RFC 9449 §7), and the request that it came with.

    `htu`: the request's URL; several, if the service is known by several names.
    """

    proof: str | None = field(default=None, repr=False)
    htm: str | None = None
    htu: str | Collection[str] | None = None

    def __post_init__(self) -> None:
        if self.proof is not None and (self.htm is None or self.htu is None):
            raise TypeError("proof= goes with htm= and htu=: the method and the URL of the request that it came with")

    def members(self) -> dict[str, str | Secret[str]]:
        """The members for the question to the broker."""
        if self.proof is None or self.htm is None or self.htu is None:
            return {}
        htu = self.htu if isinstance(self.htu, str) else proof.named_url(self.proof, self.htu)
        return {"proof": Secret(self.proof), "htm": self.htm, "htu": htu}


def health() -> Steps[HealthStatus]:
    """The broker's health. A degraded broker answers 503, which is a valid answer here."""
    response = yield HttpRequest("GET", "/v1/health", is_idempotent=True, is_503_an_answer=True)
    members = _unrefused(response, also=503)
    return HealthStatus(
        status=members.text("status"),
        version=members.text("version"),
        uptime=members.number("uptime"),
        db_connected=bool(members.get("db_connected")),
        audit_events_count=members.number("audit_events_count"),
    )


def validate(token: Secret[str], shown: ShownProof | None = None) -> Steps[ValidateResult]:
    """Whether a token is valid, according to the broker. An invalid token is a result, not an error."""
    body = {"token": token} if shown is None else {"token": token, **shown.members()}
    if not token.reveal() or not all(map(_is_text, body.values())):
        return INVALID  # the broker would reject the field as missing, or could not be asked
    # A proof can be used once, also in a validation: a second request would get another answer.
    request = HttpRequest("POST", "/v1/token/validate", json=body, is_idempotent="proof" not in body)
    members = _unrefused((yield request))
    if members.get("valid") is not True:
        error = members.get("error")
        return ValidateResult(valid=False, error=error if isinstance(error, str) else INVALID.error)
    claims = members.get("claims")
    if not isinstance(claims, dict):
        raise TransportError("the answer to a validation has no claims: is this a broker?")
    try:
        return ValidateResult(valid=True, claims=AgentClaims.from_wire(claims))
    except msgspec.ValidationError as error:
        raise TransportError(f"the claims are not of the protocol ({error}): is this a broker?") from None


def app_login(client_id: str, client_secret: Secret[str]) -> Steps[AccessToken]:
    """An app token, for the app's secret."""
    body = {"client_id": client_id, "client_secret": client_secret}
    return _access_token((yield HttpRequest("POST", "/v1/app/auth", json=body)))


def operator_login(secret: Secret[str], name: str | None = None) -> Steps[AccessToken]:
    """An operator token, for an operator's secret; without a name, the first operator's."""
    body = {"secret": secret} if name is None else {"secret": secret, "name": name}
    return _access_token((yield HttpRequest("POST", "/v1/admin/auth", json=body)))


class Ceremony:
    """How agents are registered at a broker: in one step if the broker supports it, which is found out once.

    `broker_url`: the broker's name in proofs.
    """

    def __init__(self, broker_url: str) -> None:
        self.broker_url = broker_url
        self.is_one_step = True


@dataclass(frozen=True)
class WantedAgent:
    """An app's request for an agent.

    `max_ttl`: seconds; `label`: its name in the audit log, by default made from its IDs; `bound`: whether to bind its
    tokens to its key.
    """

    orch_id: str
    task_id: str
    requested_scope: list[str]
    max_ttl: int
    label: str | None = None
    audience: list[str] | None = None
    bound: bool = False

    @property
    def limits(self) -> dict[str, object]:
        """The members that are the same in one step and in three."""
        named: dict[str, object] = {
            "agent_name": self.label or f"{self.orch_id}/{self.task_id}",
            "max_ttl": self.max_ttl,
        }
        if self.audience is not None:
            named["audience"] = self.audience
        if self.bound:
            named["bound"] = True
        return named

    @property
    def identity(self) -> dict[str, object]:
        """The members for its SPIFFE ID, and its scope."""
        return {"orch_id": self.orch_id, "task_id": self.task_id, "requested_scope": self.requested_scope}


def create_agent(ceremony: Ceremony, key: AgentKey, wanted: WantedAgent) -> Steps[RegisterResult]:
    """Register an agent, in one step or in three."""
    if ceremony.is_one_step:
        response = yield from _create_at_once(ceremony.broker_url, key, wanted)
        if response.status not in (404, 405):
            return (yield from _registered(response, wanted))
        ceremony.is_one_step = False  # a broker of the first protocol version: remembered from now on
        logger.info("the broker at %s registers agents in three steps", ceremony.broker_url)
    return (yield from _create_in_three_steps(key, wanted))


def _create_at_once(broker_url: str, key: AgentKey, wanted: WantedAgent) -> Steps[HttpResponse]:
    """Request an agent with a proof by its key (RFC 9449).

    A retry sends the same request with a new proof: so a lost answer is recovered.
    """
    idempotency_key = secrets.token_hex(16)
    body = {**wanted.identity, **wanted.limits, "public_key": _base64(key.public_key)}

    def request(token: Secret[str], nonce: str | None = None) -> HttpRequest:
        def proven() -> dict[str, object]:
            return {**body, "proof": make_proof(key, "POST", f"{broker_url}{AGENTS}", token, nonce)}

        return HttpRequest(
            "POST", AGENTS, json=proven, bearer=token, is_idempotent=True, idempotency_key=idempotency_key
        )

    token, nonce = (yield LoginNeeded()), None
    response: HttpResponse = yield request(token)
    is_fresh = False  # whether the login was made for this request
    while True:
        is_about_the_proof = response.status == 401 and "dpop-nonce" in response.headers
        if is_about_the_proof and nonce is None:
            nonce = response.headers["dpop-nonce"]  # RFC 9449 §8: the clocks differ
        elif _is_stale_login(response) and not is_about_the_proof and not is_fresh:
            token, is_fresh = (yield LoginNeeded(stale=token)), True
        else:
            return response
        response = yield request(token, nonce)


def _create_in_three_steps(key: AgentKey, wanted: WantedAgent) -> Steps[RegisterResult]:
    """The registration in three steps: launch token, challenge, registration."""
    policy = {**wanted.limits, "allowed_scope": wanted.requested_scope, "single_use": True}
    launched = _members((yield from logged_in(HttpRequest("POST", "/v1/app/launch-tokens", json=policy))))
    understood = launched.get("policy")
    if wanted.bound and not (isinstance(understood, dict) and understood.get("bound") is True):
        raise AgentWritError(UNBINDING)
    nonce = _members((yield HttpRequest("GET", "/v1/challenge", is_idempotent=True))).text("nonce")
    body = {
        **wanted.identity,
        "launch_token": launched.secret("launch_token"),
        "nonce": nonce,
        "public_key": _base64(key.public_key),
        "signature": _base64(key.sign(_nonce_bytes(nonce))),
    }
    return (yield from _registered((yield HttpRequest("POST", "/v1/register", json=body)), wanted))


def _registered(response: HttpResponse, wanted: WantedAgent) -> Steps[RegisterResult]:
    members = _members(response)
    registered = RegisterResult(
        agent_id=members.text("agent_id"),
        access_token=members.token().reveal(),
        expires_in=members.seconds("expires_in"),
    )
    if wanted.bound and members.get("token_type") != "DPoP":
        yield from release(members.token())  # nobody should hold a token that was not asked for
        raise AgentWritError(UNBINDING)
    return registered


def make_proof(
    key: AgentKey,
    method: str,
    url: str,
    token: Secret[str],
    nonce: str | None = None,
    *,
    wall: Callable[[], float] = time.time,
) -> Secret[str]:
    """A new proof by the agent's key, for one request with its token (RFC 9449 §4.2).

    Raises:
        ValueError: the URL is not absolute.
    """
    return Secret(
        proof.make(
            key.sign,
            key.public_key,
            htm=method,
            htu=proof.target(url),
            iat=int(wall()),
            jti=secrets.token_hex(16),
            token=token.reveal(),
            nonce=nonce,
        )
    )


@dataclass(frozen=True)
class Binding:
    """What an agent's tokens are bound to: its key, which proves each request to the broker of this URL."""

    key: AgentKey
    broker_url: str


def renew(token: Secret[str], binding: Binding | None = None) -> Steps[AccessToken]:
    """The successor of an agent's token."""
    return _access_token((yield from _presented(HttpRequest("POST", "/v1/token/renew", bearer=token), binding)))


def _presented(request: HttpRequest, binding: Binding | None) -> Steps[HttpResponse]:
    """Make a request with an agent's token, with a proof if it is bound."""
    response: HttpResponse
    if binding is None:
        response = yield request
        return response
    response = yield _proven(request, binding)
    nonce = response.headers.get("dpop-nonce")
    if response.status == 401 and nonce is not None:  # RFC 9449 §9: the clocks differ
        response = yield _proven(request, binding, nonce)
    return response


def _proven(request: HttpRequest, binding: Binding, nonce: str | None = None) -> HttpRequest:
    url, token = binding.broker_url + request.path, request.bearer or Secret("")
    return replace(request, proof=lambda: make_proof(binding.key, request.method, url, token, nonce))


def delegate(
    token: Secret[str], delegate_to: str, scope: Sequence[str], ttl: int | None, binding: Binding | None = None
) -> Steps[DelegatedToken]:
    """A delegated token for another agent, made from this one."""
    body: dict[str, object] = {"delegate_to": delegate_to, "scope": list(scope)}
    if ttl is not None:
        body["ttl"] = ttl
    request = HttpRequest(
        "POST", "/v1/delegate", json=body, bearer=token, is_idempotent=True, idempotency_key=secrets.token_hex(16)
    )
    members = _members((yield from _presented(request, binding)))
    try:
        chain = chain_from_wire(members.get("delegation_chain"))
    except msgspec.ValidationError as error:
        raise TransportError(f"the delegation_chain is not of the protocol ({error}): is this a broker?") from None
    return DelegatedToken(members.token().reveal(), members.seconds("expires_in"), chain)


def release(token: Secret[str], binding: Binding | None = None) -> Steps[None]:
    """End a token's grant. A dead token counts as released.

    Raises:
        AuthenticationError: the token is bound, and the broker refused the proof: the token may be alive.
        TransportError: whether it was released is unknown.
    """
    request = HttpRequest("POST", "/v1/token/release", bearer=token, is_idempotent=True)
    response = yield from _presented(request, binding)
    try:
        check(response)
    except (AuthenticationError, AuthorizationError):
        challenge = response.headers.get("www-authenticate", "")
        if "invalid_dpop_proof" in challenge or "use_dpop_nonce" in challenge:
            raise
    except ProblemResponseError as error:
        raise unavailable(error) from None


def report_accesses(accesses: list[dict[str, object]], key: str) -> Steps[list[int]]:
    """Report what was done with tokens, under an idempotency key. Returns the indexes of the refused accesses."""
    request = HttpRequest(
        "POST", "/v1/audit/accesses", json={"accesses": accesses}, is_idempotent=True, idempotency_key=key
    )
    refused: Any = _members((yield from logged_in(request))).get("refused")
    try:
        return [int(item["index"]) for item in refused or []]
    except (KeyError, TypeError, ValueError):
        raise TransportError("the answer to a report is not of the protocol: is this a broker?") from None


def logged_in(request: HttpRequest) -> Steps[HttpResponse]:
    """Make a request with the login's token. If the broker refuses the token, it is replaced once."""
    token = yield LoginNeeded()
    response: HttpResponse = yield _with_bearer(request, token)
    if _is_stale_login(response):
        token = yield LoginNeeded(stale=token)
        response = yield _with_bearer(request, token)
    return response


def read_object(response: HttpResponse) -> dict[str, Any]:
    """The JSON object of an answer, or the error that it stands for."""
    return _object(response)


def _with_bearer(request: HttpRequest, token: Secret[str]) -> HttpRequest:
    return replace(request, bearer=token)


def _is_stale_login(response: HttpResponse) -> bool:
    """Whether the login may be the reason for a refusal, so that a new one is worth trying."""
    return response.status == 401 or (response.status == 403 and _is_revoked(response))


def _is_revoked(response: HttpResponse) -> bool:
    """Whether a 403 says that the token is dead, rather than that it lacks a scope (RFC 6750 §3.1)."""
    return 'error="invalid_token"' in response.headers.get("www-authenticate", "")


def check(response: HttpResponse, *, also: int | None = None) -> None:
    """Raise the error that an answer stands for, if any. `also`: a status that is not an error."""
    if not 200 <= response.status < 300 and response.status != also:
        raise from_response(response.status, response.headers, response.body)


def _object(response: HttpResponse, *, also: int | None = None) -> dict[str, Any]:
    check(response, also=also)
    try:
        return msgspec.json.decode(response.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if response.status == also:
            raise from_response(response.status, response.headers, response.body) from None
        raise TransportError("the answer is not a JSON object: is this a broker?") from None


class _Members:
    """The members of an answer, read one by one. The repr does not show them, because one may be a secret.

    Every method raises TransportError for a member that does not follow the protocol.
    """

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._given = members

    def get(self, name: str) -> object:
        """A member of any type, or None if it is absent."""
        return self._given.get(name)

    def text(self, name: str) -> str:
        value = self._given.get(name)
        if not isinstance(value, str):
            raise TransportError(f"the answer has no {name}: is this a broker?")
        return value

    def secret(self, name: str) -> Secret[str]:
        return Secret(self.text(name))

    def token(self) -> Secret[str]:
        """A token that is valid in a header (RFC 6750 §2.1). For another one, an HTTP library's error would show it."""
        token = self.secret("access_token")
        if not _is_bearer_token(token):
            raise TransportError("the access_token is not a bearer token (RFC 6750): is this a broker?")
        return token

    def number(self, name: str, at_most: int = MAX_NUMBER) -> int:
        """A whole number from 0 to `at_most`."""
        value = self._given.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= at_most:
            raise TransportError(f"the answer has no {name}: is this a broker?")
        return value

    def seconds(self, name: str) -> int:
        return self.number(name, MAX_SECONDS)


def _members(response: HttpResponse) -> _Members:
    """The members of an answer that is a JSON object, or the error that it stands for."""
    return _Members(_object(response))


def _unrefused(response: HttpResponse, *, also: int | None = None) -> _Members:
    """As `_members`, for an answer that a broker gives to everyone.

    Raises:
        TransportError: the answer is an error.
    """
    try:
        return _Members(_object(response, also=also))
    except ProblemResponseError as error:
        raise unavailable(error) from None


def _is_bearer_token(token: Secret[str]) -> bool:
    text = token.reveal()
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _access_token(response: HttpResponse) -> AccessToken:
    members = _members(response)
    return AccessToken(members.token(), members.seconds("expires_in"))


def _nonce_bytes(nonce: str) -> bytes:
    """The bytes of a challenge. With any other length allowed, a server could have the key sign any data."""
    try:
        spelled = bytes.fromhex(nonce)
    except ValueError:
        spelled = b""
    if len(spelled) != NONCE_BYTES:
        raise TransportError(f"the challenge is not {NONCE_BYTES} bytes in hex: is this a broker?")
    return spelled


def _is_text(text: str | Secret[str]) -> bool:
    """Whether it can be encoded as UTF-8, which a lone surrogate does not allow."""
    try:
        revealed(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
