"""Rows that only the broker can have written.

A row of authority is stored as its JSON body and an HMAC-SHA-256 over the table's name and the body, under a key that
is derived from the master key and never stored. Whoever can write the database file, but has no master key, can then
neither raise a ceiling nor plant a password, a key or a grant. (Deleting rows, or putting back old ones, is found by
the audit log instead.)

What a newer version has put into a row, and this one does not know, stays there when the row is written anew.
"""

import hashlib
import hmac
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from agentwrit.domain.errors import TamperedRecord

R = TypeVar("R", bound=msgspec.Struct)

ROWS_REMEMBERED: Final = 256
TYPES_REMEMBERED: Final = 64
BLOCK_BYTES: Final = 64  # of SHA-256


class Sealer:
    """Seals and opens rows. `key`: 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        # HMAC's two hashes (RFC 2104 §2) with the key taken up, to be copied: that takes as long as a row does, and so
        # do the layers of the standard library's.
        self._inner, self._outer = _padded(key, 0x36), _padded(key, 0x5C)
        self._encode = msgspec.json.Encoder().encode
        # An app's row is read for each of its agents. The same bytes are as genuine as they were.
        self._open = lru_cache(ROWS_REMEMBERED)(self.open_new)

    @property
    def name(self) -> str:
        """What tells this key from others, and tells nothing else of it."""
        return hmac.digest(self._key, b"name", "sha256").hex()

    def seal(self, table: str, record: msgspec.Struct) -> tuple[bytes, bytes]:
        """The body and the MAC of a record's row."""
        body = self._encode(record)
        return body, self.mac(table, body)

    def seal_all(self, table: str, records: Sequence[msgspec.Struct]) -> list[tuple[bytes, bytes]]:
        """The bodies and the MACs of many rows of one table: what `seal` does for one, faster."""
        bodies = [self._encode(record) for record in records]
        named = self._inner.copy()
        named.update(table.encode("ascii") + b"\n")
        begin, finish = named.copy, self._outer.copy
        sealed: list[tuple[bytes, bytes]] = []
        for body in bodies:
            inner, outer = begin(), finish()
            inner.update(body)
            outer.update(inner.digest())
            sealed.append((body, outer.digest()))
        return sealed

    def open(self, table: str, body: bytes, mac: bytes, record_type: type[R]) -> R:
        """The record that a row holds.

        Raises:
            TamperedRecord: the broker did not write this row.
        """
        record: R = self._open(table, body, mac, record_type)
        return record

    def open_new(self, table: str, body: bytes, mac: bytes, record_type: type[Any]) -> Any:
        """As `open`, for one of so many rows that none of them is to be remembered."""
        self.check(table, body, mac)
        record = msgspec.json.decode(body, type=record_type)
        return record if self._encode(record) == body else _whole(record, body)

    def check(self, table: str, body: object, mac: object) -> None:
        """Refuse a row whose MAC is not that of its body; a file edited by hand may hold any type of value.

        Raises:
            TamperedRecord: the broker did not write this row.
        """
        is_genuine = (
            isinstance(body, bytes) and isinstance(mac, bytes) and hmac.compare_digest(mac, self.mac(table, body))
        )
        if not is_genuine:
            raise TamperedRecord(f"a row of {table} was altered outside the broker")

    def mac(self, table: str, body: bytes) -> bytes:
        """What shows that a row of `table` with this body is ours."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(table.encode("ascii") + b"\n" + body)
        outer.update(inner.digest())
        return outer.digest()


def _whole(record: msgspec.Struct, body: bytes) -> msgspec.Struct:
    """The record with the members that its type does not know, for as long as it is only replaced by its like."""
    known = record.__struct_encode_fields__
    unknown = tuple(name for name in msgspec.json.decode(body, type=dict[str, msgspec.Raw]) if name not in known)
    return msgspec.json.decode(body, type=_wider(type(record), unknown)) if unknown else record


@lru_cache(TYPES_REMEMBERED)
def _wider(record_type: type[msgspec.Struct], unknown: tuple[str, ...]) -> type[msgspec.Struct]:
    """A type that has these members besides, by names that stand for nothing else."""
    names = {f"unknown_{number}": name for number, name in enumerate(unknown)}
    return msgspec.defstruct(
        record_type.__name__,
        [(field, Any) for field in names],
        bases=(record_type,),
        frozen=True,
        kw_only=True,
        rename=names,
    )


def _padded(key: bytes, pad: int) -> "hashlib._Hash":
    return hashlib.sha256(bytes(byte ^ pad for byte in key.ljust(BLOCK_BYTES, b"\0")))
