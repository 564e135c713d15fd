"""One request and its answer, as handlers see them."""

import asyncio
import ipaddress
import itertools
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

import msgspec

from agentwrit.broker.config import Network
from agentwrit.broker.http import forms, wire
from agentwrit.broker.http.forms import Form
from agentwrit.broker.http.http1 import Scope
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.possession import Presented
from agentwrit.domain import authorization
from agentwrit.domain.authorization import Authorization, SeveralCredentials
from agentwrit.domain.errors import InvalidRequest, PayloadTooLarge
from agentwrit.domain.target_uri import KnownNames

B = TypeVar("B", bound=msgspec.Struct)

MAX_USUAL_BODY_BYTES: Final = 160 * 1024
"""Of routes that do not say otherwise: many times what makes sense there. Most read before they know who sends it."""
MAX_QUERY_BYTES: Final = 8 * 1024
MAX_LISTED: Final = 32  # items of a header that is a list: what comes behind them is not looked at
MAX_PROXIES: Final = 16  # between a client and us

_PROCESS: Final = secrets.token_hex(8)
_requests = itertools.count(1)

_NOBODYS: Final = Authorization("", "")

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")  # W3C Trace Context §3.2


Header = tuple[bytes, bytes]


class Pieces(Protocol):
    """What an answer is streamed from. It is closed, whether it was read to its end or not at all."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __anext__(self) -> Awaitable[bytes]: ...

    async def aclose(self) -> None: ...


def joined(fields: Iterable[Header]) -> bytes:
    """Header fields as they stand in a message."""
    return b"".join(b"%b: %b\r\n" % field for field in fields)


class Answer(msgspec.Struct, kw_only=True):
    """What a handler answers with. An answer may be kept, and given again."""

    body: bytes = b""
    status: int = 200
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}
    stream: Pieces | None = None
    """What follows piece by piece in place of `body`, for as long as the client listens."""
    cause: str = ""
    """Of an answer that something is out of order (503), what that is."""
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


async def large_json_answer(content: Callable[[], object]) -> Answer:
    """The answer that `content` returns, made on a thread: it may be megabytes, and must not hold the event loop.

    What is long consists of parts that were encoded by themselves (`msgspec.Raw`), because nothing else runs while one
    call encodes.
    """
    return await asyncio.to_thread(lambda: json_answer(content()))


class Exchange:
    """A request, with what every use case needs to know of it."""

    __slots__ = (
        "_body",
        "_caller",
        "_scope",
        "_trusted_proxies",
        "max_body",
        "path_params",
        "request_id",
        "route",
    )

    def __init__(self, scope: Scope, body: bytes, trusted_proxies: Sequence[Network]) -> None:
        self._scope = scope
        self._body = body
        self._trusted_proxies = trusted_proxies
        self._caller: Caller | None = None
        given_id = self.header("x-request-id")
        self.request_id = given_id if given_id and _REQUEST_ID.fullmatch(given_id) else new_request_id()
        self.route = ""
        """The method and the template of the path, once it is found."""
        self.path_params: Mapping[str, str] = {}
        self.max_body = MAX_USUAL_BODY_BYTES
        """How many bytes the body may have."""

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

    @property
    def method(self) -> str:
        return self._scope["method"]

    def urls(self, names: KnownNames) -> tuple[str, ...]:
        """Where the request was sent, without its query, under each name by which the broker is known."""
        scope = self._scope
        return tuple([base + scope["path"] for base in names.bases(scope["scheme"], scope["server"])])

    def authorization(self) -> Authorization | None:
        """The Authorization header, if there is one.

        Raises:
            InvalidRequest: there is more than one.
        """
        try:
            return authorization.read(self._values("authorization"))
        except SeveralCredentials:
            raise InvalidRequest("there is more than one Authorization header") from None

    def bearer(self) -> str | None:
        """The bearer token (RFC 6750 §2.1), if there is one and only one."""
        scheme, token = self._one_authorization()
        return token or None if scheme == "bearer" else None

    def presented(self, names: KnownNames) -> Presented | None:
        """The one token of the request, as a bearer token (RFC 6750 §2.1) or as a bound one (RFC 9449 §7.1)."""
        scheme, token = self._one_authorization()
        if scheme not in ("bearer", "dpop") or not token:
            return None
        return Presented(
            token=token,
            is_dpop=scheme == "dpop",
            proofs=tuple(self._values("dpop")),
            method=self._scope["method"],
            urls=self.urls(names),
        )

    def _one_authorization(self) -> Authorization:
        """Nobody's, where there is none, or more than one."""
        try:
            return authorization.read(self._values("authorization")) or _NOBODYS
        except SeveralCredentials:
            return _NOBODYS

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
        listed = self.header("accept").split(",", MAX_LISTED)[:MAX_LISTED]
        asked_for = [item.partition(";")[0].strip().lower() for item in listed]
        return media_type in asked_for

    def has_seen(self, tag: str) -> bool:
        """Whether the client holds the representation of this entity tag (RFC 9110 §13.1.2)."""
        listed = self.header("if-none-match").split(",", MAX_LISTED)[:MAX_LISTED]
        given = [item.strip().removeprefix("W/") for item in listed]
        return tag in given or "*" in given

    async def body(self, schema: type[B]) -> B:
        """The body, read as `schema`.

        Raises:
            InvalidRequest: it is not one.
            PayloadTooLarge: it is over what this route takes.
        """
        return wire.decode(await self.read(), schema)

    async def optional_body(self, schema: type[B]) -> B:
        """As `body`, for a body that may be left out."""
        return wire.decode_optional(await self.read(), schema)

    async def form(self, *, repeatable: Collection[str] = ()) -> Form:
        """The body, read as a form.

        Raises:
            InvalidRequest: it is not one, or has a field twice that is not `repeatable`.
            PayloadTooLarge: it is over what this route takes.
        """
        return forms.decode(self.header("content-type"), await self.read(), repeatable=repeatable)

    def query(self, *known: str) -> dict[str, str]:
        """The query's parameters.

        Raises:
            InvalidRequest: one is unknown, or is given twice, or they are too many or too long.
        """
        text: bytes = self._scope["query_string"]
        if len(text) > MAX_QUERY_BYTES:
            raise InvalidRequest(f"a query has at most {MAX_QUERY_BYTES} bytes")
        given = forms.query(text)
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
            PayloadTooLarge: it is over what this route takes.
        """
        if len(self._body) > self.max_body:
            raise PayloadTooLarge(f"a body has at most {self.max_body} bytes here")
        return self._body

    def _values(self, name: str) -> list[str]:
        wanted = name.encode("ascii")
        return [value.decode("latin-1") for field, value in self._scope["headers"] if field == wanted]


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
    address = scope["client"][0] if scope["client"] is not None else ""
    if not trusted_proxies:
        return address
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    forwarded = ",".join(values).rsplit(",", MAX_PROXIES)[-MAX_PROXIES:]
    while forwarded and _is_trusted(address, trusted_proxies):
        claimed = forwarded.pop().strip()
        if "%" in claimed:  # RFC 4007 §11: a zone is any text, and means nothing on another host
            break
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
