"""The audit log as a tiled log: checked with the standards' words alone, and nothing of ours."""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import VerifyKey

from tests.support import BrokerProcess, bearer, problem


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker with some hundred events, to which nobody else adds."""
    with BrokerProcess(tmp_path_factory.mktemp("audit") / "data") as broker:
        app = broker.app()
        for _ in range(70):
            broker.release(app.agent()["access_token"])
        yield broker


def checkpoint(broker: BrokerProcess) -> tuple[int, bytes]:
    """The size and root of a checkpoint of all that is in the log, its signature checked as C2SP signed-note says."""
    answer = broker.http.post("/v1/audit/checkpoint", headers=broker.admin())
    assert answer.status_code == 200, answer.text
    return opened(broker, answer.text)


def opened(broker: BrokerProcess, note: str) -> tuple[int, bytes]:
    text, _, signatures = note.rpartition("\n\n")
    origin, size, root = text.split("\n")
    dash, name, encoded = signatures.rstrip("\n").split(" ")
    assert (origin, dash) == (name, "\u2014")
    signature = base64.b64decode(encoded)
    for listed in broker.http.get("/v1/audit/keys").json()["keys"]:
        key_name, key_id, key = listed["verifier_key"].split("+", 2)
        public = base64.b64decode(key)
        assert key_name == name
        assert public[0] == 1
        assert bytes.fromhex(key_id) == hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
        if signature[:4].hex() == key_id:
            VerifyKey(public[1:]).verify(f"{text}\n".encode(), signature[4:])
            return int(size), base64.b64decode(root)
    raise AssertionError("no key of the log has signed this")


def tree_hash(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, of leaves that are hashed."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def entries(broker: BrokerProcess, size: int) -> list[bytes]:
    found: list[bytes] = []
    headers = broker.admin()
    for number in range(-(-size // 256)):
        width = min(256, size - number * 256)
        suffix = "" if width == 256 else f".p/{width}"
        answer = broker.http.get(f"/v1/audit/tile/entries/{number:03d}{suffix}", headers=headers)
        assert answer.status_code == 200, answer.text
        rest = answer.content
        while rest:
            length = int.from_bytes(rest[:2], "big")
            found.append(rest[2 : 2 + length])
            rest = rest[2 + length :]
    assert len(found) == size
    return found


def leaf(entry: bytes) -> bytes:
    return hashlib.sha256(b"\0" + entry).digest()


def test_a_mirror_needs_nothing_but_the_tiles_and_the_key(own: BrokerProcess) -> None:
    size, root = checkpoint(own)
    assert size > 256
    copied = entries(own, size)
    leaves = list(map(leaf, copied))
    assert tree_hash(leaves) == root
    assert own.http.get("/v1/audit/tile/0/000").content == b"".join(leaves[:256])
    assert own.http.get(f"/v1/audit/tile/0/001.p/{size - 256}").content == b"".join(leaves[256:])
    assert own.http.get("/v1/audit/tile/1/000.p/1").content == tree_hash(leaves[:256])
    previous = "0" * 64
    for number, entry in enumerate(copied, 1):
        event = json.loads(entry)
        assert (event["id"], event["prev_hash"]) == (f"evt-{number:06d}", previous)
        previous = hashlib.sha256(entry).hexdigest()
    shown = own.events(after="evt-000002")
    has = {name: value for name, value in json.loads(copied[2]).items() if value != ""}
    assert shown[0] == {**has, "hash": hashlib.sha256(copied[2]).hexdigest()}


def up(found: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """From a leaf to the root, as RFC 9162 §2.1.3.2 walks."""
    position, last = index, size - 1
    for value in path:
        if position % 2 or position == last:
            found = hashlib.sha256(b"\1" + value + found).digest()
            while position % 2 == 0 and position:
                position, last = position >> 1, last >> 1
        else:
            found = hashlib.sha256(b"\1" + found + value).digest()
        position, last = position >> 1, last >> 1
    assert last == 0
    return found


@pytest.mark.parametrize("number", [1, 2, 100, 256, 257, 300])
def test_every_event_is_proven_to_be_in_the_log(own: BrokerProcess, number: int) -> None:
    size, _ = checkpoint(own)
    answer = own.http.get("/v1/audit/proof/inclusion", params={"event": f"evt-{number:06d}"}).json()
    covered, root = opened(own, answer["checkpoint"])
    assert (answer["index"], answer["size"]) == (number - 1, covered)
    assert covered >= size
    path = [base64.b64decode(value) for value in answer["proof"]]
    assert up(leaf(entries(own, number)[-1]), number - 1, covered, path) == root


def test_every_log_continues_what_it_was(own: BrokerProcess) -> None:
    first_size, first_root = checkpoint(own)
    own.app()
    second_size, second_root = checkpoint(own)
    assert second_size > first_size
    leaves = list(map(leaf, entries(own, second_size)))
    assert tree_hash(leaves[:first_size]) == first_root
    answer = own.http.get("/v1/audit/proof/consistency", params={"old": first_size, "new": second_size}).json()
    assert (answer["old"], answer["new"]) == (first_size, second_size)
    # What a proof from a full subtree holds is what leads from that subtree up (RFC 9162 §2.1.4.1).
    whole = own.http.get("/v1/audit/proof/consistency", params={"old": 256, "new": second_size}).json()
    hashes = [base64.b64decode(value) for value in whole["proof"]]
    found = tree_hash(leaves[:256])
    for value in hashes:
        found = hashlib.sha256(b"\1" + found + value).digest()
    assert found == second_root


def test_what_was_served_once_stays_as_it_was(own: BrokerProcess) -> None:
    size, _ = checkpoint(own)
    path = f"/v1/audit/tile/0/001.p/{size - 256}"
    before = own.http.get(path)
    assert before.headers["content-type"] == "application/octet-stream"
    assert "immutable" in before.headers["cache-control"]
    own.app()
    checkpoint(own)
    assert own.http.get(path).content == before.content


def test_a_checkpoint_is_text_that_is_not_cached_for_long(own: BrokerProcess) -> None:
    answer = own.http.get("/v1/audit/checkpoint")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=1"
    opened(own, answer.text)


def test_a_log_that_has_not_grown_keeps_its_checkpoint(own: BrokerProcess) -> None:
    headers = own.admin()
    first, second = (own.http.post("/v1/audit/checkpoint", headers=headers).text for _ in range(2))
    assert first == second


def test_strangers_see_hashes_and_no_event(own: BrokerProcess) -> None:
    assert own.http.get("/v1/audit/tile/0/000").status_code == 200
    problem(own.http.get("/v1/audit/tile/entries/000"), 401, "unauthorized")
    problem(own.http.post("/v1/audit/checkpoint"), 401, "unauthorized")
    app = bearer(own.app().token())
    problem(own.http.get("/v1/audit/tile/entries/000", headers=app), 403, "insufficient_scope")
    problem(own.http.post("/v1/audit/checkpoint", headers=app), 403, "insufficient_scope")


@pytest.mark.parametrize(
    "path",
    [
        "0/002",
        "0/000.p/0",
        "0/000.p/257",
        "0/000.p/256",
        "1/000",
        "1/000.p/2",
        "3/000",
        "9/000",
        "0/x000/000",
        "x",
        "0/1",
    ],
)
def test_a_tile_that_is_not_there_is_not_found(own: BrokerProcess, path: str) -> None:
    problem(own.http.get(f"/v1/audit/tile/{path}"), 404, "not_found")


def test_a_bundle_that_is_not_there_is_not_found(own: BrokerProcess) -> None:
    for path in ("entries/002", "entries/001", "entries/x999/999/000", "entries/000.p/0"):
        problem(own.http.get(f"/v1/audit/tile/{path}", headers=own.admin()), 404, "not_found")


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        ("inclusion", {}, 400),
        ("inclusion", {"event": "1"}, 400),
        ("inclusion", {"event": "evt-000000"}, 404),
        ("inclusion", {"event": "evt-999999"}, 404),
        ("inclusion", {"event": "evt-000001", "size": "1"}, 400),
        ("consistency", {"old": "1"}, 400),
        ("consistency", {"old": "3", "new": "2"}, 400),
        ("consistency", {"old": "-1", "new": "2"}, 400),
        ("consistency", {"old": "1", "new": "9999999"}, 400),
        ("consistency", {"old": "1", "new": "99999999999999999999"}, 400),
    ],
)
def test_what_cannot_be_proven_is_refused(own: BrokerProcess, path: str, params: dict[str, str], status: int) -> None:
    code = {400: "invalid_request", 404: "not_found"}[status]
    problem(own.http.get(f"/v1/audit/proof/{path}", params=params), status, code)


def test_old_checkpoints_hold_after_the_key_was_rotated_and_new_ones_are_by_the_next(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        headers = broker.admin()
        before = broker.http.post("/v1/audit/checkpoint", headers=headers).text
        body = {"purpose": "audit_checkpoint", "force": True}
        assert broker.http.post("/v1/admin/keys/rotate", json=body, headers=headers).status_code == 200
        after = broker.http.post("/v1/audit/checkpoint", headers=headers).text
        signers = [note.rpartition(" ")[2][:5] for note in (before, after)]
        assert signers[0] != signers[1]
        assert opened(broker, before)[0] < opened(broker, after)[0]


def test_the_last_checkpoint_before_the_end_covers_everything(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        broker.app()
        [*_, last] = broker.events()
        broker.stop()
        broker.start()
        size, _ = opened(broker, broker.http.get("/v1/audit/checkpoint").text)
        assert size >= int(last["id"].removeprefix("evt-"))


@pytest.mark.parametrize("name", ["principal", "sid", "client_address", "request_id", "trace_id", "app_id"])
def test_events_are_found_by_each_of_their_fields(own: BrokerProcess, name: str) -> None:
    headers = {**own.admin(), "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    body = {"name": f"seen-by-{name.replace('_', '-')}", "scopes": ["read:data:*"]}
    assert own.http.post("/v1/admin/apps", json=body, headers=headers).status_code == 201
    event: dict[str, Any] = own.events(event_type="app_registered")[-1]
    assert event[name]
    found = own.events(**{name: event[name]})
    assert event in found
    assert {other[name] for other in found} == {event[name]}
