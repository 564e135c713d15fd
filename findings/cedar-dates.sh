#!/usr/bin/env bash
# Cedar's datetime and decimal, given what Python's own functions write (cedarpy 4.12.2).
#
# Guess: a datetime is read as RFC 3339 has it, a decimal as a number.
# Seen: an offset is `Z` or `+hhmm`, so `datetime.isoformat()`, which writes `+00:00`, is refused, and fractions have three
# digits or none, not Python's six. A decimal needs a point: `str(Decimal(5))` is refused, and more than four digits behind
# it too. A JSON number with a point is no value at all. The whole request then fails, with the
# decision "NoDecision".
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet cedarpy==4.12.2
cat >"$dir/run.py" <<'PY'
import cedarpy
from datetime import datetime, timezone
from decimal import Decimal

def decide(condition, value):
    request = {"principal": 'User::"a"', "action": 'Action::"read"', "resource": 'Doc::"d"', "context": {"x": value}}
    return cedarpy.is_authorized(request, f"permit(principal, action, resource) when {{ {condition} }};", []).decision.value

def extension(name, text):
    return {"__extn": {"fn": name, "arg": text}}

moment = datetime(2029, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
for text in (
    moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    moment.isoformat(),
    moment.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "2029-12-31T23:59:59.5Z",
    "2029-12-31T23:59:59.500Z",
    moment.replace(microsecond=500_000).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
):
    print(f"datetime {text}:", decide('context.x < datetime("2030-01-01")', extension("datetime", text)))
for text in (str(Decimal("5.0")), str(Decimal(5)), str(Decimal("5.00001"))):
    print(f"decimal {text}:", decide('context.x.lessThan(decimal("6.0"))', extension("decimal", text)))
for value in (1, 1.0):
    print(f"JSON {value}:", decide("context.x == 1", value))
PY
"$dir/venv/bin/python" "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
datetime 2029-12-31T23:59:59Z: Allow
datetime 2029-12-31T23:59:59+00:00: NoDecision
datetime 2029-12-31T23:59:59+0000: Allow
datetime 2029-12-31T23:59:59.5Z: NoDecision
datetime 2029-12-31T23:59:59.500Z: Allow
datetime 2029-12-31T23:59:59.500000Z: NoDecision
decimal 5.0: Allow
decimal 5: NoDecision
decimal 5.00001: NoDecision
JSON 1: Allow
JSON 1.0: NoDecision
EXPECTED
