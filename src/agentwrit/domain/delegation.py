"""Delegation records: who handed what to whom, in the order in which it happened.

A token that was delegated carries its chain. Whatever ends a grant that the chain names ends the token.
"""

import msgspec


class DelegationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One hop: `agent` (by its grant `sid`, holding `scope`) gave `granted` to `delegate`.

    `delegated_at`: Unix seconds; `prev`: hex SHA-256 of the record before, or empty; `signature`: the broker's,
    base64url Ed25519, by the key `kid`.
    """

    agent: str
    sid: str
    scope: tuple[str, ...]
    delegate: str
    granted: tuple[str, ...]
    delegated_at: int
    prev: str
    kid: str
    signature: str
