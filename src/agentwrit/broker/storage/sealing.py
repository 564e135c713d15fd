"""Rows that only the broker can have written.

A row of authority is stored as its JSON body and an HMAC-SHA-256 over the table's name and the body, under a key that
is derived from the master key and never stored. Whoever can write the database file, but has no master key, can then
neither raise a ceiling nor plant a password, a key or a grant. (Deleting rows, or putting back old ones, is found by
the audit log instead.)
"""

import hmac
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec

from agentwrit.domain.errors import TamperedRecord

R = TypeVar("R", bound=msgspec.Struct)

ROWS_REMEMBERED: Final = 256


class Sealer:
    """Seals and opens rows. `key`: 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._keyed = hmac.new(key, digestmod="sha256")  # to be copied: taking up the key takes as long as a row does
        self._encode = msgspec.json.Encoder().encode
        # An app's row is read for each of its agents. The same bytes are as genuine as they were.
        self._open = lru_cache(ROWS_REMEMBERED)(self._open_new)

    @property
    def name(self) -> str:
        """What tells this key from others, and tells nothing else of it."""
        return hmac.digest(self._key, b"name", "sha256").hex()

    def seal(self, table: str, record: msgspec.Struct) -> tuple[bytes, bytes]:
        """The body and the MAC of a record's row."""
        body = self._encode(record)
        return body, self.mac(table, body)

    def open(self, table: str, body: bytes, mac: bytes, record_type: type[R]) -> R:
        """The record that a row holds.

        Raises:
            TamperedRecord: the broker did not write this row.
        """
        record: R = self._open(table, body, mac, record_type)
        return record

    def _open_new(self, table: str, body: bytes, mac: bytes, record_type: type[Any]) -> Any:
        self.check(table, body, mac)
        return msgspec.json.decode(body, type=record_type)

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
        mac = self._keyed.copy()
        mac.update(table.encode("ascii") + b"\n" + body)
        return mac.digest()
