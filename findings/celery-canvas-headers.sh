#!/usr/bin/env bash
# Which tasks of a Celery workflow get the headers that `apply_async(headers=…)` was called with (celery 5.7.0).
#
# Guess: all tasks of the workflow, whatever it is made of: a header carries a trace or a tenant.
# Seen: a group's and a chord's tasks all get them, the chord's body too. Of a chain only the first does, also with
# `set(headers=…)`, but a chain that begins with a group is made a chord of, and there all do. A task that is repeated keeps
# them; a task that replaces another, by a task or a group, has none, and neither have callbacks.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet celery==5.7.0 kombu==5.7.0
cat >"$dir/run.py" <<'PY'
import queue
from celery import Celery, chain, chord, group
from celery.contrib.testing.worker import start_worker

app = Celery("findings", broker="memory://", backend="cache+memory://")
app.conf.worker_hijack_root_logger = False
started = queue.SimpleQueue()

def report(task, name):
    started.put((name, (task.request.headers or {}).get("tenant", "-")))

@app.task(bind=True)
def step(self, name):
    report(self, name)

@app.task(bind=True)
def replaced(self, name, *names):
    report(self, name)
    steps = [step.si(name) for name in names]
    raise self.replace(steps[0] if len(steps) == 1 else group(steps))

@app.task(bind=True)
def repeated(self, name):
    report(self, name if not self.request.retries else name + " again")
    if not self.request.retries:
        raise self.retry(countdown=0, max_retries=1)

@app.task(bind=True)
def failing(self, name):
    report(self, name)
    raise ValueError(name)

a, b, c = (step.si(name) for name in "abc")
WORKFLOWS = {  # a workflow, how many tasks it starts, and more options
    "group(a, b)": (group(a, b), 2, {}),
    "chord([a, b], c)": (chord([a, b], c), 3, {}),
    "chain(a, b, c)": (chain(a, b, c), 3, {}),
    "chain(group(a, b), c)": (chain(group(a, b), c), 3, {}),
    "chain(a, group(b, c))": (chain(a, group(b, c)), 3, {}),
    "a replaced by b": (replaced.si("a", "b"), 2, {}),
    "a replaced by group(b, c)": (replaced.si("a", "b", "c"), 3, {}),
    "a repeated": (repeated.si("a"), 2, {}),
    "a, then its callback b": (a, 2, {"link": b}),
    "a fails, then its callback b": (failing.si("a"), 2, {"link_error": b}),
}
headers = {"tenant": "x"}

def show(name, count):
    seen = sorted(started.get(timeout=60) for _ in range(count))
    print(f"{name}: {', '.join(f'{task} {header}' for task, header in seen)}", flush=True)

with start_worker(app, perform_ping_check=False, pool="threads", concurrency=2):
    for name, (workflow, count, options) in WORKFLOWS.items():
        workflow.apply_async(headers=headers, **options)
        show(name, count)
    chain(a, b).set(headers=headers).apply_async()
    show("chain(a, b).set(headers)", 2)
PY
timeout 90 "$dir/venv/bin/python" -W ignore "$dir/run.py" 2>"$dir/log" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
group(a, b): a x, b x
chord([a, b], c): a x, b x, c x
chain(a, b, c): a x, b -, c -
chain(group(a, b), c): a x, b x, c x
chain(a, group(b, c)): a x, b -, c -
a replaced by b: a x, b -
a replaced by group(b, c): a x, b -, c -
a repeated: a x, a again x
a, then its callback b: a x, b -
a fails, then its callback b: a x, b -
chain(a, b).set(headers): a x, b -
EXPECTED
