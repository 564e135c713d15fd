"""The Authorization header of a request (RFC 9110 §11.6.2): what every route and every guard reads it by.

A request that has it twice shows two tokens, and whoever reads on might take the other one: it has none that counts.
"""

from collections.abc import Sequence
from typing import NamedTuple


class SeveralCredentials(Exception):
    """A request has more than one Authorization header."""


class Authorization(NamedTuple):
    """`scheme`: in lower case; `credentials`: what follows it, perhaps nothing."""

    scheme: str
    credentials: str

    def __repr__(self) -> str:
        return f"Authorization(scheme={self.scheme!r})"


def read(fields: Sequence[str]) -> Authorization | None:
    """What the request's Authorization fields say, None where there is none.

    Raises:
        SeveralCredentials: there is more than one.
    """
    if len(fields) > 1:
        raise SeveralCredentials
    if not fields:
        return None
    scheme, _, credentials = fields[0].partition(" ")
    return Authorization(scheme.lower(), credentials.strip())
