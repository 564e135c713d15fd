"""The operator: whoever runs the broker, known by a password.

Unlike every other secret here the operator's may be chosen by a person, so it is stored as argon2id only.
"""

from typing import Final

import msgspec

SUBJECT: Final = "admin"

MIN_SECRET_LENGTH: Final = 8

LAUNCH_TOKENS_SCOPE: Final = "admin:launch-tokens:*"
REVOKE_SCOPE: Final = "admin:revoke:*"
AUDIT_SCOPE: Final = "admin:audit:*"
TOKEN_SCOPES: Final = (LAUNCH_TOKENS_SCOPE, REVOKE_SCOPE, AUDIT_SCOPE)


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's stored password. `password_hash` is in PHC form (`$argon2id$…`); times are Unix seconds.

    `revision` counts its states from 1; it is 0 for a password that was set before there were such numbers.
    """

    name: str
    password_hash: str
    created_at: int
    updated_at: int
    revision: int = 0
