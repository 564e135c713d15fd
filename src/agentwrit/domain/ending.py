"""Endings: which grants a revocation or a similar change ends, and how far that work has come.

The rules:

- An ending names the grants that are alive when it begins, and no later ones. Its beginning is a sequence number of the
  audit log. A grant records where the log ended when it was made, so their order does not depend on clocks.
- The first unit of work ends as many grants as it may. If others are left, the same unit commits a record of the
  ending. From that commit on, all named grants are refused. After a crash, a broker continues from the record.
- Later units of work, of bounded size, end the rest, with a revocation and an event for each grant. The dependents of a
  grant (see `agentwrit.domain.grant`) are found when that grant ends.
- The remaining work is a stack. The newest entry is done first, so the depth of the stack is at most the length of a
  chain times the grants that one unit ends.
- An ending is over when its stack is empty.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from agentwrit.domain import delegation, scope
from agentwrit.domain.audit import About, Draft
from agentwrit.domain.claims import Claims
from agentwrit.domain.grant import EndReason, Grant, GrantKind, ended
from agentwrit.domain.revocation import Revocation, RevocationKind

ANNOUNCED_SECONDS: Final = 3600
"""How long brokers remember an announced ending, unless its record announces it again."""


class EndingLevel(StrEnum):
    """How an ending selects its grants."""

    TOKEN = "token"
    """The grant whose current token has this jti."""
    GRANT = "grant"
    """The grant of this sid."""
    CHAIN = "chain"
    """The registration of the agent with this SPIFFE ID."""
    AGENT = "agent"
    """All grants of the agent with this SPIFFE ID."""
    TASK = "task"
    """All agents' grants for this task_id."""
    APP = "app"
    """All grants that came through the app with this id, including its own logins."""
    CEILING = "ceiling"
    """Grants of agents of the app with this id that exceed what its agents may hold now."""
    SECRET = "secret"
    """Logins of the app with this id, except those on the secret that is kept."""
    OPERATOR = "operator"
    """The logins of the operator with this name; empty for the first operator."""
    KEY = "key"
    """All grants with a token or delegation that the key with this kid may have signed."""
    OUTLIVING = "outliving"
    """Delegations from the grant of this sid that expire after a given time."""
    ALL = "all"


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """The grants that an ending selects: by `level`, and by the `target` that the level takes.

    `client_id`: that of the app, if the target is an app.

    CEILING: grants within `scopes` and, if given, `audiences` are kept; `must_be_bound`: whether unbound grants are
    selected. SECRET: `credential` is the fingerprint of the secret that is kept, if any; logins on it end at `until`
    (Unix seconds) unless that is 0. OUTLIVING: `exp` is the time (Unix seconds).
    """

    level: EndingLevel
    target: str = ""
    client_id: str = ""
    scopes: tuple[str, ...] = ()
    audiences: tuple[str, ...] | None = None
    must_be_bound: bool = False
    credential: bytes = b""
    until: int = 0
    exp: int = 0

    def matches(self, grant: Grant) -> bool:
        """Whether a live grant is selected."""
        return _MATCHES[self.level](self, grant)

    def ends_later(self, grant: Grant) -> bool:
        """Whether a live grant is not selected, but ends at `until`."""
        is_kept = self.level is EndingLevel.SECRET and bool(self.credential) and grant.credential == self.credential
        return is_kept and self.until > 0


def _is_beyond(named: Named, grant: Grant) -> bool:
    """Whether a grant of the app exceeds what its agents may hold now."""
    return (
        not scope.scope_is_subset(grant.scope, named.scopes)
        or (named.audiences is not None and not set(grant.audience) <= set(named.audiences))
        or (named.must_be_bound and not grant.is_bound)
    )


def _is_agents(grant: Grant) -> bool:
    return grant.kind is GrantKind.AGENT


def _is_login_of(app_id: str, grant: Grant) -> bool:
    return grant.kind is GrantKind.APP and grant.app_id == app_id


_MATCHES: Final[Mapping[EndingLevel, Callable[[Named, Grant], bool]]] = {
    EndingLevel.TOKEN: lambda named, grant: grant.jti == named.target,
    EndingLevel.GRANT: lambda named, grant: grant.sid == named.target,
    EndingLevel.CHAIN: lambda named, grant: grant.is_registration and grant.subject == named.target,
    EndingLevel.AGENT: lambda named, grant: _is_agents(grant) and grant.subject == named.target,
    EndingLevel.TASK: lambda named, grant: _is_agents(grant) and grant.task_id == named.target,
    EndingLevel.APP: lambda named, grant: grant.app_id == named.target,
    EndingLevel.CEILING: lambda named, grant: (
        _is_agents(grant) and grant.app_id == named.target and _is_beyond(named, grant)
    ),
    EndingLevel.SECRET: lambda named, grant: (
        _is_login_of(named.target, grant) and (not named.credential or grant.credential != named.credential)
    ),
    EndingLevel.OPERATOR: lambda named, grant: grant.kind is GrantKind.OPERATOR and grant.operator == named.target,
    EndingLevel.KEY: lambda named, grant: grant.is_signed_by(named.target),
    EndingLevel.OUTLIVING: lambda named, grant: grant.parent_sid == named.target and grant.exp > named.exp,
    EndingLevel.ALL: lambda named, grant: True,
}


