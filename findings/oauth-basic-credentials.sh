#!/usr/bin/env bash
# How OAuth clients put a client id and secret into HTTP Basic, when they hold other characters than letters and digits.
#
# Guess: form-urlencoded first, each of the two, as RFC 6749 §2.3.1 says; a server that decodes them depends on it.
# Seen: oauth4webapi 3.8.8 and openid-client 6.9.0 do. Authlib 1.9.10, requests-oauthlib 2.0.0, httpx-oauth 0.17.0 and
# client-oauth2 4.3.3 encode nothing, so that a colon in the id moves the border to the secret.
# @badgateway/oauth2-client 3.3.1 encodes the id and leaves the secret. With `é` in a secret Authlib, requests-oauthlib and
# @badgateway write ISO 8859-1, where the RFC's appendix B asks for UTF-8. So a secret from the full alphabet of a password
# generator works with some of one server's clients only; letters, digits, `-`, `.` and `_` work with all.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet \
  authlib==1.9.10 requests==2.34.2 httpx==0.28.1 requests-oauthlib==2.0.0 oauthlib==4.0.1 httpx-oauth==0.17.0
(cd "$dir" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund \
  oauth4webapi@3.8.8 openid-client@6.9.0 client-oauth2@4.3.3 @badgateway/oauth2-client@3.3.1)
cat >"$dir/clients.mjs" <<'JS'
const [, , url, id, secret, name] = process.argv
const clients = {
  async oauth4webapi() {
    const oauth = await import('oauth4webapi')
    await oauth.clientCredentialsGrantRequest({ issuer: url, token_endpoint: url }, { client_id: id },
      oauth.ClientSecretBasic(secret), {}, { [oauth.allowInsecureRequests]: true })
  },
  async 'openid-client'() {
    const client = await import('openid-client')
    const configuration = new client.Configuration({ issuer: url, token_endpoint: url }, id, {}, client.ClientSecretBasic(secret))
    client.allowInsecureRequests(configuration)
    await client.clientCredentialsGrant(configuration)
  },
  async 'client-oauth2'() {
    const { default: Client } = await import('client-oauth2')
    await new Client({ clientId: id, clientSecret: secret, accessTokenUri: url }).credentials.getToken()
  },
  async '@badgateway/oauth2-client'() {
    const { OAuth2Client } = await import('@badgateway/oauth2-client')
    await new OAuth2Client({ server: new URL(url).origin, clientId: id, clientSecret: secret, tokenEndpoint: '/token' }).clientCredentials()
  },
}
await clients[name]()
JS
cat >"$dir/run.py" <<'PY'
import asyncio, base64, http.server, os, pathlib, subprocess, threading
from authlib.integrations.httpx_client import OAuth2Client
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from httpx_oauth.oauth2 import OAuth2
from oauthlib.oauth2 import BackendApplicationClient
from requests_oauthlib import OAuth2Session

os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"
ID, SECRET = "team:a", "p%41+r s/é"
seen = []

class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        seen.append(base64.b64decode(self.headers["authorization"].removeprefix("Basic ")))
        body = b'{"access_token":"t","token_type":"Bearer","expires_in":60}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/token"
basic = {"token_endpoint_auth_method": "client_secret_basic"}

def javascript(name):
    folder = pathlib.Path(__file__).parent
    return lambda: subprocess.run(["node", "clients.mjs", url, ID, SECRET, name], cwd=folder, check=True)

CLIENTS = {
    "Authlib, requests": lambda: AuthlibSession(ID, SECRET, **basic).fetch_token(url, grant_type="client_credentials"),
    "Authlib, httpx": lambda: OAuth2Client(ID, SECRET, **basic).fetch_token(url, grant_type="client_credentials"),
    "requests-oauthlib": lambda: OAuth2Session(client=BackendApplicationClient(ID)).fetch_token(
        url, client_id=ID, client_secret=SECRET),
    "httpx-oauth": lambda: asyncio.run(OAuth2(ID, SECRET, url, url, url, **basic).refresh_token("r")),
} | {name: javascript(name) for name in ("oauth4webapi", "openid-client", "client-oauth2", "@badgateway/oauth2-client")}
for name, client in CLIENTS.items():
    seen.clear()
    client()
    print(f"{name}: {seen[0]!r}")
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py" 2>"$dir/log" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
Authlib, requests: b'team:a:p%41+r s/\xe9'
Authlib, httpx: b'team:a:p%41+r s/\xe9'
requests-oauthlib: b'team:a:p%41+r s/\xe9'
httpx-oauth: b'team:a:p%41+r s/\xc3\xa9'
oauth4webapi: b'team%3Aa:p%2541%2Br+s%2F%C3%A9'
openid-client: b'team%3Aa:p%2541%2Br+s%2F%C3%A9'
client-oauth2: b'team:a:p%41+r s/\xc3\xa9'
@badgateway/oauth2-client: b'team%3Aa:p%41+r s/\xe9'
EXPECTED
