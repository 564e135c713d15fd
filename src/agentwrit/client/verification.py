"""Verifying tokens without asking, and without I/O: the broker's keys and revocations, as far as known, and the rules.

The rules:

- A token is checked as the broker checks it: type, key, signature, issuer, audience, time, delegation chain. Then it is
  checked against the revocation feed (`agentwrit.client.revocations`), by its own IDs and by those of every grant above
  it.
- Agents' tokens are accepted, and those of apps and operators only on request: by default, all have the same audience.
- A signature does not change, so it is checked once for each token. Time, revocation and keys are checked every time.
- Nothing is accepted on revocations that may be out of date: if they were last known to be complete more than
  `max_staleness` ago, only the broker can say whether the token is valid.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.client.revocations import Names, Revocations
from agentwrit.domain import base64url, feed, jwk
from agentwrit.domain import claims as claims_rules
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.grant import GrantKind, kind_of_subject
from agentwrit.domain.jws import ACCESS_TOKEN, Verifier, encoded_header
from agentwrit.domain.revocation import RevocationKind
from agentwrit.domain.scope import uncovered
from agentwrit.domain.timestamps import rfc3339
from agentwrit.errors import ScopeDenied
from agentwrit.models import AgentClaims, DelegationRecord
from agentwrit.recent import Recent

TOKENS_REMEMBERED: Final = 8192

REVOKED: Final = "the token has been revoked"


class Known(NamedTuple):
    """A token whose signature was checked: its claims, and the names in the feed that it dies with.

    `is_plain`: it is neither delegated nor bound.
    """

    claims: Claims
    kid: str
    names: Names
    public: AgentClaims
    is_plain: bool

    def shown(self) -> AgentClaims:
        """A copy of the claims that the caller may keep and change."""
        if not self.is_plain:
            return _public(self.claims)
        # Setting a frozen dataclass's fields one by one, as its constructor does, takes longer than the whole check.
        copy = object.__new__(AgentClaims)
        copy.__dict__.update(self.public.__dict__, aud=self.public.aud.copy(), scope=self.public.scope.copy())
        return copy


class TokenChecker:
    """What one verifier knows and remembers. Safe to share between threads, also while keys and pages arrive.

    `audience`: the audience that tokens must have; None for the issuer itself, the broker's default. `subjects`: the
    kinds of token holders that are accepted.
    """

    def __init__(
        self,
        audience: Iterable[str] | None,
        clock: Clock = SYSTEM_CLOCK,
        *,
        subjects: Iterable[GrantKind] = (GrantKind.AGENT,),
    ) -> None:
        self.revocations = Revocations(clock)
        self._audience = None if audience is None else frozenset(audience)
        self._subjects = frozenset(subjects)
        self._keys: Mapping[str, bytes] = {}
        self._verifier = Verifier({}, typ=ACCESS_TOKEN)
        self._known: Recent[str, Known] = Recent(TOKENS_REMEMBERED)

    def set_keys(self, jwks: Mapping[str, object]) -> None:
        """Set the keys that sign tokens. Tokens signed by other keys become invalid.

        Raises:
            InvalidToken: they are not a valid JWK set.
        """
        keys = jwk.public_keys(jwks)
        self._keys, self._verifier = keys, Verifier(keys, typ=ACCESS_TOKEN)

    def check(self, token: str, now: float) -> Known:
        """A token, if it is genuine, has the right audience, is within its time, and is not known to be revoked.

        The caller has to check whether the known revocations are fresh enough.

        Raises:
            InvalidToken: the token is not valid.
        """
        known = self._genuine(token)
        claims_rules.check_time(known.claims, now)
        if self.revocations.is_revoked(known.names, now):
            raise InvalidToken(REVOKED)
        return known

    def is_known_dead(self, token: str) -> bool:
        """Whether a token is known to be revoked, however old that knowledge is: a revocation is final."""
        try:
            names = self._genuine(token).names
        except InvalidToken:
            return False
        return self.revocations.is_revoked(names, self.revocations.now())

    def is_by_unknown_key(self, token: str) -> bool:
        """Whether the token may be signed by a key that was published after the last fetch."""
        kid = _kid(token)
        return kid is not None and kid not in self._keys

    def _genuine(self, token: str) -> Known:
        known = self._known.get(token)
        if known is None:
            known = self._read(token)
            self._known.put(token, known)
        elif known.kid not in self._keys:
            raise InvalidToken("the key that signed the token is gone")
        return known

    def _read(self, token: str) -> Known:
        kid, payload = self._verifier.verify(token)
        claims = claims_rules.decode(payload)
        claims_rules.check_issuer(claims, self.revocations.issuer)
        self.check_meant(claims.sub, claims.aud, claims.iss)
        claims_rules.check_delegation(claims, self._keys)
        named = [
            (RevocationKind.GRANT, claims.sid),
            (RevocationKind.TOKEN, claims.jti),
            (RevocationKind.KEY, kid),
        ]
        for record in claims.delegation_chain:
            named += [(RevocationKind.GRANT, record.sid), (RevocationKind.KEY, record.kid)]
        names = tuple((kind, feed.digest(name)) for kind, name in named)
        is_plain = not claims.delegation_chain and claims.cnf is None
        return Known(claims, kid, names, _public(claims), is_plain)

    def check_meant(self, subject: str, aud: Iterable[str], issuer: str) -> None:
        """Refuse a token for another audience (RFC 8725 §3.9), or of a kind of holder that is not accepted.

        Raises:
            InvalidToken: the token is refused.
        """
        kind = kind_of_subject(subject)
        if kind not in self._subjects:
            raise InvalidToken(f"the token is that of an {kind.value}, and not of an agent")
        accepted = self._audience if self._audience is not None else (issuer,)
        if not any(name in accepted for name in aud):
            raise InvalidToken("the token is for another audience")


def check_scope(scope: Iterable[str] | str | None, held: Collection[str]) -> None:
    """Refuse a token that does not cover the needed scope or scopes.

    Raises:
        ScopeDenied: the token does not cover them.
    """
    if scope is None or scope in held:
        return
    needed = [scope] if isinstance(scope, str) else list(scope)
    if uncovered(needed, held):
        raise ScopeDenied(needed, list(held))


def _public(claims: Claims) -> AgentClaims:
    chain = [
        DelegationRecord(
            agent=record.agent,
            scope=list(record.scope),
            delegated_at=rfc3339(record.delegated_at),
            signature=record.signature,
            sid=record.sid,
            delegate=record.delegate,
            granted=list(record.granted),
            prev=record.prev,
            kid=record.kid,
        )
        for record in claims.delegation_chain
    ]
    return AgentClaims(
        iss=claims.iss,
        sub=claims.sub,
        aud=list(claims.aud),
        exp=claims.exp,
        nbf=claims.nbf,
        iat=claims.iat,
        jti=claims.jti,
        scope=claims.scope.split(" "),
        task_id=claims.task_id,
        orch_id=claims.orch_id,
        sid=claims.sid,
        delegation_chain=chain or None,
        chain_hash=claims.chain_hash or None,
        client_id=claims.client_id,
        cnf=None if claims.cnf is None else {"jkt": claims.cnf.jkt},
    )


def _kid(token: str) -> str | None:
    """The kid of a token header, if the header is otherwise the broker's."""
    header = token.partition(".")[0]
    try:
        members = msgspec.json.decode(base64url.decode(header[:512]), type=dict[str, str])
    except (ValueError, msgspec.DecodeError):
        return None
    kid = members.get("kid", "")
    return kid if len(kid) == 43 and header == encoded_header(kid, typ=ACCESS_TOKEN) else None
