"""One request and its answer, as handlers see them."""

import ipaddress
import itertools
import re
import secrets
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import msgspec
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope

from agentwrit.broker.config import Network
from agentwrit.broker.http import forms, wire
from agentwrit.broker.http.forms import Form
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.possession import Presented
from agentwrit.domain.errors import InvalidRequest, PayloadTooLarge

B = TypeVar("B", bound=msgspec.Struct)

MAX_BODY_BYTES: Final = 1024 * 1024
_PROCESS: Final = secrets.token_hex(8)
_requests = itertools.count(1)

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")  # W3C Trace Context §3.2


Header = tuple[bytes, bytes]

DIRECT: Final = "agentwrit.direct"  # where a scope has it


class Direct(Protocol):
    """What our server lets the application do without ASGI's messages, which cost more than most of our answers."""

    def body(self) -> bytes | None:
        """The body of the request, if all of it is there by now."""
        ...

    def answer(self, status: int, head: bytes, body: bytes, *, is_last: bool) -> bool:
        """Send an answer; False where that has to wait for the client. `is_last`: the connection is closed then."""
        ...


def joined(fields: Iterable[Header]) -> bytes:
    """Header fields as they stand in a message."""
    return b"".join(b"%b: %b\r\n" % field for field in fields)


class Answer(msgspec.Struct, kw_only=True):
    """What a handler answers with. An answer may be kept, and given again."""

    body: bytes = b""
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}
    stream: AsyncIterator[bytes] | None = None
    """What follows piece by piece in place of `body`, for as long as the client listens."""
    _fields: list[Header] | None = None
    _head: bytes | None = None

    @property
    def is_cacheable(self) -> bool:
        """Whether it says itself how it may be cached."""
        return "cache-control" in self.headers

    def fields(self) -> list[Header]:
        """Its header fields, as they are sent."""
        if self._fields is None:
            self._fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
            if self.status not in (204, 304):  # RFC 9110 §15.3.5, §15.4.5: no content, and no word on it
                self._fields.append((b"content-type", self.media_type.encode("latin-1")))
                if self.stream is None:
                    self._fields.append((b"content-length", str(len(self.body)).encode("ascii")))
        return self._fields

    def head(self) -> bytes:
        """The same, joined."""
        if self._head is None:
            self._head = joined(self.fields())
        return self._head


def json_answer(content: object, *, status: int = 200) -> Answer:
    return Answer(body=msgspec.json.encode(content), status=status)


