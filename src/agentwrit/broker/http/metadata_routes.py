"""What OAuth clients and resource servers find the broker by: authorization server metadata (RFC 8414)."""

import hashlib
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from agentwrit.broker.http import oauth_routes
from agentwrit.broker.http.exchange import Answer, Exchange
from agentwrit.broker.http.routing import Resource
from agentwrit.domain import jwk
from agentwrit.domain.errors import NotFound

WELL_KNOWN: Final = "/.well-known/oauth-authorization-server"
MAX_AGE_SECONDS: Final = 3600

_CLIENT_SECRET: Final = ["client_secret_basic", "client_secret_post"]


class MetadataRoutes:
    """`issuer`: the `iss` of tokens; `public_url`: where clients reach the broker, if that is not the issuer."""

    def __init__(self, issuer: str, public_url: str | None) -> None:
        self._path = issuer_path(issuer)
        self._body = b"" if self._path is None else msgspec.json.encode(metadata(issuer, public_url))
        self._tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'

    def resources(self) -> Sequence[Resource]:
        # RFC 8414 §3.1: an issuer's path goes behind the well-known one. Clients that do not know that find it too.
        paths = dict.fromkeys([WELL_KNOWN, WELL_KNOWN + (self._path or "")])
        return [Resource(path, {"GET": self.metadata}) for path in paths]

    async def metadata(self, exchange: Exchange) -> Answer:
        if self._path is None:
            raise NotFound(
                "the broker has no metadata, because its issuer is no URL",
                hint="set AGENTWRIT_ISSUER to the URL that clients know the broker by",
            )
        headers = {"cache-control": f"public, max-age={MAX_AGE_SECONDS}", "etag": self._tag}
        if exchange.has_seen(self._tag):
            return Answer(status=304, headers=headers)
        return Answer(body=self._body, headers=headers)


def issuer_path(issuer: str) -> str | None:
    """The path of an issuer, without a slash at its end; None for one that cannot have metadata (RFC 8414 §2)."""
    try:
        parts = urlsplit(issuer)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname or "?" in issuer or "#" in issuer:
        return None
    return unquote(parts.path).rstrip("/")


def metadata(issuer: str, public_url: str | None) -> dict[str, object]:
    """The metadata of a broker whose issuer is a URL (RFC 8414 §2)."""
    base = (public_url or issuer).rstrip("/")
    return {
        "issuer": issuer,
        "authorization_endpoint": base + oauth_routes.AUTHORIZE,  # clients refuse metadata without one
        "token_endpoint": base + oauth_routes.TOKEN,
        "jwks_uri": base + "/.well-known/jwks.json",
        "response_types_supported": [],
        "grant_types_supported": oauth_routes.GRANT_TYPES,
        "token_endpoint_auth_methods_supported": _CLIENT_SECRET,
        "introspection_endpoint": base + oauth_routes.INTROSPECT,
        # RFC 8414 §2: token types of the registry are methods here.
        "introspection_endpoint_auth_methods_supported": [*_CLIENT_SECRET, "Bearer"],
        "revocation_endpoint": base + oauth_routes.REVOKE,
        "revocation_endpoint_auth_methods_supported": _CLIENT_SECRET,
        "dpop_signing_alg_values_supported": jwk.proof_algorithms(),  # RFC 9449 §5.1
    }
