"""DPoP proofs (RFC 9449): signatures that show that the sender of a request holds a key.

The rules:

- A proof is a compact JWS. Its header has exactly `typ` (dpop+jwt), `alg` and `jwk`, the public key that signed it
  (`agentwrit.domain.agent_key`), without the private part (§4.2, §4.3). A proof with a duplicate member is rejected.
- A proof is for one method and one URL (`agentwrit.domain.target_uri`). If it accompanies a token, it has the hash of
  that token (`ath`, §4.3).
- A proof is valid for 30 seconds before and after its `iat`. A proof with a nonce, meant for a client with a wrong
  clock, is accepted by the broker while the nonce is the broker's own and fresh, and its `iat` is ignored (§8).
  (Otherwise the proof would become valid again at the time in `iat`, when its use is no longer remembered.)
- A proof is accepted once. Its `jti` is remembered for as long as the proof is valid.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, Final

import msgspec

from agentwrit.domain import agent_key, base64url, jwk, target_uri
from agentwrit.domain.agent_key import is_signature
from agentwrit.domain.errors import InvalidProof, WrongTarget
from agentwrit.domain.jws import ALGORITHM, MAX_TOKEN_BYTES

TYPE: Final = "dpop+jwt"
WINDOW_SECONDS: Final = 30
MAX_PROOF_BYTES: Final = 4096
MAX_JTI_LENGTH: Final = 128
MAX_IAT: Final = 2**53
TOKENS_REMEMBERED: Final = 256

# Headers written by `make` are these two parts with the key in base64url in between, and need no parsing.
_HEADER_BEGIN: Final = f'{{"typ":"{TYPE}","alg":"{ALGORITHM}","jwk":{{"kty":"OKP","crv":"Ed25519","x":"'.encode("ascii")
_HEADER_END: Final = b'"}}'
_HEADER_BYTES: Final = len(_HEADER_BEGIN) + 43 + len(_HEADER_END)


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """A proof that is genuine and for this request. `public_key`: as in `agent_key`; `iat`: Unix seconds.

    `nonce`: empty if there is none; `single_use_id`: 32 bytes to remember, so that the proof is accepted only once.
    """

    public_key: bytes
    jti: str
    iat: float
    nonce: str
    single_use_id: bytes

    def is_timely(self, now: float) -> bool:
        """Whether `now` is within the window around its `iat`."""
        return abs(now - self.iat) <= WINDOW_SECONDS


def make(
    sign: Callable[[bytes], bytes],
    public_key: bytes,
    *,
    htm: str,
    htu: str,
    iat: int,
    jti: str,
    token: str | None = None,
    nonce: str | None = None,
) -> str:
    """Make a proof. `sign`: signs with the private key of `public_key`; `token`: the access token sent along."""
    header = _HEADER_BEGIN + base64url.encode(public_key).encode("ascii") + _HEADER_END
    claims: dict[str, object] = {"htm": htm, "htu": htu, "iat": iat, "jti": jti}
    if token is not None:
        claims["ath"] = token_hash(token)
    if nonce is not None:
        claims["nonce"] = nonce
    signing_input = f"{base64url.encode(header)}.{base64url.encode(msgspec.json.encode(claims))}"
    return f"{signing_input}.{base64url.encode(sign(signing_input.encode('ascii')))}"


def target(url: str) -> str:
    """The `htu` of a proof for a request to this URL (RFC 9449 §4.2): without query, fragment and user.

    Raises:
        ValueError: `url` is not an absolute URL.
    """
    return target_uri.without_user(url)


def token_hash(token: str) -> str:
    """The `ath` of a proof that accompanies this token (RFC 9449 §4.2)."""
    return _remembered_hash(token) if len(token) <= MAX_TOKEN_BYTES else _hash(token)


def _hash(token: str) -> str:
    return base64url.encode(hashlib.sha256(token.encode("utf-8")).digest())


_remembered_hash = lru_cache(TOKENS_REMEMBERED)(_hash)  # an app registers many agents with the same token


def check(text: str, *, htm: str, htu: str | Collection[str], token: str | None) -> Proof:
    """Verify that a proof is genuine and for this request. The caller must check that it is timely and new.

    `htu`: the request's URL, or several if the server is known under several names.

    Raises:
        WrongTarget: the proof is valid, but for another URL.
        InvalidProof: the proof is not genuine, or is for another request.
    """
    if len(text) > MAX_PROOF_BYTES:
        raise InvalidProof("the proof is larger than 4 KiB")
    parts = text.split(".")
    if len(parts) != 3:
        raise InvalidProof("the proof is no compact JWS")
    try:
        header, claims = base64url.decode(parts[0]), _members(base64url.decode(parts[1]))
        signature = base64url.decode(parts[2])
        public_key = _public_key(header)
    except (ValueError, RecursionError):
        raise InvalidProof("the proof is not canonical base64url of JSON objects") from None
    if not is_signature(signature, f"{parts[0]}.{parts[1]}".encode("ascii"), public_key):
        raise InvalidProof("the proof's signature does not match")
    if claims.get("htm") != htm:
        raise InvalidProof("the proof is for another method")
    if claims.get("ath") != (None if token is None else token_hash(token)):
        raise InvalidProof("the proof is for another token")
    jti, iat, nonce = claims.get("jti"), claims.get("iat"), claims.get("nonce", "")
    if not isinstance(jti, str) or not 0 < len(jti) <= MAX_JTI_LENGTH or not jti.isprintable():
        raise InvalidProof("the proof has no usable jti")
    if isinstance(iat, bool) or not isinstance(iat, int | float) or not 0 <= iat <= MAX_IAT:
        raise InvalidProof("the proof has no usable iat")
    if not isinstance(nonce, str):
        raise InvalidProof("the proof has no usable nonce")
    _check_target(claims.get("htu"), (htu,) if isinstance(htu, str) else htu)
    single_use_id = hashlib.sha256(f"{jwk.thumbprint(public_key)}\n{jti}".encode()).digest()
    return Proof(public_key=public_key, jti=jti, iat=iat, nonce=nonce, single_use_id=single_use_id)


def named_url(text: str, urls: Collection[str]) -> str:
    """The URL in `urls` that a proof claims to be for; else the first one; an empty string if `urls` is empty.

    The proof is not verified.
    """
    try:
        given = _members(base64url.decode(text[:MAX_PROOF_BYTES].split(".")[1])).get("htu")
        written = target_uri.normalized(given) if isinstance(given, str) else ""
    except (ValueError, IndexError, RecursionError):
        written = ""
    return next((url for url in urls if _is(url, written)), next(iter(urls), ""))


def _members(form: bytes) -> dict[str, Any]:
    members = _plainly_spelled(form)
    if members is None:
        members = _decode(form.decode("utf-8"))
    if not isinstance(members, dict):
        raise ValueError("not an object")
    return members


def _plainly_spelled(form: bytes) -> object:
    """Decode JSON if it is encoded exactly as msgspec encodes it, and so has no duplicate members; else return None."""
    try:
        value = msgspec.json.decode(form)
        return value if msgspec.json.encode(value) == form else None
    except (msgspec.DecodeError, ValueError):
        return None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_decode: Final = json.JSONDecoder(object_pairs_hook=_once_each, parse_constant=_refuse).decode


def _public_key(header: bytes) -> bytes:
    """RFC 9449 §4.3, 4 to 7: the type, a supported algorithm, and a public key for that algorithm."""
    try:
        if len(header) == _HEADER_BYTES and header.startswith(_HEADER_BEGIN) and header.endswith(_HEADER_END):
            return agent_key.coordinate(header[len(_HEADER_BEGIN) : -len(_HEADER_END)].decode("ascii"))
        members = _members(header)
        if set(members) != {"typ", "alg", "jwk"} or members["typ"] != TYPE:
            raise InvalidProof("the proof's header is not typ dpop+jwt, alg and jwk")
        return agent_key.from_jwk(members["jwk"], members["alg"])
    except ValueError:
        raise InvalidProof("the proof's key is not one of Ed25519 or P-256, for the algorithm that it names") from None


def _check_target(given: object, urls: Collection[str]) -> None:
    """RFC 9449 §4.3, 9: the same URL after normalization (see `agentwrit.domain.target_uri`)."""
    if not isinstance(given, str):
        raise InvalidProof("the proof is for no URL")
    if given in urls:
        return
    try:
        written = target_uri.normalized(given)
    except ValueError:
        raise WrongTarget(given, urls) from None
    if not any(_is(url, written) for url in urls):
        raise WrongTarget(given, urls)


def _is(url: str, written: str) -> bool:
    try:
        return target_uri.normalized(url) == written
    except ValueError:
        return False
