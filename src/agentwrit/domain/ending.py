"""Ending many grants: what names them, and how far their end has come.

The rules:

- An ending names the grants that are alive when it begins, and no later ones. When it began is a place in the audit
  log: a grant knows where the log ended when it was made, so which came first is never a question of clocks.
- What it can end at once it ends in the unit of work that it begins in. For the rest a record is committed in that same
  unit. From that commit on all that is named is refused, whatever happens to the broker: the record is what a broker
  goes on from.
- The rest is ended in steps of bounded size, each a unit of work: with a revocation and an event for each grant. What
  falls with a grant (see `agentwrit.domain.grant`) is found when that grant ends.
- What is still to do is a stack. The newest entry is worked on first, so the stack is never deeper than chains are,
  times what one step ends.
- An ending whose stack is empty is over.
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
"""For how long brokers remember what was announced of an ending, if its record does not tell them again."""


class EndingLevel(StrEnum):
    """What an ending names its grants by."""

    TOKEN = "token"
    """The grant whose current token has this jti."""
    GRANT = "grant"
    """The grant of this sid."""
    CHAIN = "chain"
    """The registration of the agent of this SPIFFE id."""
    AGENT = "agent"
    """All that the agent of this SPIFFE id holds."""
    TASK = "task"
    """All agents' grants for this task_id."""
    APP = "app"
    """All that came through the app of this id, its own logins included."""
    CEILING = "ceiling"
    """What the agents of the app of this id hold beyond what they may by now."""
    SECRET = "secret"
    """The logins of the app of this id on other secrets than the one that is kept."""
    OPERATOR = "operator"
    """The logins of the operator of this name; empty for the first one."""
    KEY = "key"
    """All that the key of this kid may have signed."""
    OUTLIVING = "outliving"
    """What was delegated from the grant of this sid and lives beyond a time."""
    ALL = "all"


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """Which grants an ending is about: `level`, and the `target` that it takes.

    `client_id` is that of the app, where the target is one.

    CEILING: `scopes` covers what is not named, `audiences` likewise where they are given, and `must_be_bound` says
    whether unbound grants are named. SECRET: `credential` is the fingerprint of the secret that is kept, if any, and
    logins on it end at the time `until` (Unix seconds), where that is not 0. OUTLIVING: `exp` is the time (Unix
    seconds).
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
        """Whether a grant that is alive is one of these."""
        return _MATCHES[self.level](self, grant)

    def ends_later(self, grant: Grant) -> bool:
        """Whether a grant that is alive is not one of these, but ends at the time `until`."""
        is_kept = self.level is EndingLevel.SECRET and bool(self.credential) and grant.credential == self.credential
        return is_kept and self.until > 0


def _is_beyond(named: Named, grant: Grant) -> bool:
    """Whether a grant of the app is beyond what its agents may hold by now."""
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
    """The end of a grant that is alive.

    `event` is what is recorded of it, but whom it is about, and in its data the jti of the grant's token: unless it
    says another one.
    """

    grant: Grant
    why: EndReason
    event: Draft

    def ended(self, now: float) -> Grant:
        """The grant after it."""
        return ended(self.grant, self.why, now)

    def revocation(self, now: float) -> Revocation:
        """The entry that tells everybody. Where the end was to come later, it says all that the first entry did."""
        grant = self.grant
        return Revocation(kind=RevocationKind.GRANT, id=grant.sid, effective_at=int(now), last_exp=grant.exp)

    def draft(self) -> Draft:
        """The whole event."""
        data = {"jti": self.grant.jti, **self.event.data}
        return msgspec.structs.replace(self.event, data=data, **about(self.grant)._asdict())


def about(grant: Grant) -> About:
    """Whoever holds a grant, in the fields of an event."""
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
    """What an entry of the stack is about."""

    NAMED = "named"
    """What the ending names."""
    BELOW = "below"
    """What was delegated from the grant of this sid, which has ended."""
    DELEGATES = "delegates"
    """What was delegated to the agent of this SPIFFE id, whose registration has ended."""


class Todo(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that an ending still has to do. `of_kind`: only grants of this kind.

    `ended_with`: the grant that these fall with; `behind`: the place up to which it was done.
    """

    kind: TodoKind
    name: str = ""
    of_kind: GrantKind | None = None
    ended_with: str = ""
    behind: int = 0


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """An ending, and how far it has come.

    `at`: where the audit log ended when it began (a sequence number), `began_at`: when (Unix seconds). `reason`,
    `actor` and `data` are what the events say of the grants that it names; `client_address`, `resource`, `request_id`
    and `trace_id` are those of the request. `count`: how many grants it has ended. `done_at`: when it was over, or 0.
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
        """The entries by which what is left of agents' delegations is dead by the agents' names."""
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
        """Whether it still has to end grants that it names."""
        return any(todo.kind is TodoKind.NAMED for todo in self.todo)

    def names(self, grant: Grant) -> bool:
        """Whether a grant that has not ended is one that it names: one that was alive when it began."""
        was_alive = grant.born <= self.at and grant.exp > self.began_at
        return was_alive and self.named is not None and self.named.matches(grant)


class Announced(msgspec.Struct, frozen=True):
    """What every broker has to know of an ending that is under way: whose tokens it may be about.

    `name` is that of the target in tokens: a client_id for an app.
    """

    id: str
    level: EndingLevel
    name: str

    @classmethod
    def of(cls, ending: Ending) -> "Announced | None":
        """What is to be known of an ending; None where it names nothing more, or what it names is known to be dead."""
        if ending.named is None or not ending.is_naming or ending.named.level in _KNOWN_OTHERWISE:
            return None
        return cls(ending.id, ending.named.level, ending.named.client_id or ending.named.target)

    @classmethod
    def parse(cls, revocation: Revocation) -> "Announced":
        """What an entry of the kind ENDING says."""
        ending_id, level, name = revocation.id.split(":", 2)
        return cls(ending_id, EndingLevel(level), name)

    def entry(self, now: float) -> Revocation:
        """The entry that tells every broker."""
        name = f"{self.id}:{self.level.value}:{self.name}"
        return Revocation(
            kind=RevocationKind.ENDING, id=name, effective_at=int(now), last_exp=int(now) + ANNOUNCED_SECONDS
        )

    def may_name(self, claims: Claims) -> bool:
        """Whether the grant of a token, or one that it falls with, may be named: then the grants are worth a look."""
        match self.level:
            case EndingLevel.TASK:
                # An agent's own task is part of its SPIFFE id; what was delegated to it is for the delegator's.
                agents = (claims.sub, *(record.agent for record in claims.delegation_chain))
                return self.name == claims.task_id or any(f"/{self.name}/" in agent for agent in agents)
            case EndingLevel.APP | EndingLevel.CEILING:
                # Whose agents it was delegated by, a token does not say.
                return claims.client_id == self.name or bool(claims.delegation_chain)
            case EndingLevel.SECRET:
                return claims.client_id == self.name and not claims.task_id
            case EndingLevel.OUTLIVING:
                return any(record.sid == self.name for record in claims.delegation_chain)
            case _:
                return not claims.client_id  # an operator's login, or what an operator launched


# A key's tokens are dead with the key. Of the others nothing but one grant is named, with which the ending began.
_KNOWN_OTHERWISE: Final = frozenset(
    {EndingLevel.TOKEN, EndingLevel.GRANT, EndingLevel.CHAIN, EndingLevel.AGENT, EndingLevel.KEY, EndingLevel.ALL}
)
