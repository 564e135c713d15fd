"""The Authorization header of a request (RFC 9110 §11.6.2), as all routes and guards read it.

A request with two such headers presents two tokens, and another program might read the other one. Neither is used.
"""

from collections.abc import Sequence
from typing import NamedTuple


class SeveralCredentials(Exception):
    """A request has more than one Authorization header."""


class Authorization(NamedTuple):
    """The content of the header. `scheme`: in lower case; `credentials`: the text after the scheme, possibly empty."""

    scheme: str
    credentials: str

    def __repr__(self) -> str:
        return f"Authorization(scheme={self.scheme!r})"


def read(fields: Sequence[str]) -> Authorization | None:
    """Read the Authorization header from all its field values. Returns None if there is none.

    Raises:
        SeveralCredentials: there is more than one.
    """
    if len(fields) > 1:
        raise SeveralCredentials
    if not fields:
        return None
    scheme, _, credentials = fields[0].partition(" ")
    return Authorization(scheme.lower(), credentials.strip())
