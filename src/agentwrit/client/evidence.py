"""Checking a delegation chain by oneself: for auditors and for whoever else holds the broker's public keys."""

from collections.abc import Mapping
from dataclasses import asdict

import msgspec

from agentwrit.domain import claims as claims_rules
from agentwrit.domain import jwk, timestamps
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidToken
from agentwrit.models import AgentClaims, DelegationRecord


def verify_delegation(claims: AgentClaims, jwks: Mapping[str, object]) -> list[DelegationRecord]:
    """Check that the delegation chain of `claims` is whole, signed by the broker, only narrows, and leads to them.

    `jwks`: the broker's keys, as `/.well-known/jwks.json` shows them. Returns the chain, the first hop first; it is
    empty for a token that was not delegated. Whether a grant in it has ended since, only the broker knows.

    Raises:
        InvalidToken: the chain is not genuine, or is another token's.
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
        ValueError: its time is none.
    """
    at = timestamps.parse_rfc3339(record.delegated_at)
    if timestamps.rfc3339(at) != record.delegated_at:  # one spelling alone is what was signed
        raise ValueError("delegated_at is not as a broker writes it")
    return {**asdict(record), "delegated_at": int(at)}
