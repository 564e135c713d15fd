#!/usr/bin/env bash
# What LangChain makes of a tool's result, by the result's Python type (langchain-core 1.8.3).
#
# Guess: strings go to the model as they are, all else as JSON.
# Seen: a list of strings is taken for blocks of content. The message's `text` joins them without a border, what is written
# for OpenAI's interface with a line feed, and an empty list is an empty text; [1, 2] is JSON. A list of dicts is JSON too,
# until each of them has a `type` that a block may have: a listing of files, {"type": "file", "name": …}, goes out as files
# to attach, and has no text. One date or set in a result, and the whole of it is Python's repr instead of JSON; None is
# "null".
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet --no-compile langchain-core==1.8.3
cat >"$dir/run.py" <<'PY'
from datetime import date
from typing import Any
from langchain_core.messages import convert_to_openai_messages
from langchain_core.tools import tool

RESULTS = [
    [1, 2],
    ["read:a", "write:b"],
    ("read:a", "write:b"),
    ["read:a", 2],
    [],
    [{"name": "a"}, {"name": "b"}],
    [{"type": "folder", "name": "a"}, {"type": "file", "name": "b"}],
    [{"type": "file", "name": "a"}, {"type": "file", "name": "b"}],
    {"files": [{"type": "file", "name": "a"}]},
    {"until": "2030-01-01"},
    {"until": date(2030, 1, 1)},
    {"read:a"},
    None,
]
for result in RESULTS:

    @tool
    def lookup() -> Any:
        """Look it up."""
        return result

    message = lookup.invoke({"name": "lookup", "args": {}, "id": "1", "type": "tool_call"})
    print(f"{result}: {str(message.text)!r}, for OpenAI {convert_to_openai_messages(message)['content']!r}")
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
[1, 2]: '[1, 2]', for OpenAI '[1, 2]'
['read:a', 'write:b']: 'read:awrite:b', for OpenAI 'read:a\nwrite:b'
('read:a', 'write:b'): 'read:awrite:b', for OpenAI 'read:a\nwrite:b'
['read:a', 2]: '["read:a", 2]', for OpenAI '["read:a", 2]'
[]: '', for OpenAI ''
[{'name': 'a'}, {'name': 'b'}]: '[{"name": "a"}, {"name": "b"}]', for OpenAI '[{"name": "a"}, {"name": "b"}]'
[{'type': 'folder', 'name': 'a'}, {'type': 'file', 'name': 'b'}]: '[{"type": "folder", "name": "a"}, {"type": "file", "name": "b"}]', for OpenAI '[{"type": "folder", "name": "a"}, {"type": "file", "name": "b"}]'
[{'type': 'file', 'name': 'a'}, {'type': 'file', 'name': 'b'}]: '', for OpenAI [{'type': 'file', 'name': 'a'}, {'type': 'file', 'name': 'b'}]
{'files': [{'type': 'file', 'name': 'a'}]}: '{"files": [{"type": "file", "name": "a"}]}', for OpenAI '{"files": [{"type": "file", "name": "a"}]}'
{'until': '2030-01-01'}: '{"until": "2030-01-01"}', for OpenAI '{"until": "2030-01-01"}'
{'until': datetime.date(2030, 1, 1)}: "{'until': datetime.date(2030, 1, 1)}", for OpenAI "{'until': datetime.date(2030, 1, 1)}"
{'read:a'}: "{'read:a'}", for OpenAI "{'read:a'}"
None: 'null', for OpenAI 'null'
EXPECTED
