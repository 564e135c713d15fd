"""Verifying tokens without asking, and without I/O: what is known of a broker's keys and revocations, and the rules.

The rules:

- A token is checked as the broker checks it: type, key, signature, issuer, audience, time, delegation chain; and then
  against the revocation feed (`agentwrit.domain.feed`), by its own ids and by those of every grant above it.
- What a signature says does not change, so a token's is checked once. Time, revocation and keys are checked every time.
- Nothing is accepted on revocations that may be out of date: when the last proof of being up to date is older than
  `max_staleness`, somebody else has to say whether the token holds.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.domain import base64url, feed, jwk
from agentwrit.domain import claims as claims_rules
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidToken
from agentwrit.domain.jws import ACCESS_TOKEN, REVOCATION_PAGE, REVOCATION_SNAPSHOT, Verifier, encoded_header
from agentwrit.domain.revocation import Revocation, RevocationIndex, RevocationKind
from agentwrit.domain.scope import uncovered
from agentwrit.errors import ScopeDenied
from agentwrit.models import AgentClaims, DelegationRecord

TOKENS_REMEMBERED: Final = 8192
SKEW_SECONDS: Final = 5  # by which clocks may differ before a page looks older than it is
MAX_PAGE_BYTES: Final = 1024 * 1024
MAX_SNAPSHOT_BYTES: Final = 1024 * 1024 * 1024


class OutOfStep(Exception):
    """The feed does not continue what is known: begin again with a snapshot."""


class Revocations:
    """What is known to be dead, and how fresh that knowledge is. Fed by one thread or task, read by all."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._index = RevocationIndex()
        self._pages = Verifier({}, typ=REVOCATION_PAGE)
        self._snapshots = Verifier({}, typ=REVOCATION_SNAPSHOT)
        self._epoch = ""
        self._ahead = float("-inf")  # by how much the broker's clock, as its pages show it, is ahead of the monotonic
        self.issuer = ""
        self.last = 0  # the number of the newest entry that is known
        self.fresh_at = float("-inf")  # on the monotonic clock: up to when everything is known

    def set_keys(self, jwks: Mapping[str, object]) -> None:
        """Take the keys that sign the feed.

        Raises:
            InvalidToken: they are none.
        """
        keys = jwk.public_keys(jwks)
        self._pages = Verifier(keys, typ=REVOCATION_PAGE, max_bytes=MAX_PAGE_BYTES)
        self._snapshots = Verifier(keys, typ=REVOCATION_SNAPSHOT, max_bytes=MAX_SNAPSHOT_BYTES)

    def begin(self, token: str) -> None:
        """Begin with a snapshot, and forget what was known before.

        Raises:
            InvalidToken: it is none.
        """
        snapshot = feed.read_snapshot(token, self._snapshots)
        if snapshot.epoch == self._epoch and snapshot.head < self.last:
            return  # it is older than what is known, and says nothing new
        index = RevocationIndex()
        index.add(map(_revocation, snapshot.entries))
        self._index = index
        self._epoch, self.last, self.issuer = snapshot.epoch, snapshot.head, snapshot.iss
        self.fresh_at = float("-inf")  # only a page that reaches the head says that this is all

    @property
    def have_begun(self) -> bool:
        """Whether anything is known that a page could continue."""
        return bool(self._epoch)

    def advance(self, token: str) -> None:
        """Take a page that has just arrived.

        Raises:
            InvalidToken: it is none.
            OutOfStep: it does not continue what is known.
        """
        page = feed.read_page(token, self._pages)
        if page.epoch != self._epoch or page.first > self.last + 1 or page.head < self.last:
            raise OutOfStep
        self._index.add(map(_revocation, page.entries))
        self.last = max(self.last, page.last)
        now, monotonic = self.clock.wall(), self.clock.monotonic()
        self._ahead = max(self._ahead, page.issued_at - monotonic)
        if self.last == page.head:
            # Older than the newest page by as much as it says, whatever our clock shows: who passes pages on late, or
            # again, gains nothing. And as old as it says by our clock, but for what clocks may differ.
            age = max(0.0, self._ahead + monotonic - page.issued_at, now - page.issued_at - SKEW_SECONDS)
            self.fresh_at = max(self.fresh_at, monotonic - age)
        self._index.forget(now)

    def now(self) -> float:
        """The time (Unix seconds): this machine's, or what the broker's pages say if that is later.

        So a clock that is behind lets no token live longer.
        """
        return max(self.clock.wall(), self._ahead + self.clock.monotonic())

    def is_revoked(self, names: "Names", now: float) -> bool:
        """Whether any of these is dead at `now`."""
        is_revoked = self._index.is_revoked
        return any(is_revoked(kind, digest, now) for kind, digest in names)

    def __len__(self) -> int:
        return len(self._index)


