"""The claims of an access token (RFC 7519 §4.1, RFC 9068 §2.2), and when a token is valid in time.

The rules:

- A token is valid while `nbf - leeway <= now < exp`. The leeway allows for slow clocks; `exp` has no leeway.
- `jti` identifies the token, `sid` the grant it was issued on. Neither is ever empty.
- In the JWT, `scope` is one space-separated string (RFC 9068 §2.2.3); everywhere else it is a list.
- A delegated token carries its whole chain, from the registered agent at the root to the token's own subject. The
  scope of the token is exactly what the last hop granted.
- `operator` names the operator whose token it is. It is absent from tokens of the first operator and of non-operators.
- A token from a token exchange also names the agents of the chain in `act` (RFC 8693 §4.1): outermost the token's own
  subject, inside it the agent that delegated to it, and innermost the agent at the root.
"""

from collections.abc import Mapping
from typing import Annotated, Final, TypeAlias

import msgspec

from agentwrit.domain import delegation
from agentwrit.domain.delegation import Chain
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.timestamps import MAX_UNIX_SECONDS

LEEWAY_SECONDS: Final = 5

Time: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_UNIX_SECONDS)]


class Confirmation(msgspec.Struct, frozen=True):
    """The key of a bound token (RFC 7800 §3.1). `jkt`: its thumbprint (RFC 9449 §6.1)."""

    jkt: str


class Actor(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An actor, and nested in it the prior actor (RFC 8693 §4.1)."""

    sub: str
    act: "Actor | None" = None


class Claims(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The claims of a token. Times are Unix seconds; a missing task, orchestrator or app is an empty string."""

    iss: str
    sub: str
    aud: tuple[str, ...]
    exp: Time
    nbf: Time
    iat: Time
    jti: str
    sid: str
    scope: str
    client_id: str
    task_id: str
    orch_id: str
    delegation_chain: Chain = ()
    chain_hash: str = ""
    cnf: Confirmation | None = None
    act: Actor | None = None
    operator: str = ""

    @property
    def scopes(self) -> tuple[str, ...]:
        return tuple(self.scope.split(" "))


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Claims).decode


def encode(claims: Claims) -> bytes:
    """The JWT claims set that is signed."""
    return _encode(claims)


def decode(payload: bytes) -> Claims:
    """Read the claims set of a token whose signature has been checked.

    Raises:
        InvalidToken: a required claim is missing, empty where it may not be, or of the wrong type.
    """
    try:
        claims = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidToken("the claims are not those of an access token") from None
    if not (claims.sub and claims.jti and claims.sid and claims.aud):
        raise InvalidToken("a required claim is empty")
    return claims


def actors(subject: str, chain: Chain) -> Actor:
    """The `act` claim for this subject and chain: the current actor outermost, prior actors nested in it."""
    actor: Actor | None = None
    for record in chain:
        actor = Actor(record.agent, actor)
    return Actor(subject, actor)


def check_time(claims: Claims, now: float, *, leeway: float = LEEWAY_SECONDS) -> None:
    """Reject a token that has expired or is not valid yet (RFC 7519 §4.1.4, §4.1.5).

    `now`: Unix seconds; `leeway`: seconds.

    Raises:
        InvalidToken: the token is not valid at `now`.
    """
    if now >= claims.exp:
        raise InvalidToken("the token has expired")
    if now < claims.nbf - leeway:
        raise InvalidToken("the token is not valid yet")


def check_issuer(claims: Claims, issuer: str) -> None:
    """Reject a token of another issuer (RFC 8725 §3.8).

    Raises:
        InvalidToken: `iss` is not `issuer`.
    """
    if claims.iss != issuer:
        raise InvalidToken("the token has another issuer")


def check_delegation(claims: Claims, keys: Mapping[str, bytes]) -> None:
    """Reject a token whose delegation chain is not genuine or belongs to another token.

    A token without a chain must have neither `chain_hash` nor `act`. `keys`: the broker's public keys, 32 bytes each,
    by kid.

    Raises:
        InvalidToken: the chain is not that of this token.
    """
    chain = claims.delegation_chain
    if claims.act is not None and (not chain or claims.act != actors(claims.sub, chain)):
        raise InvalidToken("act does not name the agents of the delegation chain")
    if claims.chain_hash != delegation.chain_hash(chain):
        raise InvalidToken("chain_hash is not that of the delegation chain")
    if not chain:
        return
    delegation.verify(chain, keys)
    last = chain[-1]
    if last.delegate != claims.sub or last.granted != claims.scopes:
        raise InvalidToken("the delegation chain ends with another agent or another scope")
    if claims.iat < last.delegated_at or any(record.sid == claims.sid for record in chain):
        raise InvalidToken("the token is not below its delegation chain")
