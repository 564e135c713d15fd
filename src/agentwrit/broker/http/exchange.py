"""One request and its answer, as handlers see them."""

import asyncio
import ipaddress
import re
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Final, TypeVar

import msgspec
from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from agentwrit.broker.config import Network
from agentwrit.broker.http import forms, wire
from agentwrit.broker.http.forms import Form
from agentwrit.broker.services.context import Caller
from agentwrit.domain.errors import InvalidRequest, PayloadTooLarge

B = TypeVar("B", bound=msgspec.Struct)

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_BODY_SECONDS: Final = 10

BODY_UNREAD: Final = "agentwrit.body_unread"
"""In a scope: whether the connection has to be closed, because it still holds some of the request's body."""

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")  # W3C Trace Context §3.2


class Answer(msgspec.Struct, kw_only=True):
    """What a handler answers with."""

    body: bytes = b""
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}
    stream: AsyncIterator[bytes] | None = None
    """What follows piece by piece in place of `body`, for as long as the client listens."""


def json_answer(content: object, *, status: int = 200) -> Answer:
    return Answer(body=msgspec.json.encode(content), status=status)


class Exchange:
    """A request, with what every use case needs to know of it."""

    def __init__(self, scope: Scope, receive: Receive, caller: Caller) -> None:
        self._request = Request(scope, receive)
        self.caller = caller

    @property
    def path_params(self) -> Mapping[str, str]:
        return self._request.path_params

    def authorization(self) -> tuple[str, str] | None:
        """The Authorization header (RFC 9110 §11.6.2), if there is one: its scheme, in lower case, and its credentials.

        Raises:
            InvalidRequest: there is more than one.
        """
        values = self._request.headers.getlist("authorization")
        if len(values) > 1:
            raise InvalidRequest("there is more than one Authorization header")
        if not values:
            return None
        scheme, _, credentials = values[0].partition(" ")
        return scheme.lower(), credentials.strip()

    def bearer(self) -> str | None:
        """The bearer token (RFC 6750 §2.1), if there is one and only one."""
        values = self._request.headers.getlist("authorization")
        if len(values) != 1:
            return None
        scheme, _, token = values[0].partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    @property
    def has_query(self) -> bool:
        return bool(self._request.scope["query_string"])

    def idempotency_key(self) -> str | None:
        """What names this request for safe retries, if it is named.

        Raises:
            InvalidRequest: it is named twice.
        """
        values = self._request.headers.getlist("idempotency-key")
        if len(values) > 1:
            raise InvalidRequest("there is more than one Idempotency-Key")
        return values[0] if values else None

    def header(self, name: str) -> str:
        """A header field, or empty."""
        return self._request.headers.get(name, "")

    def accepts(self, media_type: str) -> bool:
        """Whether the client asks for this media type by its name (RFC 9110 §12.5.1)."""
        asked_for = [item.partition(";")[0].strip().lower() for item in self.header("accept").split(",")]
        return media_type in asked_for

    def has_seen(self, tag: str) -> bool:
        """Whether the client holds the representation of this entity tag (RFC 9110 §13.1.2)."""
        given = [item.strip().removeprefix("W/") for item in self.header("if-none-match").split(",")]
        return tag in given or "*" in given

    async def body(self, schema: type[B]) -> B:
        """The body, read as `schema`.

        Raises:
            InvalidRequest: it is not one.
            PayloadTooLarge: it is over 1 MiB.
        """
        return wire.decode(await self._read(), schema)

    async def optional_body(self, schema: type[B]) -> B:
        """As `body`, for a body that may be left out."""
        return wire.decode_optional(await self._read(), schema)

    async def form(self, *, repeatable: Collection[str] = ()) -> Form:
        """The body, read as a form.

        Raises:
            InvalidRequest: it is not one, or has a field twice that is not `repeatable`.
            PayloadTooLarge: it is over 1 MiB.
        """
        return forms.decode(self.header("content-type"), await self._read(), repeatable=repeatable)

    def query(self, *known: str) -> dict[str, str]:
        """The query's parameters.

        Raises:
            InvalidRequest: one is unknown, or is given twice.
        """
        given = QueryParams(self._request.scope["query_string"]).multi_items()
        parameters = dict(given)
        for name in parameters:
            if name not in known:
                raise InvalidRequest("the query has an unknown parameter", hint=f"known are {', '.join(known)}")
        if len(parameters) != len(given):
            raise InvalidRequest("the query has a parameter twice")
        return parameters

    async def _read(self) -> bytes:
        # Until the whole body is read, what follows on this connection is no new request.
        self._request.scope[BODY_UNREAD] = True
        body = await self._read_bounded()
        self._request.scope[BODY_UNREAD] = False
        return body

    async def _read_bounded(self) -> bytes:
        declared = self._request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"a body has at most {MAX_BODY_BYTES} bytes")
        body = bytearray()
        try:
            async with asyncio.timeout(MAX_BODY_SECONDS):
                async for chunk in self._request.stream():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise PayloadTooLarge(f"a body has at most {MAX_BODY_BYTES} bytes")
        except TimeoutError:
            raise InvalidRequest(f"the body did not arrive within {MAX_BODY_SECONDS} seconds") from None
        except ClientDisconnect:
            raise InvalidRequest("the connection was closed before the body arrived") from None
        return bytes(body)


def integer_parameter(parameters: Mapping[str, str], name: str, default: int, *, low: int, high: int) -> int:
    """A whole number from the query.

    Raises:
        InvalidRequest: it is none, or out of range. Names it.
    """
    text = parameters.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
        raise InvalidRequest(f"{name} takes a whole number from {low} to {high}")
    return int(text)


def caller_of(scope: Scope, route: str, trusted_proxies: Sequence[Network]) -> Caller:
    """Where a request comes from."""
    headers = Headers(scope=scope)
    given_id = headers.get("x-request-id", "")
    trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return Caller(
        address=client_address(scope, headers, trusted_proxies),
        route=route,
        request_id=given_id if _REQUEST_ID.fullmatch(given_id) else secrets.token_hex(16),
        trace_id=trace[1] if trace is not None and trace[1].strip("0") else "",
    )


def client_address(scope: Scope, headers: Headers, trusted_proxies: Sequence[Network]) -> str:
    """The peer's address, or what trusted proxies say of it.

    X-Forwarded-For is read from its end, where the nearest proxy wrote, and only as far as proxies are trusted:
    everything before that is the client's own invention.
    """
    address: str = scope["client"][0] if scope.get("client") else ""
    if not trusted_proxies:
        return address
    forwarded = ",".join(headers.getlist("x-forwarded-for")).split(",")
    while forwarded and _is_trusted(address, trusted_proxies):
        claimed = forwarded.pop().strip()
        try:
            address = str(ipaddress.ip_address(claimed))
        except ValueError:
            break
    return address


def _is_trusted(address: str, trusted_proxies: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted_proxies)
