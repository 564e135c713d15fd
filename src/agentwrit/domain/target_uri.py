"""The URL of a request as in a DPoP proof (RFC 9449 §4.2, `htu`), and which URLs are a server's own.

The rules:

- URLs are compared without query and fragment (§4.3), after syntax-based and scheme-based normalization (RFC 3986
  §6.2.2, §6.2.3): scheme and host in lower case, no default port, no dot segments, `/` for an empty path, and
  percent-encoding only where it is required. `%2F` is not a slash, and `a.` is not `a`.
- A host is a name in ASCII form (RFC 5891), or an address in canonical form (RFC 5952). Other forms are rejected:
  neither `2130706433` nor `127.1` is 127.0.0.1. URLs that name a user are rejected too (RFC 9110 §4.2.4).
- The server's settings, or else the address to which the connection came, decide which names are the server's. The
  request (Host) never does: a server that received a proof meant for it could relay the proof to another server, with
  its own name in Host.
- `localhost` is another name of the loopback addresses 127.0.0.1 and ::1 (RFC 6761 §6.3).
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

LOOPBACK_NAME: Final = "localhost"
ADDRESSES_REMEMBERED: Final = 64
MAX_HOST_LENGTH: Final = 253  # RFC 1035 §3.1

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LOOPBACK: Final = ("127.0.0.1", "[::1]")
_WILDCARDS: Final = ("0.0.0.0", "[::]")  # noqa: S104  # compared with, not bound

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#\\]*)((?:/[^?#]*)?)(?:[?#].*)?")  # RFC 3986, appendix B
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")

# RFC 3986 §3.3: the characters that a path may contain. All others are percent-encoded, as is a % that encodes nothing.
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/-]*")
_NOT_PLAIN = re.compile(rb"%[0-9A-Fa-f]{2}|[^A-Za-z0-9._~!$&'()*+,;=:@/-]")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class _Parts(NamedTuple):
    scheme: str
    authority: str
    path: str


def normalized(url: str) -> str:
    """The normal form of a URL, without query and fragment.

    Raises:
        ValueError: `url` is not an absolute URL, or names a user.
    """
    scheme, authority, path = _split(url)
    return f"{scheme}://{_authority(authority, scheme)}{normal_path(path)}"


def without_user(url: str) -> str:
    """The normal form of a URL without its user, which must not appear in a proof.

    Raises:
        ValueError: `url` is not an absolute URL.
    """
    scheme, authority, path = _split(url)
    return f"{scheme}://{_authority(authority.rpartition('@')[2], scheme)}{normal_path(path)}"


def normal_path(path: str | bytes) -> str:
    """The normal form of a path (RFC 3986 §6.2.2.2, §6.2.2.3). `path`: as text, or the bytes in a request."""
    if isinstance(path, bytes) or _PATH.fullmatch(path) is None:
        plain = path if isinstance(path, bytes) else path.encode("utf-8")
        path = _NOT_PLAIN.sub(_percent_encoded, plain).decode("ascii")
    return _without_dot_segments(path) if "/." in path else path or "/"


def has_dot_segments(path: str | bytes) -> bool:
    """Whether a path has segments `.` or `..`, so that programs that resolve these see another path."""
    plain = path if isinstance(path, bytes) else path.encode("utf-8")
    segments = _NOT_PLAIN.sub(_percent_encoded, plain).split(b"/")
    return b"." in segments or b".." in segments


def spellings(resource: str) -> tuple[str, ...]:
    """A resource (RFC 8707 §2) and its other spelling, if any: a URL without a path may end with a slash or not."""
    parts = _URI.fullmatch(resource)
    if parts is None or parts[3] not in ("", "/") or not resource.endswith(parts[2] + parts[3]):
        return (resource,)
    return (resource, resource.removesuffix("/") if parts[3] else f"{resource}/")


def within(base: str, root: str, path: str) -> str:
    """The URL of a normalized path at a server with the base URL `base`.

    `root`: the path under which the application is mounted (ASGI's `root_path`), or empty. `base` may include it.
    """
    scheme, authority, prefix = _split(base)
    is_within = path == root or path.startswith(f"{root}/")
    return f"{scheme}://{authority}{prefix.removesuffix(root)}{'' if is_within else root}{path}"


class KnownNames:
    """The base URLs of a server: `urls`, as its clients write them, or else the address that they connect to.

    `hosts`: the names and addresses on which the server listens. Such a name is known too, and 0.0.0.0 for local
    clients.
    """

    def __init__(self, urls: Iterable[str] = (), *, hosts: Iterable[str] = ()) -> None:
        """Normalize the URLs.

        Raises:
            ValueError: one is not an absolute URL, or names a user.
        """
        listed = [normalized(url).rstrip("/") for url in urls]
        self._urls = tuple(dict.fromkeys([*listed, *(other for url in listed for other in _other_names(url))]))
        hosts = [_in_url(host) for host in hosts]
        self._names = tuple(host.lower() for host in hosts if _is_name(host))
        self._wildcards = tuple(host for host in hosts if host in _WILDCARDS)

    def bases(self, scheme: str, server: Iterable[Any] | None) -> tuple[str, ...]:
        """The base URLs, normalized and without a trailing slash.

        `server`: the host and port to which the connection came; None if there is none.
        """
        if self._urls or server is None:
            return self._urls
        host, port = server
        return _of_address(scheme, str(host), port, self._names, self._wildcards)


@lru_cache(ADDRESSES_REMEMBERED)
def _of_address(
    scheme: str, host: str, port: int | None, names: tuple[str, ...], wildcards: tuple[str, ...]
) -> tuple[str, ...]:
    address = _in_url(host)
    if _NAME.fullmatch(address.lower()) is None and not address.startswith("["):
        return ()  # the path of a socket
    local = (*wildcards, LOOPBACK_NAME) if address in _LOOPBACK else ()
    suffix = "" if port is None else f":{port}"
    urls = [normalized(f"{scheme}://{name}{suffix}").rstrip("/") for name in (*names, address, *local)]
    return tuple(dict.fromkeys(urls))


def _in_url(host: str) -> str:
    """A host as in a URL. An IPv4-mapped IPv6 address becomes the IPv4 address (RFC 4291 §2.5.5.2)."""
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return f"[{address}]" if address.ipv4_mapped is None else str(address.ipv4_mapped)


def _other_names(url: str) -> list[str]:
    """The other names of the same URL if its host is a loopback address or `localhost`."""
    scheme, authority, path = _split(url)
    host, port = _host_and_port(authority)
    if host in _LOOPBACK:
        others: Iterable[str] = (LOOPBACK_NAME,)
    else:
        others = _LOOPBACK if host == LOOPBACK_NAME else ()
    return [f"{scheme}://{other}{port}{path}" for other in others]


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return _NAME.fullmatch(host.lower()) is not None
    return False


def _split(url: str) -> _Parts:
    parts = None if _CONTROL.search(url) else _URI.fullmatch(url)
    if parts is None:
        raise ValueError("not an absolute URL")
    return _Parts(parts[1].lower(), parts[2], parts[3])


def _host_and_port(authority: str) -> tuple[str, str]:
    """Split an authority. The port includes its colon, or is empty."""
    host, colon, port = authority.rpartition(":")
    return (host, colon + port) if colon and "]" not in port else (authority, "")


def _authority(text: str, scheme: str) -> str:
    host, port = _host_and_port(text)
    digits = port[1:]
    if not digits:
        return _host(host)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535):
        raise ValueError("not a port")
    return _host(host) if int(digits) == _DEFAULT_PORTS.get(scheme) else f"{_host(host)}:{int(digits)}"


def _host(text: str) -> str:
    if len(text) > MAX_HOST_LENGTH:
        raise ValueError("not a host")
    if text.startswith("[") and text.endswith("]") and "%" not in text:
        return f"[{ipaddress.IPv6Address(text[1:-1])}]"
    if not text.isascii():
        import idna  # loaded only when needed, which is rare

        text = idna.encode(text, uts46=True).decode("ascii")
    host = text.lower()
    if _NAME.fullmatch(host) is None:
        raise ValueError("not a host")
    return host


def _percent_encoded(found: re.Match[bytes]) -> bytes:
    piece = found[0]
    if len(piece) == 1:
        return b"%%%02X" % piece[0]
    byte = int(piece[1:], 16)
    return bytes((byte,)) if byte in _UNRESERVED else piece.upper()


def _without_dot_segments(path: str) -> str:
    """RFC 3986 §5.2.4, for a path that begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
