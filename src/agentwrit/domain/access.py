"""Accesses: what resource servers report that was done with tokens.

The rules:

- An app reports on tokens that were for an audience whose resource server it is. The operator says which these are
  (`App.reports_for`); of others' tokens it can say nothing.
- A token is named by its grant and its own id (`sid`, `jti`), as they were issued. Both are 128 random bits, which only
  its app and whoever is shown it are told. (Of a token that was renewed more than once since it is known that it was
  issued, and not on which grant.) An hour after its end nothing is taken on it any more.
- What was done (`success`) the token covered. What was refused (`denied`) may be beyond it.
- It was done in the life of the token's grant, and not in the future, as far as clocks agree (`SKEW_SECONDS`).
- What is the same but for its time is one access with a count, and the times of the first and the last.
- What was asked for (`resource`) may have been worded by who asked: what is not printable in it is escaped
  (`agentwrit.domain.text`).
- What is taken is recorded as the word of the app that said it: it is the event's principal.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from agentwrit.domain import scope, text, timestamps
from agentwrit.domain.audit import Outcome
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import Grant, GrantKind

MAX_ACCESSES: Final = 64  # in a report: all of them are recorded in one unit of work
MAX_COUNT: Final = 2**31 - 1
MAX_RESOURCE_LENGTH: Final = 256
SKEW_SECONDS: Final = 60

_MAX_ID_LENGTH: Final = 64


class NotTaken(StrEnum):
    """Why an access is not recorded."""

    TOKEN = "unknown_token"
    """It is on no token that was issued to an agent for an audience of the reporter's, or on one of long ago."""
    SCOPE = "scope_not_covered"
    """The token did not cover what is said to have been done."""
    TIME = "outside_of_lifetime"
    """It is said to have been before the grant, after it, or in the future."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What was done with one token, `count` times. `first` and `last`: Unix seconds."""

    sid: str
    jti: str
    scope: tuple[str, ...]
    resource: str
    outcome: Outcome
    count: int
    first: float
    last: float


class Refused(msgspec.Struct, frozen=True):
    """An access that is not recorded: its place in the report, from 0, and why."""

    index: int
    reason: NotTaken


class Receipt(msgspec.Struct, frozen=True):
    """What became of a report."""

    recorded: int
    refused: tuple[Refused, ...] = ()


def read(
    *, sid: str, jti: str, scopes: Sequence[str], resource: str, outcome: str, count: int, first: str, last: str
) -> Access:
    """An access as it is reported, times in RFC 3339.

    Raises:
        InvalidRequest: a field is not what it should be. Names it.
    """
    for field, value, longest in (
        ("sid", sid, _MAX_ID_LENGTH),
        ("jti", jti, _MAX_ID_LENGTH),
        ("resource", resource, MAX_RESOURCE_LENGTH),
    ):
        if not 0 < len(value) <= longest:
            raise InvalidRequest(f"{field} takes 1 to {longest} characters")
    if outcome not in set(Outcome):
        raise InvalidRequest("outcome has no such value", hint=f"one of {', '.join(Outcome)}")
    if not 1 <= count <= MAX_COUNT:
        raise InvalidRequest(f"count takes a whole number from 1 to {MAX_COUNT}")
    access = Access(
        sid=sid,
        jti=jti,
        scope=scope.parse_list(scopes, field="scope"),
        resource=text.escaped(resource, MAX_RESOURCE_LENGTH),
        outcome=Outcome(outcome),
        count=count,
        first=_time("first", first),
        last=_time("last", last),
    )
    if access.first > access.last:
        raise InvalidRequest("first is later than last")
    return access


def decide(
    access: Access, grant: Grant | None, audiences: Sequence[str], now: float, *, is_superseded: bool
) -> NotTaken | None:
    """Why an access is not to be recorded, or None if it is. `now`: Unix seconds.

    `grant`: the one that it names; `audiences`: those that the reporter answers for; `is_superseded`: whether the token
    that it names was issued, and has been renewed since.
    """
    if grant is None or grant.kind is not GrantKind.AGENT or not set(audiences) & set(grant.audience):
        return NotTaken.TOKEN
    if access.jti not in (grant.jti, grant.previous_jti) and not is_superseded:
        return NotTaken.TOKEN
    if access.outcome is Outcome.SUCCESS and not scope.scope_is_subset(access.scope, grant.scope):
        return NotTaken.SCOPE
    if access.first < grant.created_at - SKEW_SECONDS or access.last > min(now, grant.exp) + SKEW_SECONDS:
        return NotTaken.TIME
    return None


def granted_as(used: Sequence[str], held: Sequence[str]) -> list[str]:
    """For each scope that was used the one of those held that made it possible, the narrowest; empty where none did."""
    return [
        next((wide for wide in (one, *held) if wide in held and scope.scope_is_subset([one], [wide])), "")
        for one in used
    ]


def report(accesses: Sequence[Access]) -> Mapping[str, object]:
    """A report in the form that tells it from another one."""
    return {"accesses": [msgspec.to_builtins(access) for access in accesses]}


def _time(field: str, value: str) -> float:
    try:
        return timestamps.parse_rfc3339(value)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{field} is not an RFC 3339 time", hint="for example 2026-01-31T23:59:59Z") from None
