"""The broker speaks HTTPS when it is given a certificate, and asks for the client's when it is given a CA."""

import asyncio
import datetime
import ipaddress
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentwrit import (
    AgentWritApp,
    AgentWritError,
    AsyncAgentWritApp,
    AsyncVerifier,
    TransportError,
    Verifier,
    validate,
)
from tests.cli.support import AGENTWRIT
from tests.support import ADMIN_SECRET, BrokerProcess


def self_signed(directory: Path, passphrase: bytes | None = None) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, which may need a passphrase."""
    directory.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "cert.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return certificate_file, key_file


def test_a_life_over_tls(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    settings = {"AGENTWRIT_TLS_CERT": str(certificate), "AGENTWRIT_TLS_KEY": str(key)}
    with BrokerProcess(tmp_path / "data", verify=trust, **settings) as broker:
        assert broker.url.startswith("https://")
        assert "max-age=" in broker.http.get("/v1/health").headers["strict-transport-security"]
        registered = broker.app()
        with AgentWritApp(broker.url, registered.client_id, registered.client_secret, verify=trust) as app:
            agent = app.create_agent("o", "t", ["read:data:1"])
            assert app.validate(agent.access_token).valid
            agent.release()


@contextmanager
def hello_at_once(url: str, pid: int, hello: bytes) -> Iterator[socket.socket]:
    """A connection whose first bytes are there before the broker takes it in."""
    host, _, port = url.rpartition("/")[2].partition(":")
    os.kill(pid, signal.SIGSTOP)
    try:
        connection = socket.create_connection((host, int(port)), timeout=30)
        connection.sendall(hello)
    finally:
        os.kill(pid, signal.SIGCONT)
    with connection:
        yield connection


def test_a_client_that_speaks_before_it_is_taken_in_is_understood(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    settings = {"AGENTWRIT_TLS_CERT": str(certificate), "AGENTWRIT_TLS_KEY": str(key)}
    with BrokerProcess(tmp_path / "data", verify=trust, **settings) as broker:
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trust.wrap_bio(received, to_send, server_hostname="127.0.0.1")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        with hello_at_once(broker.url, broker.pid, to_send.read()) as connection:
            while tls.version() is None:
                received.write(connection.recv(65536))
                with suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
            assert tls.version() == "TLSv1.3"


def test_nothing_that_comes_without_tls_is_read_as_a_request(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    settings = {"AGENTWRIT_TLS_CERT": str(certificate), "AGENTWRIT_TLS_KEY": str(key)}
    with BrokerProcess(tmp_path / "data", verify=trust, **settings) as broker:
        request = b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        with hello_at_once(broker.url, broker.pid, request) as connection:
            assert b"HTTP" not in connection.recv(65536)


@dataclass(frozen=True)
class Guarded:
    """A broker that knows the client of one certificate alone, which is not its own."""

    broker: BrokerProcess
    settings: dict[str, str]
    environment: dict[str, str]  # of a client that shows it
    certificate: tuple[str, str]

    def trust(self) -> ssl.SSLContext:
        """What trusts the broker, and shows nothing yet."""
        return ssl.create_default_context(cafile=self.settings["AGENTWRIT_TLS_CERT"])

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A program with this environment and nobody at the terminal."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTWRIT_")}
        return subprocess.run(
            arguments,
            env={**kept, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = self_signed(directory / "broker")
    shown, shown_key = self_signed(directory / "client")
    settings = {
        "AGENTWRIT_TLS_CERT": str(certificate),
        "AGENTWRIT_TLS_KEY": str(key),
        "AGENTWRIT_TLS_CLIENT_CA": str(shown),
    }
    known = ssl.create_default_context(cafile=str(certificate))
    known.load_cert_chain(shown, shown_key)
    with BrokerProcess(directory / "data", verify=known, **settings) as broker:
        settings["AGENTWRIT_PORT"] = broker.url.rpartition(":")[2]
        client = {
            "AGENTWRIT_BROKER_URL": broker.url,
            "AGENTWRIT_ADMIN_SECRET": ADMIN_SECRET,
            "AGENTWRIT_CLIENT_CERT": str(shown),
            "AGENTWRIT_CLIENT_KEY": str(shown_key),
            "SSL_CERT_FILE": str(certificate),
        }
        yield Guarded(broker, settings, client, (str(shown), str(shown_key)))


def test_a_client_without_a_certificate_is_turned_away_where_one_is_asked_for(guarded: Guarded) -> None:
    assert guarded.broker.http.get("/v1/health").status_code == 200
    with httpx2.Client(verify=guarded.trust(), trust_env=False) as stranger, pytest.raises(httpx2.TransportError):
        stranger.get(f"{guarded.broker.url}/v1/health")


def test_the_health_check_shows_a_certificate(guarded: Guarded, tmp_path: Path) -> None:
    health = (sys.executable, "-m", "agentwrit.broker", "health")
    shown = {name: guarded.environment[name] for name in ("AGENTWRIT_CLIENT_CERT", "AGENTWRIT_CLIENT_KEY")}
    done = guarded.run(*health, **guarded.settings, **shown)
    assert (done.returncode, done.stderr) == (0, "")
    done = guarded.run(*health, **guarded.settings)  # its own, which this broker does not know
    assert done.returncode == 1
    assert done.stderr.startswith("agentwrit: 127.0.0.1 port ")
    assert guarded.settings["AGENTWRIT_TLS_CERT"] in done.stderr
    done = guarded.run(*health, **guarded.settings, AGENTWRIT_CLIENT_CERT=str(tmp_path / "none.pem"))
    assert done.returncode == 2
    assert "AGENTWRIT_CLIENT_CERT" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_health_check_shows_the_brokers_own_certificate_where_no_other_is_set(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path / "broker")
    trust = ssl.create_default_context(cafile=str(certificate))
    trust.load_cert_chain(certificate, key)
    settings = {
        "AGENTWRIT_TLS_CERT": str(certificate),
        "AGENTWRIT_TLS_KEY": str(key),
        "AGENTWRIT_TLS_CLIENT_CA": str(certificate),
    }
    with BrokerProcess(tmp_path / "data", verify=trust, **settings) as broker:
        settings["AGENTWRIT_PORT"] = broker.url.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "agentwrit.broker", "health"], env=settings, capture_output=True, timeout=30
        )
        assert (done.returncode, done.stderr) == (0, b"")


COMMANDS = [
    ("app", "list"),
    ("agents", "list"),
    ("operator", "list"),
    ("keys", "list"),
    ("audit", "events"),
    ("audit", "export"),
    ("audit", "usage", "--app", "worker"),
    ("audit", "verify"),
    ("token", "validate", "none"),
]


def test_each_command_shows_the_certificate_of_its_environment(guarded: Guarded) -> None:
    guarded.broker.app(name="worker")
    for command in COMMANDS:
        done = guarded.run(AGENTWRIT, *command, **guarded.environment)
        assert (command, done.returncode) == (command, 1 if command[0] == "token" else 0), done.stderr
    token = guarded.broker.app().token()
    done = guarded.run(AGENTWRIT, "token", "inspect", token, **guarded.environment)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["holds", "yes"]), done.stderr
    without = {name: value for name, value in guarded.environment.items() if "CLIENT" not in name}
    done = guarded.run(AGENTWRIT, "app", "list", **without)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_app_of_the_environment_shows_its_certificate(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    app = guarded.broker.app()
    credentials = {"AGENTWRIT_CLIENT_ID": app.client_id, "AGENTWRIT_CLIENT_SECRET": app.client_secret}
    for name, value in (guarded.environment | credentials).items():
        monkeypatch.setenv(name, value)
    with AgentWritApp.from_env() as blocking:
        agent = blocking.create_agent("o", "t", ["read:data:1"])
        assert blocking.validate(agent.access_token).valid

    async def main() -> None:
        async with AsyncAgentWritApp.from_env() as app, AsyncVerifier(guarded.broker.url, **shown) as verifier:
            assert (await app.validate(agent.access_token)).valid
            assert (await verifier.verify(agent.access_token)).sub == agent.agent_id

    shown: dict[str, Any] = {"cert": guarded.certificate}
    asyncio.run(main())
    with Verifier(guarded.broker.url, **shown) as verifier:
        assert verifier.verify(agent.access_token).sub == agent.agent_id
    assert validate(guarded.broker.url, agent.access_token, **shown).valid
    assert not [each for each in recwarn if issubclass(each.category, DeprecationWarning)]


def test_validate_shows_a_certificate_to_whoever_is_trusted(guarded: Guarded, tmp_path: Path) -> None:
    url = guarded.broker.url
    assert not validate(url, "none", verify=guarded.trust(), cert=guarded.certificate).valid
    both = tmp_path / "both.pem"
    both.write_text("".join(Path(part).read_text() for part in guarded.certificate))
    assert not validate(url, "none", verify=guarded.trust(), cert=str(both)).valid
    with pytest.raises(TransportError):
        validate(
            url, "none", verify=ssl.create_default_context(cafile=guarded.settings["AGENTWRIT_TLS_CERT"]), timeout=2
        )


def test_a_certificate_that_cannot_be_loaded_is_named_and_no_passphrase_is_waited_for(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = (str(file) for file in self_signed(tmp_path / "locked", b"open sesame"))
    for cert in (str(tmp_path / "none.pem"), (certificate, key), (certificate, guarded.certificate[1])):
        with pytest.raises(AgentWritError, match="the client's certificate"):
            validate(guarded.broker.url, "none", verify=guarded.trust(), cert=cert)
    with pytest.raises(TransportError):  # it is loaded, and then nobody knows it
        validate(guarded.broker.url, "none", verify=guarded.trust(), cert=(certificate, key, "open sesame"), timeout=2)
    monkeypatch.setenv("AGENTWRIT_CLIENT_KEY", key)
    for name in ("BROKER_URL", "CLIENT_ID", "CLIENT_SECRET"):
        monkeypatch.setenv(f"AGENTWRIT_{name}", "https://127.0.0.1:1")
    with pytest.raises(AgentWritError, match="AGENTWRIT_CLIENT_CERT"):
        AgentWritApp.from_env()
