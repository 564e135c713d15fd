"""Protected resource metadata (RFC 9728), by which OAuth clients of a resource server find the broker.

Serve `metadata(…)` as JSON at the path of `metadata_url(resource)`. Respond to requests without a valid token with 401
and `WWW-Authenticate: ` + `challenge(resource)`. Clients that support RFC 9728, such as MCP clients, then find the
broker by themselves.

    resource = "https://orders.example/api"
    metadata(resource, authorization_servers=["https://broker.example"], scopes_supported=["read:data:*"])
    metadata_url(resource)  # "https://orders.example/.well-known/oauth-protected-resource/api"
    challenge(resource)  # 'Bearer resource_metadata="https://orders.example/.well-known/oauth-protected-resource/api"'

These are pure functions. They load no HTTP library and make no network calls.
"""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from agentwrit.domain import jwk
from agentwrit.domain.errors import AgentWritError

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"

# RFC 6750 §3: the characters of `error`, `error_description` and `scope`. None of them ends a quoted string.
_QUOTABLE = re.compile(r"[ !#-\[\]-~]+")
_URL = re.compile(r"[!#-\[\]-~]+")


def metadata(
    resource: str,
    *,
    authorization_servers: Iterable[str],
    scopes_supported: Iterable[str] = (),
    bearer_methods_supported: Iterable[str] = ("header",),
    jwks_uri: str | None = None,
    resource_name: str | None = None,
    resource_documentation: str | None = None,
    dpop_signing_alg_values_supported: Iterable[str] | None = None,
    dpop_bound_access_tokens_required: bool = False,
) -> dict[str, object]:
    """The metadata of a service (RFC 9728 §2), ready to be encoded as JSON. Members without a value are left out.

    `resource`: the service's own URL, which is also the `aud` of tokens for it; `authorization_servers`: the issuers
    whose tokens it accepts (for a broker, its AGENTWRIT_ISSUER); `jwks_uri`: the URL of the service's own keys, if it
    signs its responses. (The broker's keys do not belong here: its own metadata names their URL.)
    `dpop_signing_alg_values_supported`: the accepted algorithms of DPoP proofs (RFC 9449); None for those that a
    `Verifier` accepts in this process.

    Raises:
        AgentWritError: a URL is not valid, or `authorization_servers` is empty.
        TypeError: an argument is a string instead of a list of strings.
    """
    _split(resource)
    if dpop_signing_alg_values_supported is None:
        dpop_signing_alg_values_supported = jwk.proof_algorithms()
    servers = _list("authorization_servers", authorization_servers)
    if not servers:
        raise AgentWritError("authorization_servers names no issuer")
    for url in (*servers, *filter(None, (jwks_uri, resource_documentation))):
        _split(url)
    members: dict[str, object] = {
        "resource": resource,
        "authorization_servers": servers,
        "jwks_uri": jwks_uri,
        "scopes_supported": _list("scopes_supported", scopes_supported),
        "bearer_methods_supported": _list("bearer_methods_supported", bearer_methods_supported),
        "resource_name": resource_name,
        "resource_documentation": resource_documentation,
        "dpop_signing_alg_values_supported": _list(
            "dpop_signing_alg_values_supported", dpop_signing_alg_values_supported
        ),
        "dpop_bound_access_tokens_required": dpop_bound_access_tokens_required,
    }
    # RFC 9728 §3.2: members without a value are left out, and so are empty lists.
    return {name: value for name, value in members.items() if value}


def metadata_url(resource: str) -> str:
    """The URL of a service's metadata (RFC 9728 §3.1): the well-known path is inserted before the URL's own path.

    Raises:
        AgentWritError: `resource` is not an http or https URL without a fragment.
    """
    parts = _split(resource)
    path = "" if parts.path == "/" else parts.path
    return urlunsplit((parts.scheme, parts.netloc, WELL_KNOWN + path, parts.query, ""))


def challenge(
    resource: str,
    *,
    error: str | None = None,
    error_description: str | None = None,
    scope: Iterable[str] = (),
) -> str:
    """The value of WWW-Authenticate for a service's 401 or 403 (RFC 9728 §5.1, RFC 6750 §3).

    `error`: `invalid_token` if the token is not valid; `insufficient_scope`, with the required `scope`, if the token
    does not cover it; None if the request had no token.

    Raises:
        AgentWritError: `resource` is not an http or https URL without a fragment, or a text is not allowed in a header.
        TypeError: `scope` is a string instead of a list of strings.
    """
    parameters = {
        "error": error,
        "error_description": error_description,
        "scope": " ".join(_list("scope", scope)),
        "resource_metadata": metadata_url(resource),
    }
    for name, value in parameters.items():
        if value and _QUOTABLE.fullmatch(value) is None:
            raise AgentWritError(f"{name} cannot stand in a header (RFC 6750 §3)")
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parameters.items() if value)


def _list(name: str, items: Iterable[str]) -> list[str]:
    if isinstance(items, str):
        raise TypeError(f"{name} is a list of strings, not one string")
    return list(items)


def _split(url: str) -> SplitResult:
    """Parse the URL of a service (RFC 9728 §1.2). The RFC requires https; http is accepted for development."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and _URL.fullmatch(url) is not None
    except ValueError:
        is_url = False
    if not is_url or "#" in url:
        raise AgentWritError(f"{url!r} is no http or https URL without a fragment")
    return parts
