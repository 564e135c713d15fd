"""Delegation: granting part of a grant to another agent, and the evidence of it that a token carries.

The rules:

- A delegation is a grant of its own, made from one grant (its parent) to one agent. It covers nothing that its parent
  does not cover, and does not outlive the token with which it was made. Delegating to oneself is a hop like any other.
- A chain has at most 5 hops. At most 1,000 delegations from one grant are alive at once, and at most 10,000 in all
  chains that begin with the same grant.
- Each hop has a record that names the parent grant, its scope, the delegate and the granted scope. The broker signs the
  record: the Ed25519 signature is over `agentwrit-delegation-v1`, a line feed and the RFC 8785 form of the record
  without `signature`. `prev` is the SHA-256 of the whole previous record in that form, so no hop can be removed,
  inserted or moved.
- The scope of each hop is the scope that the previous hop granted.
- `chain_hash` is the SHA-256 of the RFC 8785 form of all records. Hashes are lowercase hex.

If a grant in the chain ends, the token is dead: see `agentwrit.domain.revocation`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from agentwrit.domain import base64url, canonical
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.jws import Signer, is_signature
from agentwrit.domain.scope import scope_is_subset

MAX_DEPTH: Final = 5
MAX_FROM_GRANT: Final = 1_000
MAX_IN_TREE: Final = 10_000
DEFAULT_TTL_SECONDS: Final = 60

_CONTEXT: Final = b"agentwrit-delegation-v1\n"


class DelegationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One hop: `agent`, on its grant `sid` with the scope `scope`, granted `granted` to `delegate`.

    `delegated_at`: Unix seconds; `prev`: hex SHA-256 of the previous record, or empty; `signature`: the broker's
    Ed25519 signature in base64url, by the key `kid`.
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


Chain = tuple[DelegationRecord, ...]


def extend(
    chain: Chain,
    signer: Signer,
    *,
    agent: str,
    sid: str,
    scope: tuple[str, ...],
    delegate: str,
    granted: tuple[str, ...],
    delegated_at: int,
) -> Chain:
    """The chain with one more hop, signed. The caller must have checked that the hop is allowed."""
    record = DelegationRecord(
        agent=agent,
        sid=sid,
        scope=scope,
        delegate=delegate,
        granted=granted,
        delegated_at=delegated_at,
        prev=_hash(chain[-1]) if chain else "",
        kid=signer.kid,
        signature="",
    )
    signature = base64url.encode(signer.sign(_signed_bytes(record)))
    return (*chain, msgspec.structs.replace(record, signature=signature))


def chain_hash(chain: Sequence[DelegationRecord]) -> str:
    """The `chain_hash` claim of a token with this chain; empty if there is no chain."""
    if not chain:
        return ""
    return hashlib.sha256(canonical.encode_plain(chain)).hexdigest()


def verify(chain: Sequence[DelegationRecord], keys: Mapping[str, bytes]) -> None:
    """Verify a chain: its length, its links, every signature, and that no hop widens the scope.

    `keys`: the broker's public keys, 32 bytes each, by kid.

    Raises:
        InvalidToken: the chain was not made by the broker with these keys.
    """
    if len(chain) > MAX_DEPTH:
        raise InvalidToken(f"the delegation chain has more than {MAX_DEPTH} hops")
    if chain and chain[0].prev:
        raise InvalidToken("the delegation chain has lost its beginning")
    for before, record in pairwise(chain):
        if record.prev != _hash(before) or record.delegated_at < before.delegated_at:
            raise InvalidToken("a delegation does not follow the one before it")
        if record.agent != before.delegate or record.scope != before.granted:
            raise InvalidToken("a delegation hands on what was not given")
    for record in chain:
        if not record.granted or not scope_is_subset(record.granted, record.scope):
            raise InvalidToken("a delegation gives more than its delegator held")
        key = keys.get(record.kid)
        if key is None or not is_signature(_signature(record), _signed_bytes(record), key):
            raise InvalidToken("a delegation is not signed by a key of ours")
    if len({record.sid for record in chain}) != len(chain):
        raise InvalidToken("a grant stands in the delegation chain twice")


def _signature(record: DelegationRecord) -> bytes:
    try:
        return base64url.decode(record.signature)
    except ValueError:
        raise InvalidToken("a delegation's signature is not canonical base64url") from None


def _signed_bytes(record: DelegationRecord) -> bytes:
    members = _members(record)
    del members["signature"]
    return _CONTEXT + canonical.encode(members)


def _hash(record: DelegationRecord) -> str:
    return hashlib.sha256(canonical.encode(_members(record))).hexdigest()


def _members(record: DelegationRecord) -> dict[str, object]:
    return msgspec.structs.asdict(record)
