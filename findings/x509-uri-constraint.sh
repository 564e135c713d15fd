#!/usr/bin/env bash
# A SPIFFE certificate under an authority that is constrained to its trust domain (pyca/cryptography 50.0.2).
#
# Guess: what OpenSSL verifies, cryptography's verifier does too. X509-SVID §4.2 of the SPIFFE standards has URI name
# constraints in mind for authorities.
# Seen: a chain whose authority permits the URI domain `example.org` fails for `spiffe://example.org/a` with "unsupported
# name constraint", while `openssl verify` says OK; without the constraint both accept. The empty subject that SPIFFE
# allows needs a critical subjectAltName in cryptography (as RFC 5280 §4.2.1.6 says); OpenSSL does not ask.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet cryptography==50.0.2
cat >"$dir/run.py" <<'PY'
import datetime, pathlib, subprocess
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

now = datetime.datetime.now(datetime.timezone.utc)
day = datetime.timedelta(days=1)
name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
URI = x509.UniformResourceIdentifier

def builder(subject, key):
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day))

def usage(signs_certificates):
    return x509.KeyUsage(not signs_certificates, False, False, False, False, signs_certificates, signs_certificates, False, False)

def chain(permitted, critical):
    key, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = (builder(name, key).add_extension(x509.BasicConstraints(True, None), True).add_extension(usage(True), True)
                 .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False))
    if permitted:
        authority = authority.add_extension(x509.NameConstraints([URI(permitted)], None), True)
    svid = (builder(x509.Name([]), leaf).add_extension(x509.SubjectAlternativeName([URI("spiffe://example.org/a")]), critical)
            .add_extension(x509.BasicConstraints(False, None), True).add_extension(usage(False), True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), False))
    return authority.sign(key, hashes.SHA256()), svid.sign(key, hashes.SHA256())

folder = pathlib.Path(__file__).parent
for permitted, critical in ((None, True), ("example.org", True), (None, False)):
    authority, svid = chain(permitted, critical)
    try:
        PolicyBuilder().store(Store([authority])).build_client_verifier().verify(svid, [])
        seen = "OK"
    except VerificationError as error:
        text = str(error)
        seen = next((words for words in ("unsupported name constraint", "subjectAltName MUST be critical") if words in text), text)
    for file, certificate in (("ca.pem", authority), ("svid.pem", svid)):
        (folder / file).write_bytes(certificate.public_bytes(Encoding.PEM))
    openssl = subprocess.run(["openssl", "verify", "-purpose", "sslclient", "-CAfile", "ca.pem", "svid.pem"], cwd=folder,
                             capture_output=True, text=True).stdout.strip()
    print(f"permits {permitted or 'all'}, SAN {'critical' if critical else 'not critical'}: cryptography {seen}, openssl {openssl}")
PY
"$dir/venv/bin/python" "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
permits all, SAN critical: cryptography OK, openssl svid.pem: OK
permits example.org, SAN critical: cryptography unsupported name constraint, openssl svid.pem: OK
permits all, SAN not critical: cryptography subjectAltName MUST be critical, openssl svid.pem: OK
EXPECTED
