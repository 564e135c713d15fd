"""The bodies of requests and answers: names and types, exactly as they stand on the wire."""

import base64
import binascii
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

import msgspec
from msgspec import UNSET, UnsetType

from agentwrit.broker.services.agents import GrantTree
from agentwrit.broker.services.issuing import IssuedToken
from agentwrit.domain import access, agent_key, audit, base64url, delegation, launch_token, timestamps
from agentwrit.domain.app import App
from agentwrit.domain.audit import Event
from agentwrit.domain.claims import Claims
from agentwrit.domain.delegation import Chain
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import Grant
from agentwrit.domain.jwk import P256_KEY_BYTES, PUBLIC_KEY_BYTES
from agentwrit.domain.operator import Operator
from agentwrit.domain.signing_key import KeyPurpose, StoredKey

B = TypeVar("B", bound=msgspec.Struct)

MAX_STRINGS = 16_384
"""In a body: many times what makes sense. A string takes longer to read than as many bytes of anything else."""

# Times and counts that a caller sends stay where every part of the broker can compute with them.
MAX_INTEGER = 2**31 - 1


class AdminAuth(msgspec.Struct, frozen=True):
    secret: str
    name: str = ""


class AddOperator(msgspec.Struct, frozen=True):
    name: str
    secret: str | None = None


class RotateOperatorSecret(msgspec.Struct, frozen=True):
    secret: str | None = None


class AppAuth(msgspec.Struct, frozen=True):
    client_id: str
    client_secret: str


class RegisterApp(msgspec.Struct, frozen=True):
    name: str
    scopes: list[str] = []
    token_ttl: int | None = None
    audiences: list[str] = []
    require_bound: bool = False
    reports_for: list[str] = []
    max_live_agents: int | None = None
    max_ttl: int | None = None
    creates_per_second: int | None = None


class UpdateApp(msgspec.Struct, frozen=True):
    scopes: list[str] | None = None
    token_ttl: int | None = None
    audiences: list[str] | None = None
    require_bound: bool | None = None
    reports_for: list[str] | None = None
    max_live_agents: int | UnsetType | None = UNSET
    max_ttl: int | UnsetType | None = UNSET
    creates_per_second: int | UnsetType | None = UNSET


class ReportedAccess(msgspec.Struct, frozen=True):
    sid: str
    jti: str
    scope: list[str]
    resource: str
    outcome: str
    first: str
    last: str
    count: int = 1


class ReportAccesses(msgspec.Struct, frozen=True):
    accesses: Annotated[list[ReportedAccess], msgspec.Meta(max_length=access.MAX_ACCESSES)]


class RecordArchive(msgspec.Struct, frozen=True):
    first: str
    last: str
    root: str
    file: str
    sha256: str


class RotateSecret(msgspec.Struct, frozen=True):
    overlap: int = 0


class CreateLaunchToken(msgspec.Struct, frozen=True):
    agent_name: str
    allowed_scope: list[str]
    max_ttl: int | None = None
    single_use: bool = True
    max_uses: int | None = None
    ttl: int = launch_token.DEFAULT_TTL_SECONDS
    audience: list[str] = []
    bound: bool = False


class Register(msgspec.Struct, frozen=True):
    launch_token: str
    nonce: str
    public_key: str
    signature: str
    orch_id: str
    task_id: str
    requested_scope: list[str]


class Delegate(msgspec.Struct, frozen=True):
    delegate_to: str
    scope: list[str]
    ttl: int = delegation.DEFAULT_TTL_SECONDS


class Revoke(msgspec.Struct, frozen=True):
    level: str
    target: str
    reason: str = ""


class RotateKey(msgspec.Struct, frozen=True):
    purpose: str = KeyPurpose.ACCESS_TOKEN.value
    force: bool = False


class RevokeKey(msgspec.Struct, frozen=True):
    reason: str = ""


class CreateAgent(msgspec.Struct, frozen=True):
    orch_id: str
    task_id: str
    requested_scope: list[str]
    public_key: str
    proof: str
    max_ttl: int | None = None
    agent_name: str = ""
    audience: list[str] = []
    bound: bool = False


class Validate(msgspec.Struct, frozen=True):
    token: str
    proof: str = ""
    htm: str = ""
    htu: str = ""


def decode(body: bytes, schema: type[B]) -> B:
    """Read a request's body.

    Raises:
        InvalidRequest: it is not JSON, not an object, or a field is missing, empty, out of range or of the wrong type.
            Names the field.
    """
    plan = _plan(schema)
    if body.count(b'"') > 2 * MAX_STRINGS:
        raise InvalidRequest(f"the body has more than {MAX_STRINGS} strings")
    try:
        body.decode("utf-8")  # RFC 8259 §8.1; the decoder looks only at the fields that it knows
        request: B = plan.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body is not what this route takes: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not JSON") from None
    for name in plan.required:
        if not getattr(request, name):
            raise InvalidRequest(f"{name} is required and must not be empty")
    for name in plan.integers:
        value = getattr(request, name)
        if value is not None and value is not UNSET and not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise InvalidRequest(f"{name} is out of range")
    return request


class _Plan(NamedTuple):
    """What reading a schema takes: made once, since it takes longer than the reading."""

    decode: Callable[[bytes], Any]
    required: tuple[str, ...]
    integers: tuple[str, ...]


@cache
def _plan(schema: type[msgspec.Struct]) -> _Plan:
    fields = msgspec.structs.fields(schema)
    return _Plan(
        msgspec.json.Decoder(schema).decode,
        tuple(field.name for field in fields if field.required),
        tuple(field.name for field in fields if field.type is int or int in get_args(field.type)),
    )


def decode_optional(body: bytes, schema: type[B]) -> B:
    """As `decode`, for a body that may be left out."""
    return decode(body or b"{}", schema)


