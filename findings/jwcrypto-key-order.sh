#!/usr/bin/env bash
# The order of the keys in a JWK set that jwcrypto 1.6.1 reads and writes.
#
# Guess: the order of the document, or of the calls of `add`. RFC 7517 §5.1 lets applications give the order a meaning.
# Seen: the keys stand in a Python set whose hashes differ from process to process, so two workers that publish one set
# write two documents (and two ETags), a worker that is started again writes a third, and "the first key signs" does not
# survive. joserfc 1.8.0 and PyJWT 2.15.1 keep the order.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet \
  jwcrypto==1.6.1 joserfc==1.8.0 pyjwt==2.15.1 cryptography==50.0.2
cat >"$dir/run.py" <<'PY'
import base64, json, subprocess, sys

LIBRARIES = {
    "jwcrypto": "from jwcrypto.jwk import JWKSet; print([key['kid'] for key in json.loads(JWKSet.from_json(text).export())['keys']])",
    "joserfc": "from joserfc.jwk import KeySet; print([key['kid'] for key in KeySet.import_key_set(json.loads(text)).as_dict(private=True)['keys']])",
    "PyJWT": "from jwt import PyJWKSet; print([key.key_id for key in PyJWKSet.from_json(text).keys])",
}
keys = [{"kty": "oct", "kid": f"key {n}", "alg": "HS256", "k": base64.urlsafe_b64encode(bytes([n]) * 32).decode().rstrip("=")} for n in range(8)]
text = json.dumps({"keys": keys})
wanted = str([key["kid"] for key in keys])
for name, code in LIBRARIES.items():
    orders = set()
    for seed in "1234":  # as in four processes; a program draws its own seed unless it is told one
        run = [sys.executable, "-W", "ignore", "-c", f"import json, sys; text = sys.argv[1]; {code}", text]
        orders.add(subprocess.run(run, env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True).stdout.strip())
    print(f"{name}: {len(orders)} orders in 4 processes, the document's among them: {wanted in orders}")
PY
"$dir/venv/bin/python" "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
jwcrypto: 4 orders in 4 processes, the document's among them: False
joserfc: 1 orders in 4 processes, the document's among them: True
PyJWT: 1 orders in 4 processes, the document's among them: True
EXPECTED
