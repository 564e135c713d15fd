#!/usr/bin/env bash
# A WWW-Authenticate field of an MCP server, as the two MCP SDKs read it (mcp 2.3.0 and @modelcontextprotocol/sdk 1.32.2).
#
# Guess: they read the same `resource_metadata` and `scope` out of every field that RFC 9110 §11.6.1 allows, so a server may
# offer DPoP beside Bearer.
# Seen: neither reads the grammar. TypeScript finds nothing where Bearer is the second challenge, or where two spaces stand
# behind the scheme (1*SP in §11.3); both find nothing where a parameter's name is in capitals (case-insensitive in §11.2).
# Both take a scope that belongs to another scheme's challenge, and a parameter whose name only ends in "scope".
# oauth4webapi 3.8.8 reads them all as the grammar has them.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet --no-compile mcp==2.3.0 httpx2==2.16.2
(cd "$dir" && npm init --yes >/dev/null && npm install --silent --no-audit --no-fund \
  @modelcontextprotocol/sdk@1.32.2 oauth4webapi@3.8.8)
cat >"$dir/run.mjs" <<'JS'
import { readFileSync } from 'node:fs'
import { extractWWWAuthenticateParams } from '@modelcontextprotocol/sdk/client/auth.js'
import * as oauth from 'oauth4webapi'

const answer = (field) => new Response('{}', { status: 401, headers: { 'www-authenticate': field } })

async function challenges(field) {
  const url = 'https://as.example.com/token'
  try {
    const response = await oauth.clientCredentialsGrantRequest({ issuer: url, token_endpoint: url }, { client_id: 'a' },
      oauth.None(), {}, { [oauth.customFetch]: async () => answer(field) })
    await oauth.processClientCredentialsResponse({ issuer: url }, { client_id: 'a' }, response)
  } catch (error) {
    return error.cause
  }
}

const results = []
for (const field of JSON.parse(readFileSync(0))) {
  const sdk = extractWWWAuthenticateParams(answer(field))
  const bearer = (await challenges(field)).find(({ scheme }) => scheme === 'bearer').parameters
  results.push([[sdk.resourceMetadataUrl?.href, sdk.scope], [bearer.resource_metadata, bearer.scope]]
    .map((pair) => pair.map((value) => value ?? null)))
}
console.log(JSON.stringify(results))
JS
cat >"$dir/run.py" <<'PY'
import json, pathlib, subprocess
import httpx2
from mcp.client.auth.utils import extract_resource_metadata_from_www_auth, extract_scope_from_www_auth

FIELDS = [
    'Bearer resource_metadata="https://a/b", scope="read"',
    'bearer resource_metadata="https://a/b", scope=read',
    'Bearer resource_metadata="https://a/b", scope="read", DPoP algs="ES256"',
    'DPoP algs="ES256", Bearer resource_metadata="https://a/b", scope="read"',
    'Bearer  resource_metadata="https://a/b", scope="read"',
    'Bearer Resource_Metadata="https://a/b", Scope="read"',
    'Bearer resource_metadata="https://a/b", DPoP algs="ES256", scope="write"',
    'Bearer resource_metadata="https://a/b", max_scope="all", scope="read"',
]
run = subprocess.run(["node", "run.mjs"], cwd=pathlib.Path(__file__).parent, input=json.dumps(FIELDS), text=True,
                     check=True, capture_output=True)
for field, (script, grammar) in zip(FIELDS, json.loads(run.stdout)):
    response = httpx2.Response(401, headers={"www-authenticate": field})
    python = [extract_resource_metadata_from_www_auth(response), extract_scope_from_www_auth(response)]
    print(field)
    for name, seen in (("oauth4webapi", grammar), ("Python", python), ("TypeScript", script)):
        if name == "oauth4webapi" or seen != grammar:
            print(f"  {name}: {seen[0]}, {seen[1]}")
PY
"$dir/venv/bin/python" -W ignore "$dir/run.py" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
Bearer resource_metadata="https://a/b", scope="read"
  oauth4webapi: https://a/b, read
bearer resource_metadata="https://a/b", scope=read
  oauth4webapi: https://a/b, read
Bearer resource_metadata="https://a/b", scope="read", DPoP algs="ES256"
  oauth4webapi: https://a/b, read
DPoP algs="ES256", Bearer resource_metadata="https://a/b", scope="read"
  oauth4webapi: https://a/b, read
  TypeScript: None, None
Bearer  resource_metadata="https://a/b", scope="read"
  oauth4webapi: https://a/b, read
  TypeScript: None, None
Bearer Resource_Metadata="https://a/b", Scope="read"
  oauth4webapi: https://a/b, read
  Python: None, None
  TypeScript: None, None
Bearer resource_metadata="https://a/b", DPoP algs="ES256", scope="write"
  oauth4webapi: https://a/b, None
  Python: https://a/b, write
  TypeScript: https://a/b, write
Bearer resource_metadata="https://a/b", max_scope="all", scope="read"
  oauth4webapi: https://a/b, read
  Python: https://a/b, all
  TypeScript: https://a/b, all
EXPECTED
