#!/usr/bin/env bash
# How many tokens OAuth clients ask for while they send three API requests within a second, by a token's `expires_in`.
#
# Guess: one. A client keeps a token until shortly before its end, and the margin is small beside the token's life.
# Seen: the margins are constants, and a token that lives no longer than the margin is never used twice. Authlib 1.9.10
# (60 s) asks once per request, and throws even the token away that `fetch_token` has just brought. httpx-auth 0.23.1 and
# requests-auth 8.0.0 (30 s), requests-oauth2client 1.8.0 (20 s) and google-auth 2.63.0 (225 s) ask once per request too.
# requests-oauthlib 2.0.0 has no margin. So a server that shortens its tokens from four minutes to two gets a token request
# for every API request of google-auth, and one that goes down to a minute gets the same from Authlib.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet \
  authlib==1.9.10 httpx==0.28.1 requests==2.34.2 requests-oauthlib==2.0.0 oauthlib==4.0.1 google-auth==2.63.0 \
  httpx-auth==0.23.1 requests-auth==8.0.0 requests-oauth2client==1.8.0
cat >"$dir/run.py" <<'PY'
import http.server, itertools, json, os, threading
import httpx, httpx_auth, requests, requests_auth, requests_oauth2client
from authlib.integrations.httpx_client import OAuth2Client
from google.auth.transport.requests import AuthorizedSession
from google.oauth2.credentials import Credentials
from oauthlib.oauth2 import BackendApplicationClient
from requests_oauthlib import OAuth2Session

os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"
life = 0
asked = []

class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        asked.append(life)
        token = {"access_token": f"t{len(asked)}", "token_type": "Bearer", "expires_in": life, "refresh_token": "r"}
        self.answer(json.dumps(token).encode())

    def do_GET(self):
        self.answer(b"{}")

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
api = f"http://127.0.0.1:{server.server_port}/"
urls = (f"{api}token/{number}" for number in itertools.count())  # two of the libraries keep tokens by the address

def authlib(url):
    client = OAuth2Client("id", "secret", token_endpoint=url, grant_type="client_credentials")
    client.fetch_token(url, grant_type="client_credentials")
    return client

def oauthlib(url):
    client = OAuth2Session(client=BackendApplicationClient("id"), auto_refresh_url=url, token_updater=lambda token: None)
    client.fetch_token(url, client_id="id", client_secret="secret")
    return client

def google(url):
    return AuthorizedSession(Credentials(None, refresh_token="r", token_uri=url, client_id="id", client_secret="secret"))

def with_httpx_auth(url):
    return httpx.Client(auth=httpx_auth.OAuth2ClientCredentials(url, "id", "secret"))

def with_requests(auth):
    session = requests.Session()
    session.auth = auth
    return session

def with_requests_auth(url):
    return with_requests(requests_auth.OAuth2ClientCredentials(url, "id", "secret"))

def oauth2client(url):
    client = requests_oauth2client.OAuth2Client(url, ("id", "secret"), testing=True)
    return with_requests(requests_oauth2client.OAuth2ClientCredentialsAuth(client))

CLIENTS = {
    "requests-oauthlib": oauthlib,
    "requests-oauth2client": oauth2client,
    "httpx-auth": with_httpx_auth,
    "requests-auth": with_requests_auth,
    "Authlib": authlib,
    "google-auth": google,
}
for name, make in CLIENTS.items():
    counts = []
    for life in (15, 25, 50, 120, 240):
        asked.clear()
        client = make(next(urls))
        for _ in range(3):
            client.get(api)
        counts.append(f"{len(asked)} at {life} s")
    print(f"{name}: {', '.join(counts)}")
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py" 2>"$dir/log" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
requests-oauthlib: 1 at 15 s, 1 at 25 s, 1 at 50 s, 1 at 120 s, 1 at 240 s
requests-oauth2client: 3 at 15 s, 1 at 25 s, 1 at 50 s, 1 at 120 s, 1 at 240 s
httpx-auth: 3 at 15 s, 3 at 25 s, 1 at 50 s, 1 at 120 s, 1 at 240 s
requests-auth: 3 at 15 s, 3 at 25 s, 1 at 50 s, 1 at 120 s, 1 at 240 s
Authlib: 4 at 15 s, 4 at 25 s, 4 at 50 s, 1 at 120 s, 1 at 240 s
google-auth: 3 at 15 s, 3 at 25 s, 3 at 50 s, 3 at 120 s, 1 at 240 s
EXPECTED
