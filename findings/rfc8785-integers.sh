#!/usr/bin/env bash
# Two Python implementations of RFC 8785 (JSON canonicalisation), and the integers that a double cannot hold.
#
# Guess: both follow ECMAScript, where 2^60 is written 1152921504606847000 (the RFC's §3.2.2.3), or both refuse.
# Seen: rfc8785 0.1.4 refuses the int 2^53, which a double holds and which the RFC's own table in appendix B lists
# (9007199254740992), and takes the same number as a float. jcs 0.2.1 takes every int and rounds: two different documents
# have one canonical form, and one signature.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet rfc8785==0.1.4 jcs==0.2.1
cat >"$dir/run.py" <<'PY'
import jcs, rfc8785

for value in (2**53 - 1, 2**53, float(2**53), 2**53 + 1, 2**60, 2**60 + 1):
    try:
        ours = rfc8785.dumps(value).decode()
    except rfc8785.IntegerDomainError:
        ours = "IntegerDomainError"
    print(f"{value!r}: rfc8785 {ours}, jcs {jcs.canonicalize(value).decode()}")
PY
"$dir/venv/bin/python" "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
9007199254740991: rfc8785 9007199254740991, jcs 9007199254740991
9007199254740992: rfc8785 IntegerDomainError, jcs 9007199254740992
9007199254740992.0: rfc8785 9007199254740992, jcs 9007199254740992
9007199254740993: rfc8785 IntegerDomainError, jcs 9007199254740992
1152921504606846976: rfc8785 IntegerDomainError, jcs 1152921504606847000
1152921504606846977: rfc8785 IntegerDomainError, jcs 1152921504606847000
EXPECTED