class End(NamedTuple):
    """The end of a live grant.

    `event` is its audit event without the fields that say whom it is about, and usually without the `jti` in its data:
    by default that is the jti of the grant's current token.
    """

    grant: Grant
    why: EndReason
    event: Draft

    def ended(self, now: float) -> Grant:
        """The grant after its end."""
        return ended(self.grant, self.why, now)

    def revocation(self, now: float) -> Revocation:
        """The revocation of the grant. It also covers an earlier revocation that was to take effect later."""
        grant = self.grant
        return Revocation(kind=RevocationKind.GRANT, id=grant.sid, effective_at=int(now), last_exp=grant.exp)

    def draft(self) -> Draft:
        """The complete event."""
        data = {"jti": self.grant.jti, **self.event.data}
        return msgspec.structs.replace(self.event, data=data, **about(self.grant)._asdict())


def about(grant: Grant) -> About:
    """The fields of an event that identify a grant and its holder."""
    return About(
        grant.app_id,
        grant.subject if grant.kind is GrantKind.AGENT else "",
        grant.task_id,
        grant.orch_id,
        grant.sid,
        len(grant.chain),
        delegation.chain_hash(grant.chain),
    )


class TodoKind(StrEnum):
    """Which grants an entry of the stack is about."""

    NAMED = "named"
    """The grants that the ending names."""
    BELOW = "below"
    """Delegations from the grant of this sid, which has ended."""
    DELEGATES = "delegates"
    """Delegations to the agent with this SPIFFE ID, whose registration has ended."""


class Todo(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of an ending's stack: grants that it still has to end. `of_kind`: only grants of this kind.

    `ended_with`: the grant that these grants end with; `behind`: the place up to which the work is done.
    """

    kind: TodoKind
    name: str = ""
    of_kind: GrantKind | None = None
    ended_with: str = ""
    behind: int = 0


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """An ending and its progress.

    `at`: the last sequence number of the audit log when the ending began; `began_at`: that time (Unix seconds);
    `reason`, `actor` and `data`: for the events of the grants that it names; `client_address`, `resource`, `request_id`
    and `trace_id`: those of the request; `count`: how many grants it has ended; `done_at`: when it was over (Unix
    seconds), or 0.
    """

    id: str
    at: int
    began_at: int
    reason: str
    actor: str
    named: Named | None = None
    data: dict[str, str | int | list[str]] = {}
    client_address: str = ""
    resource: str = ""
    request_id: str = ""
    trace_id: str = ""
    todo: tuple[Todo, ...] = ()
    count: int = 0
    done_at: int = 0

    @property
    def is_over(self) -> bool:
        return not self.todo

    def barred(self, now: float) -> Iterable[Revocation]:
        """Revocations of the agents whose delegations are still to be ended, so that these are dead at once."""
        for todo in self.todo:
            if todo.kind is TodoKind.DELEGATES:
                yield Revocation(
                    kind=RevocationKind.SUBJECT,
                    id=todo.name,
                    effective_at=int(now),
                    last_exp=int(now) + ANNOUNCED_SECONDS,
                )

    @property
    def is_naming(self) -> bool:
        """Whether grants that it names are still to be ended."""
        return any(todo.kind is TodoKind.NAMED for todo in self.todo)

    def names(self, grant: Grant) -> bool:
        """Whether the ending names a grant that has not ended: the grant must have been alive when the ending began."""
        was_alive = grant.born <= self.at and grant.exp > self.began_at
        return was_alive and self.named is not None and self.named.matches(grant)


class Announced(msgspec.Struct, frozen=True):
    """What every broker must know about an ending in progress, to tell which tokens it may affect.

    `name`: the target as tokens name it: a client_id for an app.
    """

    id: str
    level: EndingLevel
    name: str

    @classmethod
    def of(cls, ending: Ending) -> "Announced | None":
        """The announcement of an ending; None if all grants that it names have ended or are known to be dead."""
        if ending.named is None or not ending.is_naming or ending.named.level in _KNOWN_OTHERWISE:
            return None
        return cls(ending.id, ending.named.level, ending.named.client_id or ending.named.target)

    @classmethod
    def parse(cls, revocation: Revocation) -> "Announced":
        """Read the announcement from a revocation of the kind ENDING."""
        ending_id, level, name = revocation.id.split(":", 2)
        return cls(ending_id, EndingLevel(level), name)

    def entry(self, now: float) -> Revocation:
        """The revocation entry that announces the ending to every broker."""
        name = f"{self.id}:{self.level.value}:{self.name}"
        return Revocation(
            kind=RevocationKind.ENDING, id=name, effective_at=int(now), last_exp=int(now) + ANNOUNCED_SECONDS
        )

    def may_name(self, claims: Claims) -> bool:
        """Whether the ending may name the grant of a token or one above it, so that the grants must be looked up."""
        match self.level:
            case EndingLevel.TASK:
                # An agent's own task is part of its SPIFFE ID. A delegation belongs to the delegator's task.
                agents = (claims.sub, *(record.agent for record in claims.delegation_chain))
                return self.name == claims.task_id or any(f"/{self.name}/" in agent for agent in agents)
            case EndingLevel.APP | EndingLevel.CEILING:
                # A token does not say to which apps its delegators belong.
                return claims.client_id == self.name or bool(claims.delegation_chain)
            case EndingLevel.SECRET:
                return claims.client_id == self.name and not claims.task_id
            case EndingLevel.OUTLIVING:
                return any(record.sid == self.name for record in claims.delegation_chain)
            case _:
                return not claims.client_id  # an operator's login, or an agent that an operator launched


# A revoked key makes its tokens dead. Each of the others names one grant, which ended when the ending began.
_KNOWN_OTHERWISE: Final = frozenset(
    {EndingLevel.TOKEN, EndingLevel.GRANT, EndingLevel.CHAIN, EndingLevel.AGENT, EndingLevel.KEY, EndingLevel.ALL}
)