Names = tuple[tuple[RevocationKind, str], ...]


class Known(NamedTuple):
    """A token whose signature was checked: what it says, and what it dies with, as the feed names that.

    `is_plain`: it was not delegated, and is bound to no key.
    """

    claims: Claims
    kid: str
    names: Names
    public: AgentClaims
    is_plain: bool

    def shown(self) -> AgentClaims:
        """The claims, for a caller to keep, and to spoil for nobody else."""
        if not self.is_plain:
            return _public(self.claims)
        # What the constructor of a frozen dataclass does, a field at a time, takes longer than all of the check.
        copy = object.__new__(AgentClaims)
        copy.__dict__.update(self.public.__dict__, aud=self.public.aud.copy(), scope=self.public.scope.copy())
        return copy


class TokenChecker:
    """What one verifier knows and remembers. Safe to share between threads; keys and pages may arrive meanwhile.

    `audience`: whom the tokens must be for; None for the issuer itself, where nobody said otherwise.
    """

    def __init__(self, audience: Iterable[str] | None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.revocations = Revocations(clock)
        self._audience = None if audience is None else frozenset(audience)
        self._keys: Mapping[str, bytes] = {}
        self._verifier = Verifier({}, typ=ACCESS_TOKEN)
        self._known: OrderedDict[str, Known] = OrderedDict()

    def set_keys(self, jwks: Mapping[str, object]) -> None:
        """Take the keys that sign tokens. Tokens by a key that is no longer among them do not hold any more.

        Raises:
            InvalidToken: they are none.
        """
        keys = jwk.public_keys(jwks)
        self._keys, self._verifier = keys, Verifier(keys, typ=ACCESS_TOKEN)

    def check(self, token: str, now: float) -> Known:
        """What a token says, if it is genuine, meant for us, in time, and not known to be revoked.

        Whether what is known is fresh enough to rely on is the caller's to ask.

        Raises:
            InvalidToken: it does not hold.
        """
        known = self._known.get(token)
        if known is None:
            known = self._read(token)
            self._known[token] = known
            if len(self._known) > TOKENS_REMEMBERED:
                self._known.popitem(last=False)
        elif known.kid not in self._keys:
            raise InvalidToken("the key that signed the token is gone")
        claims_rules.check_time(known.claims, now)
        if self.revocations.is_revoked(known.names, now):
            raise InvalidToken("the token has been revoked")
        return known

    def is_by_unknown_key(self, token: str) -> bool:
        """Whether the token may be by a key that was not published when we last looked."""
        kid = _kid(token)
        return kid is not None and kid not in self._keys

    def _read(self, token: str) -> Known:
        kid, payload = self._verifier.verify(token)
        claims = claims_rules.decode(payload)
        claims_rules.check_issuer(claims, self.revocations.issuer)
        self.check_audience(claims.aud, claims.iss)
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

    def check_audience(self, aud: Iterable[str], issuer: str) -> None:
        """Refuse a token that is for others (RFC 8725 §3.9).

        Raises:
            InvalidToken: it is.
        """
        accepted = self._audience if self._audience is not None else (issuer,)
        if not any(name in accepted for name in aud):
            raise InvalidToken("the token is for another audience")


def check_scope(scope: Iterable[str] | str | None, held: Collection[str]) -> None:
    """Refuse a token that does not cover what is needed: a scope, or several.

    Raises:
        ScopeDenied: it does not.
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
            delegated_at=record.delegated_at,
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


def _revocation(entry: feed.FeedEntry) -> Revocation:
    """An entry of the feed, in an index by digest."""
    return Revocation(kind=entry.kind, id=entry.digest, effective_at=entry.effective_at, last_exp=entry.forget_at)


def _kid(token: str) -> str | None:
    """The kid of a header that is like ours but for its key."""
    header = token.partition(".")[0]
    try:
        members = msgspec.json.decode(base64url.decode(header[:512]), type=dict[str, str])
    except (ValueError, msgspec.DecodeError):
        return None
    kid = members.get("kid", "")
    return kid if len(kid) == 43 and header == encoded_header(kid, typ=ACCESS_TOKEN) else None
