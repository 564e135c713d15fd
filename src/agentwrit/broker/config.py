"""The broker's settings: AGENTWRIT_* variables, or the same names in a TOML file (`data_dir = "…"`).

A variable takes precedence over the file. An invalid value aborts startup with an error that names the setting; so does
an unknown name in the file. An unknown variable is only reported, because the environment is shared with other
programs.
"""

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from agentwrit.domain import operator, spiffe_id, target_uri
from agentwrit.domain.errors import AgentWritError, ConfigurationError
from agentwrit.reading import small_text

PREFIX: Final = "AGENTWRIT_"
UNIX: Final = "unix:"  # the prefix of a host that is the path of a socket

_NO_PUBLIC_URL: Final = (
    "AGENTWRIT_PUBLIC_URL is not set: agents prove their keys for the URL that they know the broker by, and are refused"
    " unless that is the address that they connect to; set it to that URL, or to several, separated by commas"
)

# Settings of the SDK and the command line, which use the same prefix.
CLIENT_NAMES: Final = frozenset(
    {
        "BROKER_URL",
        "CLIENT_ID",
        "CLIENT_SECRET",
        "NEW_MASTER_KEY",
        "OPERATOR",
        "SINK_AUTHORIZATION",
    }
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class _BadValue(Exception):
    """Says what the value should be."""


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _BadValue("a text that is not empty")
    return value


def _optional_text(value: object) -> str | None:
    return None if value == "" else _text(value)


def _integer(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise _BadValue(f"a whole number from {low} to {high}{_where_from(value)}")
        return number

    return read


def _where_from(value: object) -> str:
    """A hint about a value that Kubernetes sets in each pod beside a Service named agentwrit."""
    if not isinstance(value, str) or not value.startswith(("tcp://", "udp://")):
        return ""
    return ", and this is Kubernetes' link to a Service: set enableServiceLinks: false in the pod"


def _one_of(*choices: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in choices:
            raise _BadValue(f"one of {', '.join(choices)}")
        return value.lower()

    return read


def _path(value: object) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError:
        raise _BadValue("a path, with a ~ only for users that there are") from None


def _optional_path(value: object) -> Path | None:
    return None if value == "" else _path(value)


def _urls(value: object) -> tuple[str, ...]:
    urls = tuple(url.rstrip("/") for url in _list(value))
    for url in urls:
        try:
            is_url = target_uri.normalized(url).startswith(("http://", "https://")) and not set(url) & set("?#")
        except ValueError:
            is_url = False
        if not is_url:
            raise _BadValue("http or https URLs, for example https://broker.example.com, separated by commas")
    return urls


def _trust_domain(value: object) -> str:
    if not isinstance(value, str) or not spiffe_id.is_trust_domain(value):
        raise _BadValue("a SPIFFE trust domain: lowercase letters, digits, dots, hyphens, underscores")
    return value


def _list(value: object) -> tuple[str, ...]:
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise _BadValue("a list of texts, in a variable separated by commas")
    return tuple(item.strip() for item in items if item.strip())


def _hosts(value: object) -> tuple[str, ...]:
    hosts = _list(value)
    if not hosts or any(host.startswith(UNIX) and not host.removeprefix(UNIX).startswith("/") for host in hosts):
        raise _BadValue("addresses or names to listen on, or unix:/a/path, separated by commas")
    # IPv6 addresses may be in brackets, as in URLs.
    return tuple(host[1:-1] if host.startswith("[") and host.endswith("]") else host for host in hosts)


def _networks(value: object) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(item) for item in _list(value))
    except ValueError:
        raise _BadValue("addresses or networks, for example 10.0.0.0/8, separated by commas") from None


def _database_url(value: object) -> str | None:
    if value == "":
        return None
    if not isinstance(value, str) or not value.startswith(("postgresql://", "postgres://")):
        raise _BadValue("the URL of a PostgreSQL database: postgresql://user:password@host:5432/database")
    return value


def _setting(default: Any, read: Callable[[object], Any], *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"read": read})


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings, validated. Times are in seconds."""

    admin_secret: str | None = _setting(None, _optional_text, secret=True)
    master_key: str | None = _setting(None, _optional_text, secret=True)
    data_dir: Path = _setting(Path("agentwrit-data"), _path)
    database_url: str | None = _setting(None, _database_url, secret=True)
    public_url: tuple[str, ...] = _setting((), _urls)
    host: tuple[str, ...] = _setting(("127.0.0.1",), _hosts)
    port: int = _setting(8080, _integer(0, 65535))
    workers: int = _setting(1, _integer(1, 1024))
    issuer: str = _setting("agentwrit", _text)
    audience: tuple[str, ...] = _setting((), _list)
    trust_domain: str = _setting("agentwrit.local", _trust_domain)
    default_ttl: int = _setting(300, _integer(1, 365 * 86_400))
    max_ttl: int = _setting(86_400, _integer(1, 365 * 86_400))
    max_lifetime: int = _setting(86_400, _integer(1, 365 * 86_400))
    app_token_ttl: int = _setting(1800, _integer(60, 86_400))
    app_log_rate: int = _setting(8192, _integer(0, 2**20))
    admin_token_ttl: int = _setting(300, _integer(1, 86_400))
    drain_seconds: int = _setting(0, _integer(0, 3600))
    key_max_age: int = _setting(30 * 86_400, _integer(0, 3650 * 86_400))
    audit_retention: int | None = _setting(None, _integer(1, 36_500))
    audit_archive: Path | None = _setting(None, _optional_path)
    trusted_proxies: tuple[Network, ...] = _setting((), _networks)
    tls_cert: Path | None = _setting(None, _optional_path)
    tls_key: Path | None = _setting(None, _optional_path)
    tls_client_ca: Path | None = _setting(None, _optional_path)
    client_cert: Path | None = _setting(None, _optional_path)
    client_key: Path | None = _setting(None, _optional_path)
    log_level: str = _setting("info", _one_of("debug", "info", "warning", "error"))
    log_format: str = _setting("console", _one_of("console", "json"))
    metrics_host: tuple[str, ...] = _setting(("127.0.0.1",), _hosts)
    metrics_port: int | None = _setting(None, _integer(1, 65535))

    @property
    def is_tls(self) -> bool:
        """Whether clients connect by TLS, to the broker or to a proxy in front of it."""
        return self.tls_cert is not None or any(url.startswith("https:") for url in self.public_url)

    @property
    def told_url(self) -> str | None:
        """The URL that clients are told, of the URLs by which they reach the broker."""
        return self.public_url[0] if self.public_url else None

    @property
    def default_audience(self) -> tuple[str, ...]:
        """The audience of tokens, unless the request names another."""
        return self.audience or (self.issuer,)


_READERS: Final[dict[str, Callable[[object], Any]]] = {item.name: item.metadata["read"] for item in fields(Config)}


def load(environ: Mapping[str, str], file: Path | None = None) -> Config:
    """Read the settings.

    Raises:
        ConfigurationError: one line that names the setting and its valid values.
    """
    values: dict[str, Any] = {}
    for name, value in (_read_file(file) if file is not None else {}).items():
        values[name] = _checked(f"{name} in {file}", _READERS[name], value)
    for name, read in _READERS.items():
        variable = PREFIX + name.upper()
        if variable in environ and not (name == "admin_secret" and _named_operator(environ)):
            values[name] = _checked(variable, read, environ[variable])
    config = Config(**values)
    _check_together(config)
    return config


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each AGENTWRIT_ variable that is not a setting, with the most similar name that is."""
    known = sorted({name.upper() for name in _READERS} | CLIENT_NAMES)
    given = sorted(name.removeprefix(PREFIX) for name in environ if name.startswith(PREFIX))
    lines = [f"{PREFIX}{name} is not a setting{_nearest(name, known, PREFIX)}" for name in given if name not in known]
    if f"{PREFIX}ADMIN_SECRET" in environ and _named_operator(environ):
        lines.append(
            f"{PREFIX}ADMIN_SECRET is the secret of the operator whom {PREFIX}OPERATOR names, and not the first one's:"
            " it sets nothing here"
        )
    return lines


def _named_operator(environ: Mapping[str, str]) -> bool:
    """Whether the variables are a named operator's, for the command line.

    `agentwrit operator add` prints them for a shell, in which somebody may also start a broker.
    """
    return environ.get(f"{PREFIX}OPERATOR", "") not in ("", operator.SUBJECT)


def doubts(config: Config) -> list[str]:
    """A line for each missing setting that is probably needed."""
    is_local = all(host == target_uri.LOOPBACK_NAME or _is_loopback(host) for host in config.host)
    if config.public_url or (is_local and not config.trusted_proxies):
        return []
    return [_NO_PUBLIC_URL]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def from_environment(file: Path | None = None) -> Config:
    return load(os.environ, file)


def _read_file(file: Path) -> dict[str, object]:
    try:
        content = tomllib.loads(small_text(file))
    except OSError as error:
        raise ConfigurationError(f"the configuration file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AgentWritError, RecursionError) as error:
        raise ConfigurationError(f"the configuration file {file} is not TOML: {error}") from error
    for name in content:
        if name not in _READERS:
            raise ConfigurationError(f"{name} in {file} is not a setting{_nearest(name, sorted(_READERS))}")
    return content


def _nearest(name: str, known: list[str], prefix: str = "") -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f": did you mean {prefix}{matches[0]}?" if matches else ""


def _checked(name: str, read: Callable[[object], Any], value: object) -> Any:
    try:
        return read(value)
    except _BadValue as expected:
        raise ConfigurationError(f"{name} takes {expected}") from None


def _check_together(config: Config) -> None:
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigurationError("AGENTWRIT_TLS_CERT and AGENTWRIT_TLS_KEY are set together or not at all")
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise ConfigurationError("AGENTWRIT_TLS_CLIENT_CA needs AGENTWRIT_TLS_CERT and AGENTWRIT_TLS_KEY")
    if config.client_key is not None and config.client_cert is None:
        raise ConfigurationError("AGENTWRIT_CLIENT_KEY is set without AGENTWRIT_CLIENT_CERT: set both, or neither")
    if config.default_ttl > config.max_ttl:
        raise ConfigurationError("AGENTWRIT_DEFAULT_TTL is larger than AGENTWRIT_MAX_TTL: lower it, or raise the other")
    if (config.audit_retention is None) != (config.audit_archive is None):
        raise ConfigurationError("AGENTWRIT_AUDIT_RETENTION and AGENTWRIT_AUDIT_ARCHIVE are set together or not at all")
    if config.database_url is not None and config.master_key is None:
        raise ConfigurationError(
            "AGENTWRIT_DATABASE_URL needs AGENTWRIT_MASTER_KEY, the same for all brokers of the database:"
            " make one with `openssl rand -hex 32`"
        )
    if config.database_url is None and config.workers > 1:
        raise ConfigurationError(
            "AGENTWRIT_WORKERS: the embedded store serves one worker; set it to 1, or set AGENTWRIT_DATABASE_URL"
        )
