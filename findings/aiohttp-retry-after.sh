#!/usr/bin/env bash
# Helpers that repeat a request after 503, and its Retry-After (aiohttp-retry 2.9.1 beside six others).
#
# Guess: a helper for retries waits as Retry-After says (RFC 9110 §10.2.3), and repeats no POST unless told to (§9.2.2).
# Seen: urllib3 2.8.0, httpx-retries 0.6.0, undici 7.30.2, got 14.6.6, ky 1.14.3 and axios-retry 4.5.0 do both. aiohttp-retry
# 2.9.1 asks again after 0.1 s, whatever the server said, and repeats a POST too.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet \
  urllib3==2.8.0 httpx==0.28.1 httpx-retries==0.6.0 aiohttp==3.14.5 aiohttp-retry==2.9.1
(cd "$dir" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund \
  undici@7.30.2 got@14.6.6 ky@1.14.3 axios@1.21.1 axios-retry@4.5.0)
cat >"$dir/clients.mjs" <<'JS'
const [, , name, method, url] = process.argv
const clients = {
  async undici() {
    const { Agent, RetryAgent, request } = await import('undici')
    await request(url, { method, dispatcher: new RetryAgent(new Agent()) })
  },
  async got() { await (await import('got')).default(url, { method }) },
  async ky() { await (await import('ky')).default(url, { method }) },
  async 'axios-retry'() {
    const client = (await import('axios')).default.create()
    ;(await import('axios-retry')).default(client)
    await client.request({ url, method })
  },
}
try { await clients[name]() } catch {}
process.exit()
JS
cat >"$dir/run.py" <<'PY'
import asyncio, http.server, pathlib, subprocess, threading, time
import aiohttp_retry, httpx, httpx_retries, urllib3

times = []

class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        times.append(time.monotonic())
        self.send_response(503 if len(times) == 1 else 200)
        self.send_header("retry-after", "2")
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"

def with_urllib3(method):
    urllib3.PoolManager(retries=urllib3.Retry(3, status_forcelist=[503])).request(method, url)

def with_httpx_retries(method):
    httpx.Client(transport=httpx_retries.RetryTransport()).request(method, url)

def with_aiohttp_retry(method):
    async def ask():
        async with aiohttp_retry.RetryClient() as client, client.request(method, url):
            pass
    asyncio.run(ask())

def javascript(name):
    return lambda method: subprocess.run(["node", "clients.mjs", name, method, url], cwd=pathlib.Path(__file__).parent)

HELPERS = {"urllib3": with_urllib3, "httpx-retries": with_httpx_retries, "aiohttp-retry": with_aiohttp_retry}
HELPERS |= {name: javascript(name) for name in ("undici", "got", "ky", "axios-retry")}
for name, ask in HELPERS.items():
    answers = []
    for method in ("GET", "POST"):
        times.clear()
        ask(method)
        waited = "not repeated" if len(times) == 1 else "waits" if times[1] - times[0] >= 1.9 else "does not wait"
        answers.append(f"{method} {waited}")
    print(f"{name}: {', '.join(answers)}")
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py" 2>"$dir/log" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
urllib3: GET waits, POST not repeated
httpx-retries: GET waits, POST not repeated
aiohttp-retry: GET does not wait, POST does not wait
undici: GET waits, POST not repeated
got: GET waits, POST not repeated
ky: GET waits, POST not repeated
axios-retry: GET waits, POST not repeated
EXPECTED
