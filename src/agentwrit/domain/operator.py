"""Operators: those who run the broker, each known by a password.

The rules:

- Unlike every other secret here an operator's may be chosen by a person, so it is stored as argon2id only.
- The first operator is made with the broker and is meant where nobody is named. Others have names, and may do the same.
- The tokens of all say `admin`. Events say who it was: `admin`, or `admin:` and the name.
- One who was removed has no password, and stays known. The name may be taken again.
- The last one is not removed: nobody would be left to make another.
"""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from agentwrit.domain.errors import InvalidRequest

SUBJECT: Final = "admin"
"""The `sub` of operators' tokens, and the name of the first operator."""

MIN_SECRET_LENGTH: Final = 8
MAX_SECRET_LENGTH: Final = 1024

LAUNCH_TOKENS_SCOPE: Final = "admin:launch-tokens:*"
REVOKE_SCOPE: Final = "admin:revoke:*"
AUDIT_SCOPE: Final = "admin:audit:*"
TOKEN_SCOPES: Final = (LAUNCH_TOKENS_SCOPE, REVOKE_SCOPE, AUDIT_SCOPE)

_NAME = re.compile(r"[a-z][a-z0-9._@-]{0,63}")


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """An operator and their stored password. Times are Unix seconds, 0 where they do not apply.

    `password_hash` is in PHC form (`$argon2id$…`), empty once the operator was removed. `revision` counts their states
    from 1; it is 0 for a password that was set before there were such numbers.
    """

    name: str
    password_hash: str
    created_at: int
    updated_at: int
    revision: int = 0
    removed_at: int = 0

    @property
    def is_active(self) -> bool:
        return not self.removed_at


def check_name(name: str) -> str:
    """`name`, if an operator can have it.

    Raises:
        InvalidRequest: it cannot.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            "name is not an operator's name",
            hint="up to 64 characters: a lowercase letter, then lowercase letters, digits and any of . _ @ -",
        )
    return name


def principal(name: str) -> str:
    """The operator of this name, as events say who acted. In tokens and grants the first one's name is empty."""
    return SUBJECT if name in ("", SUBJECT) else f"{SUBJECT}:{name}"


def is_last(name: str, operators: Iterable[Operator]) -> bool:
    """Whether nobody would be left of `operators` if the one of this name was removed."""
    return not any(other.is_active and other.name != name for other in operators)
