"""The broker speaks HTTPS when it is given a certificate, and asks for the client's when it is given a CA."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agentwrit import AgentWritApp
from tests.support import BrokerProcess


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
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
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
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


def test_a_client_without_a_certificate_is_turned_away_where_one_is_asked_for(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    known = ssl.create_default_context(cafile=str(certificate))
    known.load_cert_chain(certificate, key)
    settings = {
        "AGENTWRIT_TLS_CERT": str(certificate),
        "AGENTWRIT_TLS_KEY": str(key),
        "AGENTWRIT_TLS_CLIENT_CA": str(certificate),
    }
    with BrokerProcess(tmp_path / "data", verify=known, **settings) as broker:
        assert broker.http.get("/v1/health").status_code == 200
        with httpx2.Client(verify=trust, trust_env=False) as stranger, pytest.raises(httpx2.TransportError):
            stranger.get(f"{broker.url}/v1/health")
