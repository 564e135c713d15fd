"""Checking a delegation chain offline: for auditors, and for anyone else with the broker's public keys."""

from collections.abc import Mapping
from dataclasses import asdict

import msgspec

from agentwrit.domain import claims as claims_rules
from agentwrit.domain import jwk, timestamps
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidToken
from agentwrit.models import AgentClaims, DelegationRecord


def verify_delegation(claims: AgentClaims, jwks: Mapping[str, object]) -> list[DelegationRecord]:
    """Check that a delegation chain is complete, signed by the broker, only narrows, and leads to `claims`.

        for hop in verify_delegation(result.claims, jwks):
            print(hop.agent, hop.scope, hop.delegated_at)

    `jwks`: the broker's keys, the JWK set (RFC 7517 §5) at `/.well-known/jwks.json`. Returns the chain, first hop
    first; it is empty for a token that was not delegated. Only the broker knows whether a grant in the chain has ended.

    Raises:
        InvalidToken: the chain is not genuine, or belongs to another token.
    """
    members = {name: value for name, value in asdict(claims).items() if value is not None}
    try:
        chain = [_as_signed(record) for record in claims.delegation_chain or ()]
        checked = msgspec.convert({**members, "delegation_chain": chain, "scope": " ".join(claims.scope)}, Claims)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        raise InvalidToken(f"these are not the claims of a token: {error}") from None
    claims_rules.check_delegation(checked, jwk.public_keys(jwks))
    return claims.delegation_chain or []


def _as_signed(record: DelegationRecord) -> dict[str, object]:
    """The members of a record as the broker signed them: with its time as Unix seconds.

    Raises:
        ValueError: the time is not valid.
    """
    at = timestamps.parse_rfc3339(record.delegated_at)
    if timestamps.rfc3339(at) != record.delegated_at:  # only one spelling was signed
        raise ValueError("delegated_at is not as a broker writes it")
    return {**asdict(record), "delegated_at": int(at)}
