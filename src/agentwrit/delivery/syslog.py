"""Syslog (RFC 5424), over TCP (RFC 6587 §3.4.1), TLS (RFC 5425) and UDP (RFC 5426).

Syslog has no acknowledgements. Over TCP and TLS each batch has a connection of its own, which we close for writing and
the receiver then closes: it does so in peace only if it has read everything, and with a reset if it was killed before.
If the next batch fails, the receiver may have died with the last one in its memory: that one is sent again as well.
Over UDP nobody knows.
"""

import contextlib
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from agentwrit.delivery.sinks import Encoder, Event, NotDelivered
from agentwrit.domain.audit import Outcome

SECONDS: Final = 30.0
MAX_DATAGRAM_BYTES: Final = 65_000  # RFC 5426 §3.2: what fits into a UDP datagram over IPv4, with room

_LOG_AUDIT: Final = 13  # RFC 5424 §6.2.1
_SEVERITY: Final = {Outcome.SUCCESS: 6, Outcome.DENIED: 4}
_MAX_MSGID: Final = 32


class Receiver(NamedTuple):
    """Where a syslog receiver listens."""

    host: str
    port: int


def message(record: Mapping[str, Any], text: bytes, hostname: str) -> bytes:
    """A syslog message (RFC 5424 §6) of an event, with `text` as its MSG."""
    priority = _LOG_AUDIT * 8 + _SEVERITY.get(record["outcome"], 5)
    msgid = record["event_type"][:_MAX_MSGID]
    return f"<{priority}>1 {record['timestamp']} {hostname} agentwrit - {msgid} - ".encode() + text


class StreamSink:
    """Sends batches over TCP, or over TLS with a `tls` context. `hostname`: where the events come from."""

    def __init__(self, receiver: Receiver, encode: Encoder, *, hostname: str, tls: ssl.SSLContext | None) -> None:
        self._receiver = receiver
        self._encode = encode
        self._hostname = hostname
        self._tls = tls
        self._before = b""
        self._doubtful = b""  # the batch before, once a receiver has failed that may have had it in memory only

    def deliver(self, events: Sequence[Event]) -> None:
        messages = [message(event, self._encode(event), self._hostname) for event in events]
        frames = b"".join(b"%d %b" % (len(text), text) for text in messages)
        try:
            self._send(self._doubtful + frames)
        except OSError as error:  # TLS's own among them
            self._doubtful = self._before
            raise NotDelivered(error.strerror or type(error).__name__) from error
        self._before, self._doubtful = frames, b""

    def _send(self, frames: bytes) -> None:
        with socket.create_connection(self._receiver, timeout=SECONDS) as connection:
            if self._tls is None:
                connection.sendall(frames)
            else:
                _send_sealed(connection, self._tls, self._receiver.host, frames)
            _wait_until_read(connection)


def _send_sealed(connection: socket.socket, tls: ssl.SSLContext, host: str, data: bytes) -> None:
    """Send over TLS and end it, without closing the connection below."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    sealed = tls.wrap_bio(incoming, outgoing, server_hostname=host)

    def flush() -> None:
        connection.sendall(outgoing.read())

    while True:
        try:
            sealed.do_handshake()
            break
        except ssl.SSLWantReadError:
            flush()
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


def _wait_until_read(connection: socket.socket) -> None:
    """Say that there is no more, and wait until the receiver has read all and closes."""
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65536):
        pass


class DatagramSink:
    """Sends each event as a datagram. What becomes of it, nobody says."""

    def __init__(self, receiver: Receiver, encode: Encoder, *, hostname: str) -> None:
        self._receiver = receiver
        self._encode = encode
        self._hostname = hostname

    def deliver(self, events: Sequence[Event]) -> None:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(*self._receiver, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind, protocol) as connection:
                for event in events:
                    text = message(event, self._encode(event), self._hostname)
                    connection.sendto(text[:MAX_DATAGRAM_BYTES], address)
        except OSError as error:
            raise NotDelivered(error.strerror or type(error).__name__) from error
