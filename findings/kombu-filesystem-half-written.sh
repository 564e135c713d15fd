#!/usr/bin/env bash
# kombu 5.7.0, transport "filesystem": a message that is read while it is written is lost.
#
# The transport makes the file under the name by which consumers look for it, and writes the message into it then.
# It takes a lock meanwhile, which nobody asks for who reads. A consumer that looks in between moves the empty file out
# of the queue and reads nothing: `get` raises JSONDecodeError, the message is gone, and a Celery worker ends with that.
#
# Expected: a message is in the queue once it is whole. Seen: what is printed below. Exit status 1: not so any more.
#
# That a consumer looks at that moment is left to no chance: the message has a header of a type that is registered with
# kombu.utils.json.register_type, and as it is encoded (so while the message is written) the consumer asks the queue.
set -euo pipefail

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    kombu==5.7.0 amqp==5.4.2 vine==5.1.0 packaging==26.3 tzdata==2026.6

cd "$place"
"$place/venv/bin/python" - <<'PROGRAM'
import json
import sys
import tempfile

import kombu
from kombu.utils.json import register_type

folder = tempfile.mkdtemp(dir=".")
options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": f"{folder}/control"}


class Header:
    pass


def encode(header):
    """The message is being written: now somebody reads."""
    try:
        print("read while it is written:", consumer.get(timeout=1).payload)
    except Exception as error:
        seen.append(type(error))
        print("read while it is written:", type(error).__name__, error)
    return "a header"


register_type(Header, "header", encode, lambda value: value)
seen = []
print("kombu", kombu.__version__)
with (
    kombu.Connection("filesystem://", transport_options=options) as sending,
    kombu.Connection("filesystem://", transport_options=options) as receiving,
):
    producer, consumer = sending.SimpleQueue("letters"), receiving.SimpleQueue("letters")
    producer.put("a letter", headers={"header": Header()})
    try:
        print("read after it was written:", consumer.get(timeout=2).payload)
        is_lost = False
    except consumer.Empty:
        print("read after it was written: the queue is empty, the letter is lost")
        is_lost = True
sys.exit(0 if is_lost and seen == [json.JSONDecodeError] else 1)
PROGRAM
