"""Rows that only the broker can have written."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.broker.storage.sealing import Sealer
from agentwrit.domain.app import App
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.grant import Grant
from tests.domain.records import make_app, make_grant

KEY = b"k" * 32
SEALER = Sealer(KEY)
BODY, MAC = SEALER.seal("grants", make_grant())


def test_a_sealed_record_is_opened_as_it_was() -> None:
    assert SEALER.open("grants", BODY, MAC, Grant) == make_grant()
    assert Sealer(KEY).open("grants", BODY, MAC, Grant) == make_grant()


@given(st.integers(0, len(BODY) - 1), st.integers(1, 255))
def test_a_body_with_any_one_byte_changed_is_refused(at: int, difference: int) -> None:
    body = bytearray(BODY)
    body[at] ^= difference
    with pytest.raises(TamperedRecord):
        SEALER.open("grants", bytes(body), MAC, Grant)


@pytest.mark.parametrize("mac", [b"", MAC[:-1], MAC + b"\0", bytes(32), MAC[:-1] + bytes([MAC[-1] ^ 1])])
def test_another_mac_is_refused(mac: bytes) -> None:
    with pytest.raises(TamperedRecord):
        SEALER.open("grants", BODY, mac, Grant)


def test_a_row_is_refused_in_another_table() -> None:
    body, mac = SEALER.seal("apps", make_app())
    assert SEALER.open("apps", body, mac, App) == make_app()
    with pytest.raises(TamperedRecord, match="launch_tokens"):
        SEALER.open("launch_tokens", body, mac, App)


def test_a_row_of_another_key_is_refused() -> None:
    with pytest.raises(TamperedRecord):
        Sealer(b"K" * 32).open("grants", BODY, MAC, Grant)


def test_a_text_in_the_place_of_bytes_is_refused() -> None:
    # SQLite keeps whatever type somebody wrote.
    with pytest.raises(TamperedRecord):
        SEALER.open("grants", BODY.decode(), MAC, Grant)  # type: ignore[arg-type]  # what a forged row gives
    with pytest.raises(TamperedRecord):
        SEALER.open("grants", BODY, MAC.hex(), Grant)  # type: ignore[arg-type]  # what a forged row gives


def test_a_key_has_a_name_that_does_not_show_it() -> None:
    assert SEALER.name == Sealer(KEY).name
    assert SEALER.name != Sealer(b"K" * 32).name
    assert KEY.hex() not in SEALER.name
    assert repr(KEY)[2:-1] not in repr(SEALER)


@pytest.mark.parametrize("name", ["colour", "is_live", "a member-name", "unknown_0", "scope_ceiling_2"])
def test_what_a_newer_version_put_into_a_row_stays_there_when_it_is_written_anew(name: str) -> None:
    value = {"of": ["another", 1, 2.5, None]}
    body = msgspec.json.encode({**msgspec.to_builtins(make_grant()), name: value})
    found = SEALER.open("grants", body, SEALER.mac("grants", body), Grant)
    assert isinstance(found, Grant)
    assert found.is_live(found.exp - 1)
    body, mac = SEALER.seal("grants", msgspec.structs.replace(found, exp=found.exp + 1))
    written = msgspec.json.decode(body)
    assert (written["exp"], written[name]) == (found.exp + 1, value)
    assert SEALER.open("grants", body, mac, Grant).exp == found.exp + 1


def test_a_row_that_lacks_what_this_version_knows_is_a_record_like_any_other() -> None:
    members = msgspec.to_builtins(make_app())
    del members["revision"], members["suspensions"]
    body = msgspec.json.encode(members)
    found = SEALER.open("apps", body, SEALER.mac("apps", body), App)
    assert type(found) is App
