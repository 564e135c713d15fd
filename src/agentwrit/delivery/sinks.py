"""Where events go. A sink takes them in batches, and says so only when they have arrived."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from agentwrit.durable import sync
from agentwrit.errors import AgentWritError

if TYPE_CHECKING:
    import ssl


Event = Mapping[str, Any]
Encoder = Callable[[Event], bytes]
"""An event as the bytes that arrive, without a line break."""

HTTP_SECONDS: Final = 30.0


class NotDelivered(AgentWritError):
    """A batch did not arrive, or nobody said that it did: it is delivered again."""


class Sink(Protocol):
    """Takes batches, one after the other."""

    def deliver(self, events: Sequence[Event]) -> None:
        """Return when all of them have arrived, in their order.

        Raises:
            NotDelivered: that is not known. Some may have arrived.
        """
        ...


class HttpSink:
    """POSTs a batch at a time to a URL; it has arrived when the answer is 2xx.

    `is_json`: what events are encoded as, so that a batch is a JSON array; else it is lines. `authorization`: the value
    of that header, if any.
    """

    def __init__(
        self, url: str, encode: Encoder, *, is_json: bool, authorization: str | None, tls: "ssl.SSLContext | None"
    ) -> None:
        import httpx2

        self._url = url
        self._encode = encode
        self._is_json = is_json
        headers = {"content-type": "application/json" if is_json else "text/plain; charset=utf-8"}
        if authorization is not None:
            headers["authorization"] = authorization
        self._client: httpx2.Client = httpx2.Client(timeout=HTTP_SECONDS, headers=headers, verify=tls or True)

    def deliver(self, events: Sequence[Event]) -> None:
        import httpx2

        lines = [self._encode(event) for event in events]
        body = b"[" + b",".join(lines) + b"]" if self._is_json else b"\n".join(lines) + b"\n"
        failure = ""  # raised outside: the request in a traceback would show the credential
        try:
            answer = self._client.post(self._url, content=body)
            if not answer.is_success:
                failure = f"the answer is {answer.status_code}"
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            failure = type(error).__name__
        if failure:
            raise NotDelivered(failure)


class FileSink:
    """Appends lines to a file, which is put aside when it would grow beyond `max_bytes`: as `NAME.000001` and so on.

    `keep`: how many of those stay; 0 for all. A batch has arrived when it is on disk.
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
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
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
        self._path.rename(self._path.with_name(f"{self._path.name}.{number:06d}"))
        aside = self._put_aside()
        for old in aside[: -self._keep] if self._keep else ():
            old.unlink()
        sync(self._path.parent)

    def _put_aside(self) -> list[Path]:
        is_ours = re.compile(rf"{re.escape(self._path.name)}\.[0-9]{{6}}").fullmatch
        return sorted(path for path in self._path.parent.iterdir() if is_ours(path.name))


def _whole(file: Any) -> int:
    """How long a file is without the line at its end that somebody was killed in the middle of."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 65536)
        file.seek(begin)
        at = file.read(end - begin).rfind(b"\n")
        if at >= 0:
            return int(begin + at + 1)
        end = begin
    return 0
