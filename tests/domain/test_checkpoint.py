"""Signed notes, checkpoints and the paths of tiles: as C2SP writes them, and in no other spelling."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import checkpoint, merkle, note, tiles
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.jws import Ed25519Signer
from agentwrit.domain.note import VerifierKey
from agentwrit.domain.tiles import EntryBundle, HashTile

# The example of the package that notes come from (golang.org/x/mod/sumdb/note).
PUBLISHED_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PUBLISHED_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PUBLISHED_NOTE = (
    f"{PUBLISHED_TEXT}\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)

SIGNER = Ed25519Signer(bytes(range(32)))
OTHER = Ed25519Signer(bytes(32))
NAME = "agentwrit.local/audit"
KEY = VerifierKey(NAME, SIGNER.public_key)
CHECKPOINT = Checkpoint(NAME, 20_852_163, bytes(range(32)))
SIGNED = checkpoint.sign(CHECKPOINT, SIGNER.public_key, SIGNER)


def signed_text(text: str) -> str:
    """A note of this text, whatever it is."""
    signature = base64.b64encode(KEY.id + SIGNER.sign(text.encode())).decode()
    return f"{text}\n— {NAME} {signature}\n"


def test_the_published_note_is_genuine() -> None:
    key = VerifierKey.parse(PUBLISHED_KEY)
    assert str(key) == PUBLISHED_KEY
    assert note.open_note(PUBLISHED_NOTE, [key]) == PUBLISHED_TEXT


def test_a_checkpoint_is_three_lines_and_a_signature() -> None:
    root = base64.b64encode(bytes(range(32))).decode()
    assert SIGNED.startswith(f"{NAME}\n20852163\n{root}\n\n— {NAME} ")
    assert checkpoint.read(SIGNED, [KEY]) == CHECKPOINT
    assert checkpoint.unverified(SIGNED) == CHECKPOINT
    assert note.is_signed_by(SIGNED, KEY)
    assert not note.is_signed_by(SIGNED, VerifierKey(NAME, OTHER.public_key))


def test_signatures_of_unknown_keys_are_passed_over() -> None:
    # What witnesses add (C2SP signed-note: 16 signatures at least are taken).
    others = "".join(f"— witness-{number} {base64.b64encode(bytes(68)).decode()}\n" for number in range(16))
    assert checkpoint.read(SIGNED + others, [KEY]) == CHECKPOINT
    assert checkpoint.read(SIGNED, [VerifierKey(NAME, OTHER.public_key), KEY]) == CHECKPOINT


def test_a_checkpoint_may_say_more_in_further_lines() -> None:
    assert checkpoint.read(signed_text(CHECKPOINT.text + "and more\n"), [KEY]) == CHECKPOINT


@pytest.mark.parametrize(
    "keys",
    [[], [VerifierKey(NAME, OTHER.public_key)], [VerifierKey("another.example/audit", SIGNER.public_key)]],
)
def test_a_checkpoint_by_no_known_key_is_refused(keys: list[VerifierKey]) -> None:
    with pytest.raises(TamperedRecord, match="not signed by a key"):
        checkpoint.read(SIGNED, keys)


def test_one_false_signature_by_a_known_key_spoils_the_note() -> None:
    false = base64.b64encode(KEY.id + OTHER.sign(CHECKPOINT.text.encode())).decode()
    with pytest.raises(TamperedRecord, match="does not match"):
        checkpoint.read(f"{SIGNED}— {NAME} {false}\n", [KEY])


def test_a_log_may_not_sign_for_another() -> None:
    foreign = checkpoint.sign(CHECKPOINT._replace(origin="other.example"), SIGNER.public_key, SIGNER)
    relabelled = foreign.replace("— other.example", f"— {NAME}")
    with pytest.raises(TamperedRecord):
        checkpoint.read(relabelled, [KEY])
    with pytest.raises(TamperedRecord, match="another log"):
        checkpoint.read(signed_text(CHECKPOINT._replace(origin="other.example").text), [KEY])


@given(st.integers(0, len(SIGNED) - 1), st.characters())
def test_no_character_of_the_text_can_be_another(at: int, char: str) -> None:
    altered = SIGNED[:at] + char + SIGNED[at + 1 :]
    try:
        found = checkpoint.read(altered, [KEY])
    except TamperedRecord:
        return
    assert found == CHECKPOINT
    assert altered == SIGNED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"{NAME}\n",
        f"{NAME}\n1\n",
        f"{NAME}\n01\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n-1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n+1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n١\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n{10**30}\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n1\n{base64.b64encode(bytes(31)).decode()}\n",
        f"{NAME}\n1\n{base64.b64encode(bytes(32)).decode()[:-1]}\n",
        f"{NAME}\n1\n{base64.b64encode(bytes(32)).decode()[:-2]}B=\n",
        f"\n{NAME}\n1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n1\n{base64.b64encode(bytes(32)).decode()}\n\nmore\n",
        f"{NAME}\n0\n{base64.b64encode(bytes(32)).decode()}\n",
    ],
)
def test_what_is_no_checkpoint_is_refused_though_it_is_signed(text: str) -> None:
    with pytest.raises(TamperedRecord):
        checkpoint.read(signed_text(text), [KEY])


def test_an_empty_log_has_the_root_of_nothing() -> None:
    empty = Checkpoint(NAME, 0, merkle.EMPTY_ROOT)
    assert checkpoint.read(checkpoint.sign(empty, SIGNER.public_key, SIGNER), [KEY]) == empty


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000+",
        PUBLISHED_KEY + " ",
        PUBLISHED_KEY.replace("c74f20a3", "C74F20A3"),
        PUBLISHED_KEY.replace("c74f20a3", "c74f20a4"),
        PUBLISHED_KEY.replace("+ARpc", "+AhpC"),
        PUBLISHED_KEY.replace("PeterNeumann", "Peter Neumann"),
        PUBLISHED_KEY[:-4],
    ],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="verifier key"):
        VerifierKey.parse(text)


@pytest.mark.parametrize("text", ["no new line", "a\rb\n", "a\x00b\n", "\ud800\n"])
def test_what_is_no_text_is_not_signed(text: str) -> None:
    with pytest.raises(ValueError, match="whole lines"):
        note.sign(text, NAME, SIGNER.public_key, SIGNER)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\nb"])
def test_what_is_no_name_signs_nothing(name: str) -> None:
    with pytest.raises(ValueError, match="spaces"):
        note.sign("text\n", name, SIGNER.public_key, SIGNER)


# -- tiles ------------------------------------------------------------------------------------------------------------


def test_paths_are_those_of_the_standard() -> None:
    assert HashTile(0, 1_234_067).path == "0/x001/x234/067"
    assert EntryBundle(1_234_067, 8).path == "entries/x001/x234/067.p/8"
    assert HashTile(1, 0, 1).path == "1/000.p/1"


@given(st.integers(0, 7), st.integers(0, 10**17), st.integers(1, 256))
def test_a_path_leads_back(level: int, number: int, width: int) -> None:
    for tile in (HashTile(level, number, width), EntryBundle(number, width)):
        assert tiles.parse_path(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "",
        "0",
        "0/",
        "0/0",
        "0/0000",
        "8/000",
        "00/000",
        "0/x000/001",
        "0/x001",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/01",
        "0/000.p/",
        "0/000.p/999",
        "entries/1",
        "entries/000.p/999",
        "0/000/",
        "/0/000",
        "0/000\n",
        "0/٠٠٠",
        "data/000",
        "-1/000",
    ],
)
def test_another_spelling_of_a_path_is_none(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        tiles.parse_path(path)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_a_bundle_gives_its_entries_back(entries: list[bytes]) -> None:
    assert list(tiles.unbundle(tiles.bundle(entries))) == entries


@pytest.mark.parametrize("data", [b"\0", b"\0\1", b"\0\1a\0", b"\xff\xffa"])
def test_a_bundle_that_is_cut_off_is_refused(data: bytes) -> None:
    with pytest.raises(TamperedRecord, match="not whole"):
        list(tiles.unbundle(data))


def test_a_note_that_is_too_long_or_has_too_many_signatures_is_none() -> None:
    key, others = VerifierKey("log", SIGNER.public_key), "\u2014 other AAAAAAA=\n"
    for lines, signatures, is_taken in (
        (note.MAX_NOTE_BYTES // 2 - 200, 1, True),
        (note.MAX_NOTE_BYTES // 2, 1, False),
        (1, note.MAX_SIGNATURES, True),
        (1, note.MAX_SIGNATURES + 1, False),
    ):
        text = "x\n" * lines
        signed = note.sign(text, "log", SIGNER.public_key, SIGNER) + others * (signatures - 1)
        if is_taken:
            assert note.open_note(signed, [key]) == text
        else:
            with pytest.raises(TamperedRecord):
                note.open_note(signed, [key])
