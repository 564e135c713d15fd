"""SPIFFE identities of agents: `spiffe://<trust domain>/agent/<orch_id>/<task_id>/<instance>`.

The SPIFFE-ID standard (§2.2) allows `[A-Za-z0-9._-]` in a path segment, but not `.` or `..` as a whole segment. A
segment here has 1 to 128 of these characters, so the text that a caller chooses for it cannot affect the rest of the
id.
"""

import re
from typing import Final

from agentwrit.domain.errors import InvalidRequest

INSTANCE_BYTES: Final = 8
MAX_LENGTH: Final = 2048  # SPIFFE-ID §2.3

_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")  # SPIFFE-ID §2.1


def for_agent(trust_domain: str, orch_id: str, task_id: str, instance: bytes) -> str:
    """The identity of one agent. `instance`: 8 bytes from a CSPRNG."""
    return f"spiffe://{trust_domain}/agent/{orch_id}/{task_id}/{instance.hex()}"


def check_segment(value: str, *, field: str) -> str:
    """Return `value` if it is a valid segment of a SPIFFE path.

    Raises:
        InvalidRequest: it is not valid. The error names `field`.
    """
    if _SEGMENT.fullmatch(value) is None or value in (".", ".."):
        raise InvalidRequest(
            f"{field} is not a SPIFFE path segment",
            hint=f"{field} takes 1 to 128 characters of A-Z a-z 0-9 . _ - and is neither . nor ..",
        )
    return value


def is_trust_domain(value: str) -> bool:
    """Whether `value` is a SPIFFE trust domain name (§2.1)."""
    return _TRUST_DOMAIN.fullmatch(value) is not None