class Exchange:
    """A request, with what every use case needs to know of it."""

    __slots__ = (
        "_caller",
        "_direct",
        "_receive",
        "_scope",
        "_trusted_proxies",
        "is_body_unread",
        "path_params",
        "request_id",
        "route",
    )

    def __init__(
        self, scope: Scope, receive: Receive, trusted_proxies: Sequence[Network], direct: Direct | None = None
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._trusted_proxies = trusted_proxies
        self._direct = direct
        self._caller: Caller | None = None
        given_id = self.header("x-request-id")
        self.request_id = given_id if given_id and _REQUEST_ID.fullmatch(given_id) else new_request_id()
        self.route = ""
        """The method and the template of the path, once it is found."""
        self.path_params: Mapping[str, str] = {}
        self.is_body_unread = False
        """Whether the connection has to be closed, because it still holds some of the request's body."""

    @property
    def caller(self) -> Caller:
        """Where the request comes from."""
        if self._caller is None:
            trace = _TRACEPARENT.fullmatch(self.header("traceparent"))
            self._caller = Caller(
                address=client_address(self._scope, self._trusted_proxies),
                route=self.route,
                request_id=self.request_id,
                trace_id=trace[1] if trace is not None and trace[1].strip("0") else "",
            )
        return self._caller

    def url(self, public_url: str | None) -> str:
        """Where the request was sent, without its query. `public_url`: how clients reach the broker, if that is set."""
        base = public_url or f"{self._scope['scheme']}://{self.header('host')}"
        return f"{base}{self._scope['path']}"

    def authorization(self) -> tuple[str, str] | None:
        """The Authorization header (RFC 9110 §11.6.2), if there is one: its scheme, in lower case, and its credentials.

        Raises:
            InvalidRequest: there is more than one.
        """
        values = self._values("authorization")
        if len(values) > 1:
            raise InvalidRequest("there is more than one Authorization header")
        if not values:
            return None
        scheme, _, credentials = values[0].partition(" ")
        return scheme.lower(), credentials.strip()

    def bearer(self) -> str | None:
        """The bearer token (RFC 6750 §2.1), if there is one and only one."""
        values = self._values("authorization")
        if len(values) != 1:
            return None
        scheme, _, token = values[0].partition(" ")
        return token.strip() or None if scheme.lower() == "bearer" else None

    def presented(self, public_url: str | None) -> Presented | None:
        """The one token of the request, as a bearer token (RFC 6750 §2.1) or as a bound one (RFC 9449 §7.1)."""
        values = self._values("authorization")
        scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        if scheme.lower() not in ("bearer", "dpop") or not token.strip():
            return None
        return Presented(
            token=token.strip(),
            is_dpop=scheme.lower() == "dpop",
            proofs=tuple(self._values("dpop")),
            method=self._scope["method"],
            url=self.url(public_url),
        )

    @property
    def has_query(self) -> bool:
        return bool(self._scope["query_string"])

    def idempotency_key(self) -> str | None:
        """What names this request for safe retries, if it is named.

        Raises:
            InvalidRequest: it is named twice.
        """
        values = self._values("idempotency-key")
        if len(values) > 1:
            raise InvalidRequest("there is more than one Idempotency-Key")
        return values[0] if values else None

    def header(self, name: str) -> str:
        """A header field, or empty."""
        wanted = name.encode("ascii")
        for field, value in self._scope["headers"]:
            if field == wanted:
                return str(value, "latin-1")
        return ""

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
        return wire.decode(await self.read(), schema)

    async def optional_body(self, schema: type[B]) -> B:
        """As `body`, for a body that may be left out."""
        return wire.decode_optional(await self.read(), schema)

    async def form(self, *, repeatable: Collection[str] = ()) -> Form:
        """The body, read as a form.

        Raises:
            InvalidRequest: it is not one, or has a field twice that is not `repeatable`.
            PayloadTooLarge: it is over 1 MiB.
        """
        return forms.decode(self.header("content-type"), await self.read(), repeatable=repeatable)

    def query(self, *known: str) -> dict[str, str]:
        """The query's parameters.

        Raises:
            InvalidRequest: one is unknown, or is given twice.
        """
        given = QueryParams(self._scope["query_string"]).multi_items()
        parameters = dict(given)
        for name in parameters:
            if name not in known:
                raise InvalidRequest("the query has an unknown parameter", hint=f"known are {', '.join(known)}")
        if len(parameters) != len(given):
            raise InvalidRequest("the query has a parameter twice")
        return parameters

    async def read(self) -> bytes:
        """The body as it came.

        Raises:
            InvalidRequest: the connection ended before it did. (How long it may take, the connection says.)
            PayloadTooLarge: it is over 1 MiB.
        """
        # Until the whole body is read, what follows on this connection is no new request.
        self.is_body_unread = True
        body = self._direct.body() if self._direct is not None else None
        if body is None:
            declared = self.header("content-length")
            _check_size(int(declared) if declared.isdigit() else 0)
            body = await self._receive_body()
        _check_size(len(body))
        self.is_body_unread = False
        return body

    async def _receive_body(self) -> bytes:
        body = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("the connection was closed before the body arrived")
            piece: bytes = message.get("body", b"")
            body += piece
            _check_size(len(body))
            if not message.get("more_body", False):
                return body

    def _values(self, name: str) -> list[str]:
        wanted = name.encode("ascii")
        return [value.decode("latin-1") for field, value in self._scope["headers"] if field == wanted]


def _check_size(of_body: int) -> None:
    if of_body > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"a body has at most {MAX_BODY_BYTES} bytes")


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


def client_address(scope: Scope, trusted_proxies: Sequence[Network]) -> str:
    """The peer's address, or what trusted proxies say of it.

    X-Forwarded-For is read from its end, where the nearest proxy wrote, and only as far as proxies are trusted:
    everything before that is the client's own invention.
    """
    address: str = scope["client"][0] if scope.get("client") else ""
    if not trusted_proxies:
        return address
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    forwarded = ",".join(values).split(",")
    while forwarded and _is_trusted(address, trusted_proxies):
        claimed = forwarded.pop().strip()
        try:
            address = str(ipaddress.ip_address(claimed))
        except ValueError:
            break
    return address


def new_request_id() -> str:
    """A name for a request that none of any broker's has had. It is no secret: counting is quicker than drawing."""
    return f"{_PROCESS}{next(_requests):016x}"


def _is_trusted(address: str, trusted_proxies: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted_proxies)
