#!/usr/bin/env bash
# Authlib 1.9.10 writes an EC key as a JWK with a coordinate of 31 octets where the coordinate begins with a zero.
#
# Guess: every library writes 32 octets for P-256. RFC 7518 §6.2.1.2: "the length of this octet string MUST be the size of
# a coordinate for the curve".
# Seen: Authlib drops the leading zero octet; about one key in 128 has a coordinate that begins with one. The key's RFC 7638
# thumbprint is then another than that of every other library, so a DPoP `jkt` made of it matches nobody else's, and PyJWT
# refuses the JWK. joserfc, by the same author and named as Authlib's successor, jwcrypto, PyJWT and python-jose write 32.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet \
  authlib==1.9.10 joserfc==1.8.0 jwcrypto==1.6.1 pyjwt==2.15.1 "python-jose[cryptography]==3.5.0" cryptography==50.0.2
cat >"$dir/run.py" <<'PY'
import base64, json
import jose.jwk, jwt
from authlib.jose import ECKey
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import ECKey as Joserfc
from jwcrypto.jwk import JWK

# The smallest private number whose public point has an x of 31 octets.
key = next(
    key
    for number in range(1, 10_000)
    if (key := ec.derive_private_key(number, ec.SECP256R1())).public_key().public_numbers().x.bit_length() <= 248
).public_key()
pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

def length(value):
    return len(base64.urlsafe_b64decode(value + "=="))

jwks = {
    "Authlib": ECKey.import_key(pem).as_dict(),
    "joserfc": Joserfc.import_key(pem).as_dict(),
    "jwcrypto": json.loads(JWK.from_pem(pem).export_public()),
    "PyJWT": json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key)),
    "python-jose": jose.jwk.construct(pem.decode(), "ES256").to_dict(),
}
for name, jwk in jwks.items():
    print(f"{name}: x has {length(jwk['x'])} octets, y has {length(jwk['y'])}")
ours, theirs = ECKey.import_key(pem).thumbprint(), Joserfc.import_key(pem).thumbprint()
print("thumbprints of Authlib and joserfc agree:", ours == theirs)
print("thumbprints of jwcrypto and joserfc agree:", JWK.from_pem(pem).thumbprint() == theirs)
try:
    jwt.PyJWK.from_dict({name: jwks["Authlib"][name] for name in ("kty", "crv", "x", "y")}, "ES256")
except jwt.PyJWTError as error:
    print("PyJWT reads Authlib's JWK:", error)
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
Authlib: x has 31 octets, y has 32
joserfc: x has 32 octets, y has 32
jwcrypto: x has 32 octets, y has 32
PyJWT: x has 32 octets, y has 32
python-jose: x has 32 octets, y has 32
thumbprints of Authlib and joserfc agree: False
thumbprints of jwcrypto and joserfc agree: True
PyJWT reads Authlib's JWK: Coords should be 32 bytes for curve P-256
EXPECTED
