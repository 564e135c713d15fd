#!/usr/bin/env bash
# CEL's own rules in three implementations: cel-python 0.5.0, cel-js 0.8.2 and @marcbachmann/cel-js 8.0.0.
#
# Guess: a policy written in CEL means the same in each; they differ in which functions they bring.
# Seen: cel-js divides integers into fractions, so 7 / 2 == 3 is false, rounds integers above 2^53, reads no `\u` in a text,
# raises where a double is divided by zero, and lets an error on either side of `||` win over true on the other, which the
# language definition rules out. cel-python writes a Boolean as Python does, "True", so string(true) == "true" is false, and
# does not compare an int with a double by `<`. @marcbachmann/cel-js follows the definition in all of this.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet cel-python==0.5.0
(cd "$dir" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund \
  cel-js@0.8.2 @marcbachmann/cel-js@8.0.0)
cat >"$dir/run.mjs" <<'JS'
import * as first from 'cel-js'
import * as second from '@marcbachmann/cel-js'

const text = (value) => (typeof value === 'bigint' ? String(value) : JSON.stringify(value))
const answer = (evaluate, expression, context) => {
  try { return text(evaluate(expression, context)) } catch { return 'error' }
}
const [expressions, context] = JSON.parse(process.argv[2])
console.log(JSON.stringify(expressions.map((expression) =>
  [first, second].map(({ evaluate }) => answer(evaluate, expression, context)))))
JS
cat >"$dir/run.py" <<'PY'
import json, pathlib, subprocess
import celpy
from celpy.adapter import CELJSONEncoder, json_to_cel

CONTEXT = {"names": ["a", "b"]}
EXPRESSIONS = {  # an expression, and its value by the language definition
    "7 / 2": "3",
    "7 / 2 == 3": "true",
    "-7 % 3": "-1",
    "9007199254740993 + 0": "9007199254740993",
    "1 < 1.5": "true",
    "1.0 / 0.0 > 1.0": "true",
    r"'\u0061' == 'a'": "true",
    "true || 1 / 0 == 1": "true",
    "1 / 0 == 1 || true": "true",
    "string(true)": '"true"',
    "'a' in names": "true",
    "true > false": "true",
    "size('\u00e9')": "1",
}

def python(expression):
    environment = celpy.Environment()
    try:
        return json.dumps(environment.program(environment.compile(expression)).evaluate(json_to_cel(CONTEXT)), cls=CELJSONEncoder)
    except (celpy.CELEvalError, celpy.CELParseError):
        return "error"

arguments = json.dumps([list(EXPRESSIONS), CONTEXT])
run = subprocess.run(["node", "run.mjs", arguments], cwd=pathlib.Path(__file__).parent, check=True, capture_output=True, text=True)
for (expression, wanted), (first, second) in zip(EXPRESSIONS.items(), json.loads(run.stdout)):
    answers = {"cel-python": python(expression), "cel-js": first, "@marcbachmann/cel-js": second}
    other = ", ".join(f"{answer} for {name}" for name, answer in answers.items() if answer != wanted)
    print(f"{expression} is {wanted}" + (f", but {other}" if other else " for all"))
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
7 / 2 is 3, but 3.5 for cel-js
7 / 2 == 3 is true, but false for cel-js
-7 % 3 is -1 for all
9007199254740993 + 0 is 9007199254740993, but 9007199254740992 for cel-js
1 < 1.5 is true, but error for cel-python
1.0 / 0.0 > 1.0 is true, but error for cel-js
'\u0061' == 'a' is true, but false for cel-js
true || 1 / 0 == 1 is true, but error for cel-js
1 / 0 == 1 || true is true, but error for cel-js
string(true) is "true", but "True" for cel-python, error for cel-js
'a' in names is true for all
true > false is true, but error for cel-js
size('é') is 1 for all
EXPECTED
