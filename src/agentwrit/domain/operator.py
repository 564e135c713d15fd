"""Operators: the people who run the broker. Each has a password.

The rules:

- Unlike all other secrets, an operator's password may be chosen by a person, so it is stored only as an argon2id hash.
- The first operator is created with the broker and is the default if no name is given. The others have names and the
  same permissions.
- The `sub` of all operators' tokens is `admin`. Events identify the operator: `admin`, or `admin:` and the name.
- The record of a removed operator is kept, without the password. The name may be reused.
- The last operator cannot be removed, because nobody could add another one.
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
    """An operator and their stored password. Times are Unix seconds; 0 means not applicable.

    `password_hash`: in PHC form (`$argon2id$…`), empty after removal. `revision`: counts the operator's states from 1;
    0 if the password was set before revisions existed.
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
    """Return `name` if it is a valid name of an operator.

    Raises:
        InvalidRequest: `name` is not valid.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidRequest(
            "name is not an operator's name",
            hint="up to 64 characters: a lowercase letter, then lowercase letters, digits and any of . _ @ -",
        )
    return name


def principal(name: str) -> str:
    """The `principal` of events by the operator with this name. In tokens and grants the first one's name is empty."""
    return SUBJECT if name in ("", SUBJECT) else f"{SUBJECT}:{name}"


def is_last(name: str, operators: Iterable[Operator]) -> bool:
    """Whether removing the operator with this name would leave no active operator."""
    return not any(other.is_active and other.name != name for other in operators)
