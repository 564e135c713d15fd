"""Protected resource metadata (RFC 9728): what a service says of itself, and where."""

import subprocess
import sys

import pytest

from agentwrit import AgentWritError
from agentwrit.protected_resource import challenge, metadata, metadata_url

BROKER = "https://broker.example"


@pytest.mark.parametrize(
    ("resource", "url"),
    [
        # RFC 9728 §3.1: the examples of the RFC, and their neighbours.
        ("https://resource.example.com", "https://resource.example.com/.well-known/oauth-protected-resource"),
        ("https://resource.example.com/", "https://resource.example.com/.well-known/oauth-protected-resource"),
        (
            "https://resource.example.com/resource1",
            "https://resource.example.com/.well-known/oauth-protected-resource/resource1",
        ),
        ("https://r.example:8443/a/b/", "https://r.example:8443/.well-known/oauth-protected-resource/a/b/"),
        ("https://r.example/a?k=v", "https://r.example/.well-known/oauth-protected-resource/a?k=v"),
        ("https://r.example?k=v", "https://r.example/.well-known/oauth-protected-resource?k=v"),
        ("http://127.0.0.1:8000/mcp", "http://127.0.0.1:8000/.well-known/oauth-protected-resource/mcp"),
    ],
)
def test_the_metadata_is_where_the_rfc_puts_it(resource: str, url: str) -> None:
    assert metadata_url(resource) == url


def test_the_least_metadata() -> None:
    assert metadata("https://orders.example", authorization_servers=[BROKER]) == {
        "resource": "https://orders.example",
        "authorization_servers": [BROKER],
        "bearer_methods_supported": ["header"],
        "dpop_signing_alg_values_supported": ["EdDSA", "Ed25519", "ES256"],
    }


def test_all_the_metadata() -> None:
    members = {
        "authorization_servers": [BROKER, "http://localhost:8080"],
        "jwks_uri": "https://orders.example/jwks.json",
        "scopes_supported": ["read:data:*"],
        "bearer_methods_supported": ["header", "body"],
        "resource_name": "Orders",
        "resource_documentation": "https://orders.example/docs",
        "dpop_signing_alg_values_supported": ["EdDSA", "ES256"],
        "dpop_bound_access_tokens_required": True,
    }
    assert metadata("https://orders.example", **members) == {  # type: ignore[arg-type]
        "resource": "https://orders.example",
        **members,
    }


NO_URLS = ["", "orders", "ftp://orders.example", "https://", "https://x#y", "https://x/ y", 'https://x/"', "https://[x"]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(AgentWritError):
        metadata_url(url)
    with pytest.raises(AgentWritError):
        challenge(url)
    with pytest.raises(AgentWritError):
        metadata(url, authorization_servers=[BROKER])
    with pytest.raises(AgentWritError):
        metadata("https://orders.example", authorization_servers=[url])


def test_a_service_that_takes_nobodys_tokens_is_refused() -> None:
    with pytest.raises(AgentWritError, match="issuer"):
        metadata("https://orders.example", authorization_servers=[])


def test_one_string_is_no_list() -> None:
    with pytest.raises(TypeError, match="authorization_servers"):
        metadata("https://orders.example", authorization_servers=BROKER)
    with pytest.raises(TypeError, match="scope"):
        challenge("https://orders.example", scope="read:data:1")


def test_a_challenge_names_the_metadata_and_what_is_wrong() -> None:
    where = 'resource_metadata="https://orders.example/.well-known/oauth-protected-resource"'
    assert challenge("https://orders.example") == f"Bearer {where}"
    assert challenge("https://orders.example", error="invalid_token") == f'Bearer error="invalid_token", {where}'
    refused = challenge("https://orders.example", error="insufficient_scope", scope=["read:data:1", "read:data:2"])
    assert refused == f'Bearer error="insufficient_scope", scope="read:data:1 read:data:2", {where}'


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\r\nset-cookie: b", "é"])
def test_a_challenge_holds_nothing_that_would_end_it(text: str) -> None:
    for name in ("error", "error_description"):
        with pytest.raises(AgentWritError, match=name):
            challenge("https://orders.example", **{name: text})
    with pytest.raises(AgentWritError, match="scope"):
        challenge("https://orders.example", scope=[text])


def test_it_loads_no_http_library() -> None:
    program = "import sys, agentwrit.protected_resource; print({'httpx2', 'starlette', 'nacl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
