#!/usr/bin/env bash
# Four Python readers of text/event-stream, and what the WHATWG's HTML standard (§9.2.6) says of the same bytes.
#
# Guess: they differ in options, not in which events they see.
# Seen, none agrees with the standard throughout:
# - httpx-sse 0.4.3 loses the first event behind a byte order mark (one is to be ignored), and hands out an event without
#   any data ("if the data buffer is an empty string, … return" in the standard).
# - sseclient-py 1.9.0 loses it too, hands out an event that the stream's end cut off ("Once the end of the file is reached,
#   any pending data must be discarded"), forgets the last event id after one event, and keeps `retry` as text, also "15s".
# - requests-sse 0.5.3 takes all spaces off the beginning of data (one is to go), and loses the line feed between two empty
#   data lines, and the first event behind a byte order mark.
# - aiosseclient 0.1.8 ends a line at U+2028, U+0085 and U+001C and drops what follows, reads nothing where lines end in
#   CR alone, takes field names in capitals, and forgets the last event id.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet \
  httpx==0.28.1 httpx-sse==0.4.3 requests==2.34.2 sseclient-py==1.9.0 requests-sse==0.5.3 aiohttp==3.14.5 aiosseclient==0.1.8
cat >"$dir/run.py" <<'PY'
import asyncio, http.server, itertools, threading
import aiosseclient, httpx, httpx_sse, requests, requests_sse, sseclient

STREAMS = {  # what is sent, and the (id, type, data) that the standard says
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [("", "message", "a")]),
    "no data": (b"event: ping\n\ndata: a\n\n", [("", "message", "a")]),
    "cut off": (b"data: a\n\ndata: b\n", [("", "message", "a")]),
    "id stays": (b"id: 1\ndata: a\n\ndata: b\n\n", [("1", "message", "a"), ("1", "message", "b")]),
    "two spaces": (b"data:  a\n\n", [("", "message", " a")]),
    "two empty lines": (b"data\ndata\n\n", [("", "message", "\n")]),
    "CR": (b"data: a\rdata: b\r\r", [("", "message", "a\nb")]),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\n", [("", "message", "a\nb")]),
    "U+2028": ("data: a\u2028b\n\n".encode(), [("", "message", "a\u2028b")]),
    "U+0085": ("data: a\u0085b\n\n".encode(), [("", "message", "a\u0085b")]),
    "U+001C": (b"data: a\x1cb\n\n", [("", "message", "a\x1cb")]),
    "capitals": (b"DATA: a\n\ndata: b\n\n", [("", "message", "b")]),
    "comment": (b": hello\n\ndata: a\n\n", [("", "message", "a")]),
    "type ends": (b"event: x\ndata: a\n\ndata: b\n\n", [("", "x", "a"), ("", "message", "b")]),
}

class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = list(STREAMS.values())[int(self.path[1:])][0]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()

def read_httpx_sse(url):
    with httpx.Client() as client, httpx_sse.connect_sse(client, "GET", url) as source:
        return [(event.id, event.event, event.data) for event in source.iter_sse()]

def read_sseclient_py(url):
    events = sseclient.SSEClient(requests.get(url, stream=True)).events()
    return [(event.id or "", event.event, event.data) for event in events]

def read_requests_sse(url):
    # It connects again whenever a stream ends, so reading stops at as many events as the standard says, or after a second.
    seen = []
    wanted = len(list(STREAMS.values())[int(url.rsplit("/", 1)[1])][1])
    def read():
        with requests_sse.EventSource(url) as source:
            for event in source:
                seen.append((event.last_event_id, event.type, event.data))
                if len(seen) == wanted:
                    return
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(1)
    return seen

def read_aiosseclient(url):
    async def read():
        return [(event.id or "", event.event, event.data) async for event in aiosseclient.aiosseclient(url)]
    return asyncio.run(read())

for number, (name, (_, wanted)) in enumerate(STREAMS.items()):
    cells = []
    for reader in (read_httpx_sse, read_sseclient_py, read_requests_sse, read_aiosseclient):
        seen = reader(f"http://127.0.0.1:{server.server_port}/{number}")
        cells.append("as it should" if seen == wanted else f"{seen}")
    print(f"{name}: {' | '.join(cells)}")
event = next(iter(sseclient.SSEClient(iter([b"retry: 15s\ndata: a\n\n"])).events()))
print("retry of sseclient-py:", repr(event.retry))
PY
timeout 90 "$dir/venv/bin/python" -W ignore "$dir/run.py" 2>"$dir/log" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
byte order mark: [] | [] | [] | [('', 'message', '')]
no data: [('', 'ping', ''), ('', 'message', 'a')] | as it should | as it should | [('', 'ping', ''), ('', 'message', 'a')]
cut off: as it should | [('', 'message', 'a'), ('', 'message', 'b')] | as it should | as it should
id stays: as it should | [('1', 'message', 'a'), ('', 'message', 'b')] | as it should | [('1', 'message', 'a'), ('', 'message', 'b')]
two spaces: as it should | as it should | [('', 'message', 'a')] | as it should
two empty lines: as it should | as it should | [('', 'message', '')] | [('', 'message', '')]
CR: as it should | as it should | as it should | []
CRLF: as it should | as it should | as it should | as it should
U+2028: as it should | as it should | as it should | [('', 'message', 'a')]
U+0085: as it should | as it should | as it should | [('', 'message', 'a')]
U+001C: as it should | as it should | as it should | [('', 'message', 'a')]
capitals: as it should | as it should | as it should | [('', 'message', ''), ('', 'message', 'b')]
comment: as it should | as it should | as it should | as it should
type ends: as it should | as it should | as it should | as it should
retry of sseclient-py: '15s'
EXPECTED
