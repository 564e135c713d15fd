#!/usr/bin/env bash
# Where OAuth clients look for metadata when the identifier has a path that ends with a slash (authlib 1.9.10, mcp 2.3.0,
# @modelcontextprotocol/sdk 1.32.2, oauth4webapi 3.8.8).
#
# Guess: all look at one address for an issuer, and at one for a resource.
# Seen: RFC 8414 §3.1 takes a slash off the end of an issuer's path; Authlib leaves it. RFC 9728 §3.1 speaks for resources of
# "any terminating slash (/) following the host component" alone, and MCP's two SDKs read that differently: TypeScript takes
# the slash off `/mcp/` too, Python leaves it, as oauth4webapi does. So they ask at different addresses for the metadata of
# one server, and a server that answers at one of them is found by half of its clients. The Python SDK also drops a
# resource's query, which the RFC keeps.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet --no-compile authlib==1.9.10 mcp==2.3.0
(cd "$dir" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund \
  @modelcontextprotocol/sdk@1.32.2 oauth4webapi@3.8.8)
cat >"$dir/run.mjs" <<'JS'
import { buildDiscoveryUrls, discoverOAuthProtectedResourceMetadata } from '@modelcontextprotocol/sdk/client/auth.js'
import * as oauth from 'oauth4webapi'

const [issuers, resources] = JSON.parse(process.argv[2])

async function asked(start) {
  const urls = []
  const record = async (url) => { urls.push(String(url)); return new Response('', { status: 404 }) }
  try { await start(record) } catch {}
  return urls[0]
}

const seen = { issuers: {}, resources: {} }
for (const issuer of issuers)
  seen.issuers[issuer] = {
    'MCP TypeScript': buildDiscoveryUrls(issuer)[0].url.href,
    oauth4webapi: await asked((fetch) => oauth.discoveryRequest(new URL(issuer), { algorithm: 'oauth2', [oauth.customFetch]: fetch })),
  }
for (const resource of resources)
  seen.resources[resource] = {
    'MCP TypeScript': await asked((fetch) => discoverOAuthProtectedResourceMetadata(resource, {}, fetch)),
    oauth4webapi: await asked((fetch) => oauth.resourceDiscoveryRequest(new URL(resource), { [oauth.customFetch]: fetch })),
  }
console.log(JSON.stringify(seen))
JS
cat >"$dir/run.py" <<'PY'
import json, pathlib, subprocess
from authlib.oauth2.rfc8414 import get_well_known_url
from mcp.client.auth.utils import (
    build_oauth_authorization_server_metadata_discovery_urls as of_issuer,
    build_protected_resource_metadata_discovery_urls as of_resource,
)

HOST = "https://a.example"
WANTED = {  # an identifier's path, and where RFC 8414 and RFC 9728, by their letter, have its metadata
    "issuers": {"": "", "/": "", "/t": "/t", "/t/": "/t"},
    "resources": {"": "", "/": "", "/mcp": "/mcp", "/mcp/": "/mcp/", "/mcp?a=b": "/mcp?a=b"},
}
SUFFIX = {"issuers": "oauth-authorization-server", "resources": "oauth-protected-resource"}
arguments = json.dumps([[HOST + path for path in paths] for paths in WANTED.values()])
run = subprocess.run(["node", "run.mjs", arguments], cwd=pathlib.Path(__file__).parent, check=True, capture_output=True, text=True)
seen = json.loads(run.stdout)
for url, answers in seen["issuers"].items():
    answers |= {"Authlib": get_well_known_url(url, external=True), "MCP Python": of_issuer(url, url)[0]}
for url, answers in seen["resources"].items():
    answers |= {"MCP Python": of_resource(None, url)[0]}
for kind, paths in WANTED.items():
    for path, end in paths.items():
        wanted = f"{HOST}/.well-known/{SUFFIX[kind]}{end}"
        other = [f"{url.removeprefix(HOST)} for {name}" for name, url in sorted(seen[kind][HOST + path].items()) if url != wanted]
        print(f"{kind[:-1]} {HOST}{path}: {wanted.removeprefix(HOST)}" + (f", but {', '.join(other)}" if other else " for all"))
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
issuer https://a.example: /.well-known/oauth-authorization-server for all
issuer https://a.example/: /.well-known/oauth-authorization-server for all
issuer https://a.example/t: /.well-known/oauth-authorization-server/t for all
issuer https://a.example/t/: /.well-known/oauth-authorization-server/t, but /.well-known/oauth-authorization-server/t/ for Authlib
resource https://a.example: /.well-known/oauth-protected-resource for all
resource https://a.example/: /.well-known/oauth-protected-resource for all
resource https://a.example/mcp: /.well-known/oauth-protected-resource/mcp for all
resource https://a.example/mcp/: /.well-known/oauth-protected-resource/mcp/, but /.well-known/oauth-protected-resource/mcp for MCP TypeScript
resource https://a.example/mcp?a=b: /.well-known/oauth-protected-resource/mcp?a=b, but /.well-known/oauth-protected-resource/mcp for MCP Python
EXPECTED
