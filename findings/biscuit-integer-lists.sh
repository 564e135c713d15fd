#!/usr/bin/env bash
# A Python list of integers as the value of a Biscuit's parameter (biscuit-python 0.4.0).
#
# Guess: a list becomes Datalog's array, as a set becomes a set, whatever it holds.
# Seen: a list or tuple whose items all fit into an octet becomes a byte string, the empty list too, and True becomes 01;
# one item above 255 or below 0, and the same list is an array. So `ids({ids})` with [1, 300] passes a check
# `$x.contains(1)`, and with [1, 2] the check ends with "Invalid type", in the token that has been signed already. A set
# stays a set.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet biscuit-python==0.4.0
cat >"$dir/run.py" <<'PY'
from biscuit_auth import AuthorizationError, AuthorizerBuilder, BiscuitBuilder, KeyPair

key = KeyPair().private_key
for value in ([1, 300], [1, 2], (1, 2), [1, -1], [1, 255], [1, 256], [], [True], {"a": [1, 2]}, {1, 2}, ["1", "2"]):
    token = BiscuitBuilder("ids({ids})", {"ids": value}).build(key)
    print(f"{value} is {token.block_source(0).strip()}")
for value in ([1, 300], [1, 2], {1, 2}):
    token = BiscuitBuilder("ids({ids})", {"ids": value}).build(key)
    authorizer = AuthorizerBuilder("check if ids($x), $x.contains(1); allow if true").build(token)
    try:
        authorizer.authorize()
        seen = "passes"
    except AuthorizationError as error:
        seen = " ".join(str(error).split())
    print(f"{value} contains 1: {seen}")
PY
"$dir/venv/bin/python" "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
[1, 300] is ids([1, 300]);
[1, 2] is ids(hex:0102);
(1, 2) is ids(hex:0102);
[1, -1] is ids([1, -1]);
[1, 255] is ids(hex:01ff);
[1, 256] is ids([1, 256]);
[] is ids(hex:);
[True] is ids(hex:01);
{'a': [1, 2]} is ids({"a": hex:0102});
{1, 2} is ids({1, 2});
['1', '2'] is ids(["1", "2"]);
[1, 300] contains 1: passes
[1, 2] contains 1: Datalog execution failure: Invalid type
{1, 2} contains 1: passes
EXPECTED