def decode_public_key(text: str) -> bytes:
    """The bytes of an agent's public key (see `agentwrit.domain.agent_key`).

    Raises:
        InvalidRequest: it is none.
    """
    public_key = decode_base64(text, field="public_key")
    if not agent_key.is_key(public_key):
        raise InvalidRequest(
            f"public_key is not the base64 of {PUBLIC_KEY_BYTES} raw Ed25519 bytes, or of the {P256_KEY_BYTES} of P-256"
        )
    return public_key


def decode_base64(text: str, *, field: str) -> bytes:
    """The bytes of a field in base64 (RFC 4648 §4).

    Raises:
        InvalidRequest: it is not base64. Names `field`.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{field} is not base64") from None


def app(record: App) -> dict[str, object]:
    """An app as it is shown."""
    return {
        "app_id": record.app_id,
        "name": record.name,
        "client_id": record.client_id,
        "scopes": record.scopes,
        "audiences": record.audiences,
        "token_ttl": record.token_ttl,
        "require_bound": record.requires_binding,
        "reports_for": record.reports_for,
        "max_live_agents": record.max_live_agents,
        "max_ttl": record.max_ttl,
        "creates_per_second": record.creates_per_second,
        "status": record.status,
        "created_at": timestamps.rfc3339(record.created_at),
        "updated_at": timestamps.rfc3339(record.updated_at),
    }


def operator(record: Operator) -> dict[str, object]:
    """An operator as they are shown."""
    return {
        "name": record.name,
        "status": "active" if record.is_active else "removed",
        "created_at": timestamps.rfc3339(record.created_at),
        "updated_at": timestamps.rfc3339(record.updated_at),
    }


def claims(held: Claims) -> dict[str, object]:
    """A token's claims as they are shown: `scope` is a list here, and a hop's time RFC 3339."""
    shown = msgspec.to_builtins(held)
    shown["scope"] = held.scopes
    if held.delegation_chain:
        shown["delegation_chain"] = delegation_chain(held.delegation_chain)
    return shown  # type: ignore[no-any-return]  # a Struct becomes a dict


def delegation_chain(chain: Chain) -> list[dict[str, object]]:
    """A delegation chain as it is shown. In the records that are signed, `delegated_at` is Unix seconds."""
    return [
        {**msgspec.structs.asdict(record), "delegated_at": timestamps.rfc3339(record.delegated_at)} for record in chain
    ]


def event(recorded: Event) -> msgspec.Raw:
    """An event as it is shown. An id that it does not have is left out: in the form that is hashed it is ""."""
    members = audit.record(recorded)
    return _encoded({name: value for name, value in members.items() if value != "" or name == "detail"})


def introspection(held: Claims) -> dict[str, object]:
    """A token that holds, as RFC 7662 §2.2 shows it: `scope` is one string here. What it does not have is left out."""
    shown = {
        "active": True,
        "scope": held.scope,
        "client_id": held.client_id,
        "token_type": "Bearer" if held.cnf is None else "DPoP",  # RFC 9449 §6.2
        "exp": held.exp,
        "iat": held.iat,
        "nbf": held.nbf,
        "sub": held.sub,
        "aud": held.aud,
        "iss": held.iss,
        "jti": held.jti,
        "sid": held.sid,
        "task_id": held.task_id,
        "orch_id": held.orch_id,
        "act": held.act,
        "cnf": held.cnf,
    }
    return {name: value for name, value in shown.items() if value not in ("", None)}


def grant(record: Grant) -> dict[str, object]:
    """An agent's grant as it is shown. `expires_at` is when its current token ends, `ends_at` when renewal does."""
    return {
        "agent_id": record.subject,
        "sid": record.sid,
        "app_id": record.app_id,
        "agent_name": record.agent_name,
        "orch_id": record.orch_id,
        "task_id": record.task_id,
        "scope": record.scope,
        "created_at": timestamps.rfc3339(record.created_at),
        "expires_at": timestamps.rfc3339(record.exp),
        "ends_at": timestamps.rfc3339(record.ends_at),
        "parent": record.parent_sid or None,
        "parent_agent": record.chain[-1].agent if record.chain else None,
        "depth": len(record.chain),
        "bound": record.is_bound,
    }


def grant_tree(tree: GrantTree) -> msgspec.Raw:
    """A grant with its state and with what was delegated from it."""
    record = tree.grant
    return _encoded(
        {
            **grant(record),
            "status": record.status(tree.now),
            "ended_at": _time_or_none(record.ended_at),
            "end_reason": record.end_reason or None,
            "delegations": [grant_tree(below) for below in tree.delegations],
        }
    )


def _encoded(members: Mapping[str, object]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(members))


def signing_key(record: StoredKey) -> dict[str, object]:
    """A signing key as it is shown: its public half."""
    return {
        "kid": record.kid,
        "purpose": record.purpose,
        "state": record.state,
        "public_key": base64url.encode(record.public_key),
        "created_at": timestamps.rfc3339(record.created_at),
        "active_since": _time_or_none(record.active_since),
        "verifies_until": _time_or_none(record.verifies_until),
        "revoked_at": _time_or_none(record.revoked_at),
    }


def _time_or_none(at: int) -> str | None:
    return timestamps.rfc3339(at) if at else None


def registered(issued: IssuedToken) -> dict[str, object]:
    """A new agent, with its first token."""
    return {"agent_id": issued.grant.subject, **token(issued)}


def token(issued: IssuedToken) -> dict[str, object]:
    """An agent's token. One that is bound says so (RFC 9449 §5); the others look as they always did."""
    shown: dict[str, object] = {"access_token": issued.access_token, "expires_in": issued.expires_in}
    return {**shown, "token_type": "DPoP"} if issued.grant.is_bound else shown
