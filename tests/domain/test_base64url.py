"""base64url, in its one canonical spelling."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentwrit.domain import base64url


@given(st.binary(max_size=200))
def test_decode_gives_back_what_encode_took(data: bytes) -> None:
    assert base64url.decode(base64url.encode(data)) == data


@given(st.text(alphabet="ABab01-_+/= \n.", max_size=12))
def test_every_text_that_decodes_is_the_spelling_of_its_bytes(text: str) -> None:
    try:
        data = base64url.decode(text)
    except ValueError:
        return
    assert base64url.encode(data) == text


@pytest.mark.parametrize(
    "text",
    ["QQ==", "QQ=", "QR", "QUJ", "Q", "QUJD\n", " QUJD", "QU JD", "+/+/", "QUJD.", "QUJD=", "====", "ÄÄÄÄ", "QUJD\0"],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (any reason is right)
        base64url.decode(text)


def test_the_example_of_rfc_7515_appendix_c() -> None:
    assert base64url.encode(bytes([3, 236, 255, 224, 193])) == "A-z_4ME"
    assert base64url.decode("A-z_4ME") == bytes([3, 236, 255, 224, 193])


@pytest.mark.parametrize("more", [-1, 0, 1, 2, 3, base64url.PIECE_BYTES + 1])
def test_what_is_encoded_in_pieces_is_one(more: int) -> None:
    data = bytes(range(251)) * (base64url.PIECE_BYTES // 251 + 2 + max(0, more))
    data = data[: base64url.PIECE_BYTES + more]
    assert base64url.encode(data) == base64.urlsafe_b64encode(data).rstrip(b"=").decode()
