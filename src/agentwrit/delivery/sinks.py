"""Destinations of events. A sink receives batches, and returns only when a batch has arrived."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentwrit.client.exchange import MAX_ANSWER_BYTES, AnswerTooLarge
from agentwrit.client.secrecy import discreet
from agentwrit.durable import open_log, rename, sync
from agentwrit.errors import AgentWritError

if TYPE_CHECKING:
    import ssl


Event = Mapping[str, Any]
Encoder = Callable[[Event], bytes]
"""Encodes an event as bytes without a line break."""

_FIELD_VALUE: Final = re.compile(r"[!-~](?:[\t -~]*[!-~])?")  # RFC 9110 §5.5, of ASCII alone

HTTP_SECONDS: Final = 30.0  # total for a batch, even if the receiver responds a little at a time


class NotDelivered(AgentWritError):
    """A batch did not arrive, or was not acknowledged. It is delivered again."""


class Sink(Protocol):
    """Receives batches, one after the other."""

    def deliver(self, events: Sequence[Event]) -> None:
        """Deliver events. Returns when all of them have arrived, in order.

        Raises:
            NotDelivered: it is not known whether all events have arrived. Some may have.
        """
        ...


class HttpSink:
    """POSTs one batch at a time to a URL. A batch has arrived when the response is 2xx.

    `is_json`: whether events are encoded as JSON, so that a batch is a JSON array; otherwise it consists of lines.
    `authorization`: the value of the Authorization header, if any.

    Raises:
        AgentWritError: `authorization` is not a valid header value.
    """

    @discreet
    def __init__(
        self, url: str, encode: Encoder, *, is_json: bool, authorization: str | None, tls: "ssl.SSLContext | None"
    ) -> None:
        import httpx2

        from agentwrit.client.through_httpx2 import Caller

        self._url = url
        self._encode = encode
        self._is_json = is_json
        headers = {
            "content-type": "application/json" if is_json else "text/plain; charset=utf-8",
            "accept-encoding": "identity",
        }
        if authorization is not None:
            if _FIELD_VALUE.fullmatch(authorization) is None:
                raise AgentWritError(
                    "what AGENTWRIT_SINK_AUTHORIZATION holds is no header's value: it takes visible ASCII"
                )
            headers["authorization"] = authorization
        self._caller = Caller(httpx2.Client(timeout=HTTP_SECONDS, headers=headers, verify=tls or True))

    def deliver(self, events: Sequence[Event]) -> None:
        import httpx2

        lines = [self._encode(event) for event in events]
        body = b"[" + b",".join(lines) + b"]" if self._is_json else b"\n".join(lines) + b"\n"
        request = {"method": "POST", "url": self._url, "content": body}
        failure = ""
        try:
            answer = self._caller.send(lambda: request, timeout=HTTP_SECONDS, max_bytes=MAX_ANSWER_BYTES)
            if not 200 <= answer.status < 300:
                failure = f"the answer is {answer.status}"
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, AnswerTooLarge) as error:
            failure = type(error).__name__
        if failure:
            raise NotDelivered(failure)


class FileSink:
    """Appends lines to a file. A batch has arrived when it is on disk.

    Before the file would exceed `max_bytes`, it is rotated to `NAME.000001` and so on. `keep`: how many rotated files
    are kept; 0 for all.
    """

    def __init__(self, path: Path, encode: Encoder, *, max_bytes: int, keep: int) -> None:
        self._path = path
        self._encode = encode
        self._max_bytes = max_bytes
        self._keep = keep

    def deliver(self, events: Sequence[Event]) -> None:
        lines = b"".join(self._encode(event) + b"\n" for event in events)
        try:
            self._append(lines)
        except OSError as error:
            raise NotDelivered(f"{self._path}: {error.strerror}") from error

    def _append(self, lines: bytes) -> None:
        with os.fdopen(open_log(self._path), "r+b") as file:
            size = _whole(file)
            if size and size + len(lines) > self._max_bytes:
                self._rotate()
                self._append(lines)
                return
            file.seek(size)
            file.truncate()
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        if size == 0:
            sync(self._path.parent)  # the file may be new

    def _rotate(self) -> None:
        aside = self._put_aside()
        number = int(aside[-1].suffix[1:]) + 1 if aside else 1
        rename(self._path, self._path.with_name(f"{self._path.name}.{number:06d}"))
        aside = self._put_aside()
        for old in aside[: -self._keep] if self._keep else ():
            old.unlink()
        sync(self._path.parent)

    def _put_aside(self) -> list[Path]:
        is_ours = re.compile(rf"{re.escape(self._path.name)}\.[0-9]{{6}}").fullmatch
        return sorted(path for path in self._path.parent.iterdir() if is_ours(path.name))


def _whole(file: Any) -> int:
    """The length of a file without an incomplete last line, which an interrupted write leaves."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 65536)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            return int(begin + at + 1)
        end = begin
    return 0
