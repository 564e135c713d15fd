"""Resource servers that others wrote take our tokens, and no others: FastMCP's, and MCP's client side."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentwrit.protected_resource import challenge, metadata, metadata_url
from tests.support import TestApp

ORDERS = "https://orders.example"

VERIFIERS = """
import asyncio, json, sys
from fastmcp.server.auth.providers.introspection import IntrospectionTokenVerifier
from fastmcp.server.auth.providers.jwt import JWTVerifier

given = json.load(sys.stdin)
discovered = given["metadata"]
scopes = ["read:data:1"]
audience = given["audience"]

async def main():
    by_key = JWTVerifier(
        jwks_uri=discovered["jwks_uri"],
        issuer=discovered["issuer"],
        audience=audience,
        algorithm="EdDSA",
        required_scopes=scopes,
    )
    by_asking = [
        IntrospectionTokenVerifier(
            introspection_url=discovered["introspection_endpoint"],
            client_id=given["client_id"],
            client_secret=given["client_secret"],
            client_auth_method=method,
            audience=audience,
            required_scopes=scopes,
        )
        for method in ("client_secret_basic", "client_secret_post")
    ]
    found = {}
    for name, token in given["tokens"].items():
        seen = [await verifier.verify_token(token) for verifier in (by_key, *by_asking)]
        found[name] = [each and {"client_id": each.client_id, "scopes": each.scopes} for each in seen]
    print(json.dumps(found))

asyncio.run(main())
"""

DISCOVERY = """
import json, sys
import httpx2
from mcp.client.auth.utils import (
    build_oauth_authorization_server_metadata_discovery_urls,
    build_protected_resource_metadata_discovery_urls,
    extract_resource_metadata_from_www_auth,
)
from mcp.shared.auth import ProtectedResourceMetadata

given = json.load(sys.stdin)
refused = httpx2.Response(401, headers={"www-authenticate": given["challenge"]})
url = extract_resource_metadata_from_www_auth(refused)
described = ProtectedResourceMetadata.model_validate(given["metadata"])
servers = [str(server) for server in described.authorization_servers]
print(json.dumps({
    "url": url,
    "guessed": build_protected_resource_metadata_discovery_urls(None, given["metadata"]["resource"]),
    "servers": servers,
    "server_metadata": build_oauth_authorization_server_metadata_discovery_urls(servers[0], str(described.resource)),
}))
"""


@pytest.fixture
def standards_python() -> Path:
    path = Path(os.environ.get("AGENTWRIT_TEST_STANDARDS_PYTHON", ".venv-standards/bin/python")).absolute()
    assert path.exists(), "run `make test`: it installs others' servers, or set AGENTWRIT_TEST_STANDARDS_PYTHON"
    return path


def run(python: Path, program: str, given: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-I", "-c", program],
        input=json.dumps(given),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_fastmcp_takes_the_tokens_that_hold_and_no_others(app: TestApp, standards_python: Path) -> None:
    broker = app.broker
    good, other = app.agent(audience=[ORDERS]), app.agent(audience=["https://billing.example"])
    wide, narrow = app.agent("read:data:1", "write:data:1", audience=[ORDERS]), app.agent("read:data:2")
    dead = app.agent(audience=[ORDERS])
    broker.release(dead["access_token"])
    tokens = {
        "good": good["access_token"],
        "wide": wide["access_token"],
        "for another": other["access_token"],
        "without the scope": narrow["access_token"],
        "forged": good["access_token"][:-6] + "AAAAAA",
        "dead": dead["access_token"],
    }
    found = run(
        standards_python,
        VERIFIERS,
        {
            "metadata": broker.http.get("/.well-known/oauth-authorization-server").json(),
            "client_id": app.client_id,
            "client_secret": app.client_secret,
            "audience": ORDERS,
            "tokens": tokens,
        },
    )
    seen = {"client_id": app.client_id, "scopes": ["read:data:1"]}
    assert found["good"] == [seen] * 3
    assert found["wide"] == [{**seen, "scopes": ["read:data:1", "write:data:1"]}] * 3
    for refused in ("for another", "without the scope", "forged"):
        assert found[refused] == [None] * 3, refused
    # By the key alone a released token looks alive until its exp: that is what asking is for.
    assert found["dead"] == [seen, None, None]


def test_mcps_client_finds_the_broker_from_a_challenge(app: TestApp, standards_python: Path) -> None:
    resource = "https://orders.example/mcp"
    given = {
        "challenge": challenge(resource, error="invalid_token"),
        "metadata": metadata(resource, authorization_servers=[app.broker.url], scopes_supported=["read:data:*"]),
    }
    found = run(standards_python, DISCOVERY, given)
    assert found["url"] == metadata_url(resource) == found["guessed"][0]
    assert [server.rstrip("/") for server in found["servers"]] == [app.broker.url]
    described = app.broker.http.get(found["server_metadata"][0])
    assert described.json()["issuer"] == app.broker.url
