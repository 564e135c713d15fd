#!/usr/bin/env bash
# W3C Baggage between OpenTelemetry for Python (opentelemetry-api 1.45.2) and for JavaScript (@opentelemetry/core 2.12.1).
#
# Guess: a value that one side sets is the value that the other side reads; the format percent-encodes, and a property
# behind a semicolon is no part of the value.
# Seen: Python encodes values as HTML forms do. A space leaves as `+`, which JavaScript, as the format has it, reads as a
# plus sign; a plus sign that somebody sends unencoded, which the format allows, is a space in Python. Properties become
# part of Python's value, and when Python sends that on, the semicolon is encoded: all behind it see the longer value.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet opentelemetry-api==1.45.2
(cd "$dir" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund \
  @opentelemetry/core@2.12.1 @opentelemetry/api@1.9.1)
cat >"$dir/run.mjs" <<'JS'
import { W3CBaggagePropagator } from '@opentelemetry/core'
import { ROOT_CONTEXT, defaultTextMapGetter, defaultTextMapSetter, propagation } from '@opentelemetry/api'

const propagator = new W3CBaggagePropagator()
const [, , verb, text] = process.argv
if (verb === 'read') {
  const context = propagator.extract(ROOT_CONTEXT, { baggage: text }, defaultTextMapGetter)
  console.log(propagation.getBaggage(context).getEntry('k').value)
} else {
  const carrier = {}
  const baggage = propagation.createBaggage({ k: { value: text } })
  propagator.inject(propagation.setBaggage(ROOT_CONTEXT, baggage), carrier, defaultTextMapSetter)
  console.log(carrier.baggage)
}
JS
cat >"$dir/run.py" <<'PY'
import pathlib, subprocess
from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator

propagator = W3CBaggagePropagator()

def javascript(verb, text):
    folder = pathlib.Path(__file__).parent
    return subprocess.run(["node", "run.mjs", verb, text], cwd=folder, check=True, capture_output=True, text=True).stdout.rstrip("\n")

def write(context):
    carrier = {}
    propagator.inject(carrier, context)
    return carrier["baggage"]

def read(header):
    return propagator.extract({"baggage": header})

for value in ("a b", "a+b", "a;b"):
    for name, header in (("Python", write(baggage.set_baggage("k", value))), ("JavaScript", javascript("write", value))):
        python, script = baggage.get_baggage("k", read(header)), javascript("read", header)
        print(f"{name} writes {value!r} as {header}: Python reads {python!r}, JavaScript {script!r}")
for header in ("k=a+b", "k=a;unit=s"):
    context = read(header)
    python, script = baggage.get_baggage("k", context), javascript("read", header)
    print(f"{header}: Python reads {python!r}, JavaScript {script!r}; Python sends on {write(context)}")
PY
"$dir/venv/bin/python" "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
Python writes 'a b' as k=a+b: Python reads 'a b', JavaScript 'a+b'
JavaScript writes 'a b' as k=a%20b: Python reads 'a b', JavaScript 'a b'
Python writes 'a+b' as k=a%2Bb: Python reads 'a+b', JavaScript 'a+b'
JavaScript writes 'a+b' as k=a%2Bb: Python reads 'a+b', JavaScript 'a+b'
Python writes 'a;b' as k=a%3Bb: Python reads 'a;b', JavaScript 'a;b'
JavaScript writes 'a;b' as k=a%3Bb: Python reads 'a;b', JavaScript 'a;b'
k=a+b: Python reads 'a b', JavaScript 'a+b'; Python sends on k=a+b
k=a;unit=s: Python reads 'a;unit=s', JavaScript 'a'; Python sends on k=a%3Bunit%3Ds
EXPECTED
