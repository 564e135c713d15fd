"""Protected resource metadata (RFC 9728), for services that take AgentWrit's tokens: how clients find the broker.

Serve `metadata(…)` as JSON at the path of `metadata_url(resource)`, and answer whoever comes without a token that holds
with 401 and `WWW-Authenticate: ` + `challenge(resource)`. Clients that know RFC 9728, those of MCP among them, then
find the broker by themselves.

    resource = "https://orders.example/api"
    metadata(resource, authorization_servers=["https://broker.example"], scopes_supported=["read:data:*"])
    metadata_url(resource)  # "https://orders.example/.well-known/oauth-protected-resource/api"
    challenge(resource)  # 'Bearer resource_metadata="https://orders.example/.well-known/oauth-protected-resource/api"'

Pure functions: they load no HTTP library and make no call.
"""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from agentwrit.domain import jwk
from agentwrit.domain.errors import AgentWritError

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"

# RFC 6750 §3: what `error`, `error_description` and `scope` may hold. Nothing in it ends a quoted string.
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
    """The metadata of a service (RFC 9728 §2), ready to be encoded as JSON. What is not given is left out.

    `resource`: the service's own URL, and what tokens for it have as `aud`; `authorization_servers`: the issuers whose
    tokens it takes, which for a broker is its AGENTWRIT_ISSUER; `jwks_uri`: where the service's own keys are, if it
    signs what it answers. The broker's keys are not meant: its own metadata says where those are.
    `dpop_signing_alg_values_supported`: of proofs (RFC 9449); None for those that a `Verifier` takes here.

    Raises:
        AgentWritError: a URL is none, or no authorization server is named.
        TypeError: a bare string was given where a list belongs.
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
    """Where the metadata of a service has to be (RFC 9728 §3.1): the well-known path stands before the URL's own.

    Raises:
        AgentWritError: `resource` is no URL that names a service.
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
    """What a service's 401 or 403 has as WWW-Authenticate (RFC 9728 §5.1, RFC 6750 §3).

    `error`: `invalid_token` for a token that does not hold, `insufficient_scope`, with the `scope` that is needed, for
    one that does not cover it; none where there was no token at all.

    Raises:
        AgentWritError: `resource` is no URL that names a service, or a text cannot stand in a header.
        TypeError: a bare string was given as `scope`.
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
    """A URL that names a service (RFC 9728 §1.2). The RFC wants https; http is let through for development."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and _URL.fullmatch(url) is not None
    except ValueError:
        is_url = False
    if not is_url or "#" in url:
        raise AgentWritError(f"{url!r} is no http or https URL without a fragment")
    return parts
