"""Scopes: what a credential may do, as `action:resource:identifier`.

The rules:

- A scope is split at its first two colons; an identifier may hold more of them.
- Each part is one or more characters of the OAuth scope alphabet (RFC 6749 §3.3): printable ASCII except space, `"`
  and `\\`. A scope has at most 256 characters, a list at most 64 scopes.
- `*` is a wildcard only as the whole identifier. In an action or a resource it is refused; in a longer identifier it is
  an ordinary character.
- A scope covers another if action and resource are equal and its identifier is equal or `*`. The reverse does not hold:
  `read:data:42` does not cover `read:data:*`.
- A list is a subset of another if each of its scopes is covered by a scope of the other. The empty list is a subset of
  any list, but no credential is issued with an empty scope.

The broker and the SDK share this implementation.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from agentwrit.domain.errors import InvalidRequest

MAX_SCOPE_LENGTH: Final = 256
MAX_SCOPES: Final = 64
WILDCARD: Final = "*"
PARSED_SCOPES_REMEMBERED: Final = 4096

# RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E ); the first two parts also without ":" and "*".
_SCOPE = re.compile(r"(?P<action>[!#-)+-9;-\[\]-~]+):(?P<resource>[!#-)+-9;-\[\]-~]+):(?P<identifier>[!#-\[\]-~]+)")


class Scope(NamedTuple):
    """A parsed scope."""

    action: str
    resource: str
    identifier: str

    def covers(self, requested: "Scope") -> bool:
        """Whether this scope allows what `requested` names."""
        return (
            self.action == requested.action
            and self.resource == requested.resource
            and self.identifier in (WILDCARD, requested.identifier)
        )


def parse(text: str) -> Scope:
    """Parse a scope.

    Raises:
        InvalidRequest: `text` is not of the form `action:resource:identifier`.
    """
    scope = _parse_or_none(text)
    if scope is None:
        raise InvalidRequest(
            f"scope {text[:MAX_SCOPE_LENGTH]!r} is not of the form action:resource:identifier",
            hint="each part is printable ASCII without space, quote or backslash; * may only be the whole identifier",
        )
    return scope


def parse_list(scopes: Sequence[str], *, field: str) -> tuple[str, ...]:
    """Check a list of scopes for a credential. Returns them unchanged, in the same order.

    Raises:
        InvalidRequest: the list is empty or too long, or contains an invalid scope. The error names `field`.
    """
    if not scopes:
        raise InvalidRequest(f"{field} must name at least one scope")
    if len(scopes) > MAX_SCOPES:
        raise InvalidRequest(f"{field} holds {len(scopes)} scopes; at most {MAX_SCOPES} are allowed")
    for scope in scopes:
        try:
            parse(scope)
        except InvalidRequest as error:
            raise InvalidRequest(f"{field}: {error.detail}", hint=error.hint) from None
    return tuple(scopes)


def scope_is_subset(requested: Iterable[str], allowed: Iterable[str]) -> bool:
    """Whether every scope in `requested` is covered by one in `allowed`, by the broker's own rule.

    A malformed scope is covered by nothing and covers nothing.

        scope_is_subset(["read:data:42"], ["read:data:*"])  # True
        scope_is_subset(["read:data:*"], ["read:data:42"])  # False

    Raises:
        TypeError: an argument is a string instead of a list of strings.
    """
    return not uncovered(requested, allowed)


def uncovered(requested: Iterable[str], allowed: Iterable[str]) -> tuple[str, ...]:
    """The scopes in `requested` that nothing in `allowed` covers, in their order.

    Raises:
        TypeError: an argument is a string instead of a list of strings.
    """
    if isinstance(requested, str) or isinstance(allowed, str):
        raise TypeError("scopes are given as a list of strings, not as one string")
    held = [scope for scope in map(_parse_or_none, allowed) if scope is not None]
    return tuple([text for text in requested if not _is_covered(_parse_or_none(text), held)])


def _is_covered(requested: Scope | None, held: Iterable[Scope]) -> bool:
    if requested is None:
        return False
    for scope in held:  # noqa: SIM110  # called several times per request, and a generator is slower
        if scope.covers(requested):
            return True
    return False


def _parse_or_none(text: str) -> Scope | None:
    # Checked before caching: strangers send texts of any length.
    return None if len(text) > MAX_SCOPE_LENGTH else _remembered(text)


@lru_cache(PARSED_SCOPES_REMEMBERED)
def _remembered(text: str) -> Scope | None:
    match = _SCOPE.fullmatch(text)
    return None if match is None else Scope(*match.groups())
