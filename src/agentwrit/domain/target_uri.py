"""The URL of a request, as a proof of possession names it (RFC 9449 §4.2, `htu`), and whose URL it is.

The rules:

- URLs are compared without query and fragment (§4.3), after syntax-based and scheme-based normalization (RFC 3986
  §6.2.2, §6.2.3): scheme and host in lower case, no default port, no dot segments, `/` for an empty path, and
  percent-encoded what has to be, but nothing that need not be. `%2F` is no slash, and `a.` is not `a`.
- A host is a name in its ASCII form (RFC 5891), or an address in its one form (RFC 5952). Others are none: neither
  `2130706433` nor `127.1` is 127.0.0.1. A URL that names a user is none either (RFC 9110 §4.2.4).
- By which names a server is known its settings say, or else the address that a connection came to. A request does not
  say it: whoever is shown a proof for another server would write that server's name into it (Host), and pass it on.
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

# RFC 3986 §3.3: what stands in a path as it is. All else, a % that encodes nothing included, is percent-encoded.
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/-]*")
_NOT_PLAIN = re.compile(rb"%[0-9A-Fa-f]{2}|[^A-Za-z0-9._~!$&'()*+,;=:@/-]")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class _Parts(NamedTuple):
    scheme: str
    authority: str
    path: str


def normalized(url: str) -> str:
    """The one spelling of a URL, without query and fragment.

    Raises:
        ValueError: it is no absolute URL, or names a user.
    """
    scheme, authority, path = _split(url)
    return f"{scheme}://{_authority(authority, scheme)}{normal_path(path)}"


def without_user(url: str) -> str:
    """The same of a URL that may name a user: who that is goes into no proof.

    Raises:
        ValueError: it is no absolute URL.
    """
    scheme, authority, path = _split(url)
    return f"{scheme}://{_authority(authority.rpartition('@')[2], scheme)}{normal_path(path)}"


def normal_path(path: str | bytes) -> str:
    """The one spelling of a path (RFC 3986 §6.2.2.2, §6.2.2.3). `path`: as text, or as it stands in a request."""
    if isinstance(path, bytes) or _PATH.fullmatch(path) is None:
        plain = path if isinstance(path, bytes) else path.encode("utf-8")
        path = _NOT_PLAIN.sub(_percent_encoded, plain).decode("ascii")
    return _without_dot_segments(path) if "/." in path else path or "/"


def has_dot_segments(path: str | bytes) -> bool:
    """Whether a path is another one for whoever resolves `.` and `..` than for whoever does not."""
    plain = path if isinstance(path, bytes) else path.encode("utf-8")
    segments = _NOT_PLAIN.sub(_percent_encoded, plain).split(b"/")
    return b"." in segments or b".." in segments


def spellings(resource: str) -> tuple[str, ...]:
    """A resource (RFC 8707 §2), and what else it may be called: a URL without a path may end with a slash or not."""
    parts = _URI.fullmatch(resource)
    if parts is None or parts[3] not in ("", "/") or not resource.endswith(parts[2] + parts[3]):
        return (resource,)
    return (resource, resource.removesuffix("/") if parts[3] else f"{resource}/")


def within(base: str, root: str, path: str) -> str:
    """The URL of a normal path at a server that is known as `base`.

    `root`: under which path the application stands there (ASGI's `root_path`), or empty; `base` may name it or not.
    """
    scheme, authority, prefix = _split(base)
    is_within = path == root or path.startswith(f"{root}/")
    return f"{scheme}://{authority}{prefix.removesuffix(root)}{'' if is_within else root}{path}"


class KnownNames:
    """By which URLs a server is known: `urls`, as its clients write them; or else by the address that they connect to.

    `hosts`: where it was told to listen, names and addresses. Such a name is known too, and 0.0.0.0 to local clients.
    """

    def __init__(self, urls: Iterable[str] = (), *, hosts: Iterable[str] = ()) -> None:
        """Read them.

        Raises:
            ValueError: one is no absolute URL, or names a user.
        """
        listed = [normalized(url).rstrip("/") for url in urls]
        self._urls = tuple(dict.fromkeys([*listed, *(other for url in listed for other in _other_names(url))]))
        hosts = [_in_url(host) for host in hosts]
        self._names = tuple(host.lower() for host in hosts if _is_name(host))
        self._wildcards = tuple(host for host in hosts if host in _WILDCARDS)

    def bases(self, scheme: str, server: Iterable[Any] | None) -> tuple[str, ...]:
        """The URLs, normal and without a slash at their end.

        `server`: host and port that the connection came to, None where it has none.
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
    """A host as a URL has it. An IPv4 address that came in an IPv6 one is itself (RFC 4291 §2.5.5.2)."""
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return f"[{address}]" if address.ipv4_mapped is None else str(address.ipv4_mapped)


def _other_names(url: str) -> list[str]:
    """What else the same loopback interface is called."""
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
    """The port with its colon, or empty."""
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
        import idna  # what HTTP libraries have for it; most never need it

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
