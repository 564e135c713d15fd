"""Syslog (RFC 5424), over TCP (RFC 6587 §3.4.1), TLS (RFC 5425) and UDP (RFC 5426).

Syslog has no acknowledgements. Over TCP and TLS each batch has a connection of its own, which we close for writing and
the receiver then closes: it does so in peace only if it has read everything, and with a reset if it was killed before.
If the next batch fails, the receiver may have died with the last one in its memory: that one is sent again as well.
Over UDP nobody knows.

A message that is longer than its receiver takes is cut there, or becomes two records, the second in the words of
whoever chose the event's. So a long event is sent in fewer words, and says so (`cut`): texts and lists are shortened
until it fits, and JSON stays JSON. The whole event is in the log, under the id that the message has.
"""

import contextlib
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from agentwrit.client.addresses import Addresses, Remaining, within
from agentwrit.delivery.sinks import Encoder, Event, NotDelivered
from agentwrit.domain import audit
from agentwrit.domain.audit import Outcome
from agentwrit.domain.text import escaped

SECONDS: Final = 30.0  # for a batch, whoever reads or answers a little at a time

_LOG_AUDIT: Final = 13  # RFC 5424 §6.2.1
_SEVERITY: Final = {Outcome.SUCCESS: 6, Outcome.DENIED: 4}
_MAX_MSGID: Final = 32
_MAX_TIMESTAMP: Final = 32
_MAX_HOSTNAME: Final = 255
_NOT_IN_A_HEADER: Final = re.compile(r"[^!-~]")  # RFC 5424 §6: PRINTUSASCII

_TEXTS: Final = (1024, 256, 64)  # so many characters of each, for an event that is too long
_CUT: Final = "yes: it is longer than this receiver takes"


class Receiver(NamedTuple):
    """Where a syslog receiver listens."""

    host: str
    port: int


def message(record: Mapping[str, Any], text: bytes, hostname: str) -> bytes:
    """A syslog message (RFC 5424 §6) of an event, with `text` as its MSG."""
    priority = _LOG_AUDIT * 8 + _SEVERITY.get(record["outcome"], 5)
    timestamp = _in_header(record["timestamp"], _MAX_TIMESTAMP)
    msgid = _in_header(record["event_type"], _MAX_MSGID)
    return f"<{priority}>1 {timestamp} {_in_header(hostname, _MAX_HOSTNAME)} agentwrit - {msgid} - ".encode() + text


def fitting(event: Event, encode: Encoder, hostname: str, longest: int) -> bytes:
    """The message of an event, in as many of its words as fit into `longest` bytes."""
    whole = b""
    for shortened in _shorter_and_shorter(event):
        whole = message(event, encode(shortened), hostname)
        if len(whole) <= longest:
            return whole
    # Whatever this is, it is no event of a broker's.
    return whole[:longest].decode("utf-8", "ignore").encode()


def _shorter_and_shorter(event: Event) -> Iterator[Event]:
    yield event
    for longest in _TEXTS:
        texts = {name: escaped(value, longest) if isinstance(value, str) else value for name, value in event.items()}
        yield {**texts, "data": audit.cut(event["data"], longest), "cut": _CUT}
    yield {**texts, "data": {}, "cut": _CUT}


def _in_header(text: str, longest: int) -> str:
    return _NOT_IN_A_HEADER.sub("?", text)[:longest] or "-"


class _Messages:
    """Events as messages of at most `longest` bytes. `hostname`: where the events come from."""

    def __init__(self, encode: Encoder, *, hostname: str, longest: int) -> None:
        self._encode = encode
        self._hostname = hostname
        self._longest = longest

    def of(self, events: Sequence[Event]) -> list[bytes]:
        return [fitting(event, self._encode, self._hostname, self._longest) for event in events]


class StreamSink:
    """Sends batches over TCP, or over TLS with a `tls` context.

    `hostname`: where the events come from; `longest`: how many bytes a message may have.
    """

    def __init__(
        self,
        receiver: Receiver,
        encode: Encoder,
        *,
        hostname: str,
        tls: ssl.SSLContext | None,
        longest: int,
    ) -> None:
        self._receiver = receiver
        self._messages = _Messages(encode, hostname=hostname, longest=longest)
        self._tls = tls
        self._before = b""
        self._doubtful = b""  # the batch before, once a receiver has failed that may have had it in memory only

    def deliver(self, events: Sequence[Event]) -> None:
        frames = b"".join(b"%d %b" % (len(text), text) for text in self._messages.of(events))
        try:
            self._send(self._doubtful + frames)
        except OSError as error:  # TLS's own among them
            self._doubtful = self._before
            raise NotDelivered(error.strerror or type(error).__name__) from error
        self._before, self._doubtful = frames, b""

    def _send(self, frames: bytes) -> None:
        remaining = within(SECONDS)
        with Addresses(*self._receiver).connect(remaining) as connection:
            if self._tls is None:
                connection.settimeout(remaining())
                connection.sendall(frames)
            else:
                _send_sealed(connection, self._tls, self._receiver.host, frames, remaining)
            _wait_until_read(connection, remaining)


def _send_sealed(connection: socket.socket, tls: ssl.SSLContext, host: str, data: bytes, remaining: Remaining) -> None:
    """Send over TLS and end it, without closing the connection below."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sealed = tls.wrap_bio(incoming, outgoing, server_hostname=host)

    def flush() -> None:
        connection.settimeout(remaining())
        connection.sendall(outgoing.read())

    while True:
        try:
            sealed.do_handshake()
            break
        except ssl.SSLWantReadError:
            flush()
            connection.settimeout(remaining())
            received = connection.recv(65536)
            if not received:
                raise ConnectionResetError("closed during the handshake") from None
            incoming.write(received)
    view = memoryview(data)
    while view:
        view = view[sealed.write(view[:65536]) :]
        flush()
    with contextlib.suppress(ssl.SSLWantReadError):  # RFC 5425 §4.4: a close_notify; theirs need not be waited for
        sealed.unwrap()
    flush()


def _wait_until_read(connection: socket.socket, remaining: Remaining) -> None:
    """Say that there is no more, and wait until the receiver has read all and closes."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(remaining())
    while connection.recv(65536):
        connection.settimeout(remaining())


class DatagramSink:
    """Sends each event as a datagram. What becomes of it, nobody says. The arguments are those of `StreamSink`."""

    def __init__(self, receiver: Receiver, encode: Encoder, *, hostname: str, longest: int) -> None:
        self._receiver = receiver
        self._messages = _Messages(encode, hostname=hostname, longest=longest)

    def deliver(self, events: Sequence[Event]) -> None:
        try:
            family, kind, protocol, _, address = Addresses(*self._receiver, socket.SOCK_DGRAM).get(SECONDS)[0]
            with socket.socket(family, kind, protocol) as connection:
                for text in self._messages.of(events):
                    connection.sendto(text, address)
        except OSError as error:
            raise NotDelivered(error.strerror or type(error).__name__) from error
