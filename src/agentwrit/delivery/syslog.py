"""Syslog (RFC 5424), over TCP (RFC 6587 §3.4.1), TLS (RFC 5425) and UDP (RFC 5426).

Syslog has no acknowledgements. Over TCP and TLS, each batch has its own connection. The sink closes it for writing and
waits for the receiver to close it. A receiver that has read everything closes it normally; one that was killed before
resets it. If the next batch fails, the receiver may have died with the previous batch in memory, so that batch is sent
again as well. Over UDP, loss is not detected.

Receivers truncate messages that are too long, or split them into two records, and an attacker who chose text in the
event could then choose the second record. A long event is therefore shortened and says so (`cut`): texts and lists are
truncated until the message fits, and JSON remains valid. The log has the whole event, under the id in the message.
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

SECONDS: Final = 30.0  # total for a batch, even if the receiver reads or responds a little at a time

_LOG_AUDIT: Final = 13  # RFC 5424 §6.2.1
_SEVERITY: Final = {Outcome.SUCCESS: 6, Outcome.DENIED: 4}
_MAX_MSGID: Final = 32
_MAX_TIMESTAMP: Final = 32
_MAX_HOSTNAME: Final = 255
_NOT_IN_A_HEADER: Final = re.compile(r"[^!-~]")  # RFC 5424 §6: PRINTUSASCII

_TEXTS: Final = (1024, 256, 64)  # characters to keep of each text of an event that is too long, tried in this order
_CUT: Final = "yes: it is longer than this receiver takes"


class Receiver(NamedTuple):
    """The address of a syslog receiver."""

    host: str
    port: int


def message(record: Mapping[str, Any], text: bytes, hostname: str) -> bytes:
    """The syslog message (RFC 5424 §6) for an event. `text`: its MSG."""
    priority = _LOG_AUDIT * 8 + _SEVERITY.get(record["outcome"], 5)
    timestamp = _in_header(record["timestamp"], _MAX_TIMESTAMP)
    msgid = _in_header(record["event_type"], _MAX_MSGID)
    return f"<{priority}>1 {timestamp} {_in_header(hostname, _MAX_HOSTNAME)} agentwrit - {msgid} - ".encode() + text


def fitting(event: Event, encode: Encoder, hostname: str, longest: int) -> bytes:
    """The message for an event, shortened as far as necessary to fit into `longest` bytes."""
    whole = b""
    for shortened in _shorter_and_shorter(event):
        whole = message(event, encode(shortened), hostname)
        if len(whole) <= longest:
            return whole
    # A broker's event always fits by now. This is not one.
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
    """Encodes events as messages of at most `longest` bytes. `hostname`: the origin of the events."""

    def __init__(self, encode: Encoder, *, hostname: str, longest: int) -> None:
        self._encode = encode
        self._hostname = hostname
        self._longest = longest

    def of(self, events: Sequence[Event]) -> list[bytes]:
        return [fitting(event, self._encode, self._hostname, self._longest) for event in events]


class StreamSink:
    """Sends batches over TCP, or over TLS if `tls` is given.

    `hostname`: the origin of the events; `longest`: the maximum size of a message, in bytes.
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
        self._doubtful = b""  # the previous batch, if the receiver failed and may have had it only in memory

    def deliver(self, events: Sequence[Event]) -> None:
        frames = b"".join(b"%d %b" % (len(text), text) for text in self._messages.of(events))
        try:
            self._send(self._doubtful + frames)
        except OSError as error:  # includes TLS errors
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
    """Send over TLS and end the TLS session, without closing the TCP connection."""
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
    with contextlib.suppress(ssl.SSLWantReadError):  # RFC 5425 §4.4: send a close_notify, without awaiting the peer's
        sealed.unwrap()
    flush()


def _wait_until_read(connection: socket.socket, remaining: Remaining) -> None:
    """Close the connection for writing, and wait until the receiver has read everything and closes it."""
    connection.shutdown(socket.SHUT_WR)
    connection.settimeout(remaining())
    while connection.recv(65536):
        connection.settimeout(remaining())


class DatagramSink:
    """Sends each event as a UDP datagram, without any confirmation. The arguments are those of `StreamSink`."""

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
