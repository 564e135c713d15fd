"""Accesses: how tokens were used, as reported by resource servers.

The rules:

- An app may report only on tokens for the audiences whose resource server it is. The operator sets these audiences
  (`App.reports_for`).
- A report names a token by its grant and its own id (`sid`, `jti`), as issued. Both are 128 random bits, known only to
  the token's app and to those who were shown the token. (For a token that has been renewed more than once since, the
  broker knows that it was issued, but not on which grant.) From an hour after the token's end, reports are rejected.
- A successful access (`success`) must be covered by the token's scope. A refused one (`denied`) may exceed it.
- An access must lie within the lifetime of the token's grant and not in the future, allowing for clock skew
  (`SKEW_SECONDS`).
- Accesses that differ only in time are one access with a count and the times of the first and the last.
- The requested resource (`resource`) may be worded by the requester, so non-printable characters in it are escaped
  (`agentwrit.domain.text`).
- An accepted access is recorded as the claim of the app that reported it: the event's `principal` is that app.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from agentwrit.domain import scope, text, timestamps
from agentwrit.domain.audit import Outcome
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.grant import Grant, GrantKind

MAX_ACCESSES: Final = 64  # per report: all of them are recorded in one unit of work
MAX_COUNT: Final = 2**31 - 1
MAX_RESOURCE_LENGTH: Final = 256
SKEW_SECONDS: Final = 60

_MAX_ID_LENGTH: Final = 64


class NotTaken(StrEnum):
    """Why an access is not recorded."""

    TOKEN = "unknown_token"
    """No such token was issued to an agent for one of the reporter's audiences, or it ended too long ago."""
    SCOPE = "scope_not_covered"
    """The token did not cover the reported scope."""
    TIME = "outside_of_lifetime"
    """The reported time is before or after the grant's lifetime, or in the future."""


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """One use of a token, made `count` times. `first` and `last`: Unix seconds."""

    sid: str
    jti: str
    scope: tuple[str, ...]
    resource: str
    outcome: Outcome
    count: int
    first: float
    last: float


class Refused(msgspec.Struct, frozen=True):
    """An access that is not recorded: its index in the report, from 0, and the reason."""

    index: int
    reason: NotTaken


class Receipt(msgspec.Struct, frozen=True):
    """The result of a report: how many accesses were recorded, and which were refused."""

    recorded: int
    refused: tuple[Refused, ...] = ()


def read(
    *, sid: str, jti: str, scopes: Sequence[str], resource: str, outcome: str, count: int, first: str, last: str
) -> Access:
    """Read an access from its reported fields. Times are in RFC 3339.

    Raises:
        InvalidRequest: a field is invalid. The error names it.
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
    """Return the reason not to record an access, or None if it is to be recorded. `now`: Unix seconds.

    `grant`: the grant that the access names; `audiences`: the reporter's audiences; `is_superseded`: whether the named
    token was issued and has been renewed since.
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
    """For each used scope, the narrowest held scope that covers it, or an empty string if none does."""
    return [
        next((wide for wide in (one, *held) if wide in held and scope.scope_is_subset([one], [wide])), "")
        for one in used
    ]


def report(accesses: Sequence[Access]) -> Mapping[str, object]:
    """A report as a JSON object, by which idempotent retries are told from other reports."""
    return {"accesses": [msgspec.to_builtins(access) for access in accesses]}


def _time(field: str, value: str) -> float:
    try:
        return timestamps.parse_rfc3339(value)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{field} is not an RFC 3339 time", hint="for example 2026-01-31T23:59:59Z") from None
