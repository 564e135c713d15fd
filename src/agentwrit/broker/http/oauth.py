"""What OAuth clients expect under /oauth2: client authentication, and errors in the form of RFC 6749 §5.2.

These errors are not the problem documents of the other routes. They are made in one place: `answering`.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote_plus

from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.forms import Form
from agentwrit.broker.http.routing import Handler
from agentwrit.domain import errors
from agentwrit.domain.errors import AgentWritError, InvalidRequest, Refusal

BASIC_CHALLENGE: Final = 'Basic realm="agentwrit", charset="UTF-8"'  # RFC 7617 §2, §2.1

MAX_DESCRIPTION_LENGTH: Final = 512
MAX_BASIC_LENGTH: Final = 2048

# RFC 6749 §5.2: error_description = 1*( %x20-21 / %x23-5B / %x5D-7E )
_NOT_IN_DESCRIPTIONS = re.compile(r'[^ -~]|["\\]')

# RFC 6749 §5.1 asks for both; the first is every answer's already.
_NO_CACHE: Final = {"pragma": "no-cache"}


class OAuthError(AgentWritError):
    """A request that is refused in OAuth's own words. `error`: a registered code; `challenge`: WWW-Authenticate."""

    def __init__(self, error: str, description: str, *, status: int = 400, challenge: str = "") -> None:
        super().__init__(description)
        self.error = error
        self.description = description
        self.status = status
        self.challenge = challenge


class Credentials(NamedTuple):
    """What a client says it is, and its secret. Nothing of it is checked."""

    client_id: str
    client_secret: str

    def __repr__(self) -> str:
        return "Credentials(…)"


def answering(handler: Handler) -> Handler:
    """The handler, with its refusals in the form of RFC 6749 §5.2, and its answers kept out of caches (§5.1)."""

    async def answer(exchange: Exchange) -> Answer:
        try:
            answered = await handler(exchange)
        except OAuthError as error:
            headers = {"www-authenticate": error.challenge} if error.challenge else {}
            return _refusal(error.error, error.description, error.status, headers)
        except Refusal as refusal:
            return refused(refusal)
        answered.headers = {**answered.headers, **_NO_CACHE}
        return answered

    return answer


def credentials(exchange: Exchange, form: Form) -> Credentials:
    """The client's credentials, by client_secret_basic or client_secret_post (RFC 6749 §2.3.1).

    Raises:
        OAuthError: there are none (invalid_client), or they are given in two ways (invalid_request).
    """
    authorization = exchange.authorization()
    if authorization is None:
        client_id, client_secret = form.get("client_id"), form.get("client_secret")
        if client_id is None or client_secret is None:
            raise _no_client("the client has to authenticate, by client_secret_basic or client_secret_post")
        return Credentials(client_id, client_secret)
    scheme, encoded = authorization
    if scheme != "basic":
        raise _no_client("the client has to authenticate by client_secret_basic or client_secret_post")
    if form.get("client_secret") is not None:
        # RFC 6749 §2.3: no more than one method in a request.
        raise OAuthError("invalid_request", "the client authenticates in two ways at once")
    given = _basic(encoded)
    if form.get("client_id") not in (None, given.client_id):
        raise OAuthError("invalid_request", "client_id is another one than the client authenticates as")
    return given


def _basic(encoded: str) -> Credentials:
    """RFC 7617 §2, each half form-encoded once more (RFC 6749 §2.3.1)."""
    if len(encoded) > MAX_BASIC_LENGTH:
        raise _no_client("the Basic credentials are none")
    try:
        client_id, colon, client_secret = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
        given = Credentials(
            unquote_plus(client_id, errors="strict"),
            unquote_plus(client_secret, errors="strict"),
        )
    except (binascii.Error, ValueError):
        raise _no_client("the Basic credentials are none") from None
    if not (colon and given.client_id and given.client_secret):
        raise _no_client("the Basic credentials are none")
    return given


def _no_client(description: str) -> OAuthError:
    return OAuthError("invalid_client", description, status=401, challenge=BASIC_CHALLENGE)


def refused(refusal: Refusal) -> Answer:
    """A refusal, in OAuth's words."""
    match refusal:
        case errors.Unauthorized():
            # RFC 6749 §5.2: with the challenge of the scheme that the client used, or could have used.
            return _refusal("invalid_client", refusal.detail, 401, {"www-authenticate": BASIC_CHALLENGE})
        case errors.AudienceViolation():
            return _refusal("invalid_target", _whole(refusal), 400)  # RFC 8707 §2
        case errors.BindingRequired():
            return _refusal("unauthorized_client", _whole(refusal), 400)  # RFC 6749 §5.2: no such grant for this client
        case errors.ChainTooLong():
            return _refusal("invalid_request", refusal.detail, 400)  # RFC 8693 §2.2.2: a token unacceptable by policy
        case errors.ScopeViolation():
            return _refusal("invalid_scope", _whole(refusal), 400)
        case errors.InvalidRequest() | errors.InvalidTTL():
            return _refusal("invalid_request", refusal.detail, 400)
        case errors.PayloadTooLarge():
            return _refusal("invalid_request", refusal.detail, 413)
        case errors.RateLimited():
            retry = {"retry-after": str(refusal.retry_after)}
            return _refusal("temporarily_unavailable", refusal.detail, 429, retry)
        case errors.Unavailable():
            retry = {"retry-after": str(refusal.retry_after)}
            answer = _refusal("temporarily_unavailable", refusal.detail, 503, retry)
            answer.cause = refusal.cause
            return answer
        case _:
            raise refusal


def _whole(refusal: Refusal) -> str:
    """What is wrong and what to do about it: there is one text for both."""
    return refusal.detail if refusal.hint is None else f"{refusal.detail}; {refusal.hint}"


def _refusal(error: str, description: str, status: int, headers: Mapping[str, str] | None = None) -> Answer:
    described = _NOT_IN_DESCRIPTIONS.sub("?", description)[:MAX_DESCRIPTION_LENGTH]
    answer = json_answer({"error": error, "error_description": described}, status=status)
    answer.headers = {**(headers or {}), **_NO_CACHE}
    return answer


def check_no_query(exchange: Exchange) -> None:
    """Refuse parameters in the URL, where logs keep them (RFC 6749 §2.3.1, §3.2).

    Raises:
        InvalidRequest: there are some.
    """
    if exchange.has_query:
        raise InvalidRequest("parameters go into the body, and not into the URL")
