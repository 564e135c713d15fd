"""`agentwrit audit deliver`: deliver the audit log to a SIEM or into files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

import click

from agentwrit.cli import options
from agentwrit.cli.audit import audit_log
from agentwrit.cli.output import say
from agentwrit.delivery import LEAST_MESSAGE_BYTES, MESSAGE_BYTES, MOST_MESSAGE_BYTES
from agentwrit.domain.text import to_json

if TYPE_CHECKING:
    import ssl

    from agentwrit.delivery.following import Cursor
    from agentwrit.delivery.sinks import Sink

AUTHORIZATION: Final = "AGENTWRIT_SINK_AUTHORIZATION"
_PORTS: Final = {"syslog+tcp": 601, "syslog+tls": 6514, "syslog+udp": 514}
_SCHEMES: Final = ("https", "http", *_PORTS, "file")


@click.command()
@click.option("--to", required=True, metavar="URL", help="https://…, syslog+tls://HOST:PORT, +tcp, +udp, or file:PATH.")
@click.option(
    "--cursor", required=True, type=click.Path(dir_okay=False), help="The file that records what was delivered."
)
@click.option("--format", "form", type=click.Choice(["ocsf", "cef"]), help="By default CEF for syslog, else OCSF.")
@click.option(
    "--batch", type=click.IntRange(1, 1000), default=100, show_default=True, help="Maximum number of events per batch."
)
@click.option("--once", is_flag=True, help="Stop at the end of the log, or at the first failure.")
@click.option("--after", metavar="EVENT", help="Begin after EVENT; the cursor must be new.")
@click.option("--ca", type=click.Path(exists=True, dir_okay=False), help="The trusted CA certificates for TLS, as PEM.")
@click.option(
    "--rotate-bytes",
    type=click.IntRange(1),
    default=100_000_000,
    show_default=True,
    help="Maximum size of a file before it is rotated.",
)
@click.option(
    "--message-bytes",
    type=click.IntRange(LEAST_MESSAGE_BYTES, MOST_MESSAGE_BYTES),
    default=MESSAGE_BYTES,
    show_default=True,
    help="Maximum size of a syslog message. A longer event is shortened, and says so.",
)
@click.option("--keep", type=click.IntRange(0), default=0, help="How many rotated files to keep; 0 for all.")
@options.broker_url
def deliver(
    to: str,
    cursor: str,
    form: str | None,
    batch: int,
    once: bool,
    after: str | None,
    ca: str | None,
    rotate_bytes: int,
    message_bytes: int,
    keep: int,
    broker_url: str,
) -> int:
    """Follow the log and deliver each event at least once, in order.

    The cursor file records the last delivered event, so delivery continues there after a restart of any side. An
    https:// receiver gets JSON arrays by POST, with the Authorization header from AGENTWRIT_SINK_AUTHORIZATION; a batch
    has arrived when the response is 2xx. A syslog receiver must close each connection after reading it.
    """
    from agentwrit.delivery.following import Delivery

    place = _cursor(Path(cursor), after)
    hostname = urlsplit(broker_url).hostname or "-"
    sink = _sink(to, form, ca, rotate_bytes, keep, hostname=hostname, message_bytes=message_bytes)
    with audit_log(broker_url) as log:
        Delivery(log, sink, place, batch=batch, say=say).run(once=once)
    return 0


def _cursor(path: Path, after: str | None) -> "Cursor":
    from agentwrit.delivery.following import Cursor
    from agentwrit.domain.audit import parse_event_id

    cursor = Cursor(path)
    if after is not None:
        if cursor.sequence:
            raise click.UsageError(f"--after is for a new cursor, and {path} has delivered events")
        try:
            cursor.sequence = parse_event_id(after)
        except ValueError:
            raise click.UsageError("--after takes an event id, for example evt-000001") from None
    return cursor


def _sink(
    to: str, form: str | None, ca: str | None, rotate_bytes: int, keep: int, *, hostname: str, message_bytes: int
) -> "Sink":
    from agentwrit.delivery import sinks, syslog

    url = _url(to)
    is_syslog = url.scheme in _PORTS
    is_json = (form or ("cef" if is_syslog else "ocsf")) == "ocsf"
    encode = _ocsf if is_json else _cef
    if url.scheme == "file":
        return sinks.FileSink(Path(url.path), encode, max_bytes=rotate_bytes, keep=keep)
    tls = _tls(ca) if url.scheme in ("https", "syslog+tls") else None
    if not is_syslog:
        return sinks.HttpSink(to, encode, is_json=is_json, authorization=os.environ.get(AUTHORIZATION) or None, tls=tls)
    receiver = syslog.Receiver(url.hostname or "", url.port or _PORTS[url.scheme])
    if url.scheme == "syslog+udp":
        return syslog.DatagramSink(receiver, encode, hostname=hostname, longest=message_bytes)
    return syslog.StreamSink(receiver, encode, hostname=hostname, tls=tls, longest=message_bytes)


def _url(text: str) -> SplitResult:
    try:
        url = urlsplit(text)
        is_known = url.scheme in _SCHEMES and (bool(url.path) if url.scheme == "file" else bool(url.hostname))
        _ = url.port
    except ValueError:
        is_known = False
    if not is_known:
        raise click.UsageError(f"--to takes a URL of {', '.join(_SCHEMES)}")
    return url


def _tls(ca: str | None) -> "ssl.SSLContext":
    import ssl

    return ssl.create_default_context(cafile=ca)


def _ocsf(event: Mapping[str, Any]) -> bytes:
    from agentwrit.delivery import ocsf

    return to_json(ocsf.event(event), separators=(",", ":")).encode()


def _cef(event: Mapping[str, Any]) -> bytes:
    from agentwrit.delivery import cef

    return cef.line(event).encode()
