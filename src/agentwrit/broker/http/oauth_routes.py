"""The routes under /oauth2: tokens, token exchange, introspection and revocation as the RFCs have them."""

import re
from collections.abc import Sequence
from typing import Final

from agentwrit.broker.http import wire
from agentwrit.broker.http.app_logins import AppLogins
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.forms import Form
from agentwrit.broker.http.oauth import OAuthError, answering, check_no_query, credentials, refused
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.authentication import Authenticator
from agentwrit.broker.services.client_credentials import ClientCredentialsService
from agentwrit.broker.services.issuing import IssuedToken
from agentwrit.broker.services.token_exchange import ExchangeRequest, TokenExchangeService
from agentwrit.broker.services.token_revocation import TokenRevocationService
from agentwrit.broker.services.tokens import TokenService
from agentwrit.domain import delegation, launch_token, scope
from agentwrit.domain.app import App
from agentwrit.domain.errors import InsufficientScope, InvalidRequest, TokenRevoked, Unauthorized
from agentwrit.domain.grant import GrantKind

AUTHORIZE: Final = "/oauth2/authorize"
TOKEN: Final = "/oauth2/token"
INTROSPECT: Final = "/oauth2/introspect"
REVOKE: Final = "/oauth2/revoke"

CLIENT_CREDENTIALS: Final = "client_credentials"
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
GRANT_TYPES: Final = (CLIENT_CREDENTIALS, TOKEN_EXCHANGE)
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"

# RFC 8707 §2, RFC 8693 §2.1: these may be given more than once.
_REPEATABLE: Final = frozenset({"resource", "audience"})

_ABSOLUTE_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")  # RFC 3986 §4.3
_LAUNCH_TOKEN = re.compile(rf"[0-9a-f]{{{2 * launch_token.SECRET_BYTES}}}")


class OAuthRoutes:
    """`own_names`: the names by which the broker itself can be asked for as a resource."""

    def __init__(
        self,
        logins: AppLogins,
        client_credentials: ClientCredentialsService,
        tokens: TokenService,
        exchanges: TokenExchangeService,
        revocations: TokenRevocationService,
        authenticator: Authenticator,
        metrics: Metrics,
        *,
        own_names: Sequence[str],
    ) -> None:
        self._logins = logins
        self._clients = client_credentials
        self._tokens = tokens
        self._exchanges = exchanges
        self._revocations = revocations
        self._authenticator = authenticator
        self._own_names = frozenset(name.rstrip("/") for name in own_names)
        self._validations = metrics.validations

    def resources(self) -> Sequence[Resource]:
        return [
            Resource(AUTHORIZE, {"GET": answering(self.authorize)}, refusing=refused),
            Resource(TOKEN, {"POST": answering(self.token)}, is_bounded=True, refusing=refused),
            Resource(INTROSPECT, {"POST": answering(self.introspect)}, refusing=refused),
            Resource(REVOKE, {"POST": answering(self.revoke)}, refusing=refused),
        ]

    async def authorize(self, exchange: Exchange) -> Answer:
        """The authorization endpoint (RFC 6749 §3.1), of which clients want to be told. There is nobody to ask here."""
        raise OAuthError("unsupported_response_type", f"no user is asked here: a client gets its tokens at {TOKEN}")

    # -- tokens ---------------------------------------------------------------------------------------------------

    async def token(self, exchange: Exchange) -> Answer:
        """The token endpoint (RFC 6749 §3.2)."""
        check_no_query(exchange)
        form = await exchange.form(repeatable=_REPEATABLE)
        grant_type = form.required("grant_type")
        if grant_type == CLIENT_CREDENTIALS:
            return json_answer(_token_answer(await self._client_credentials(exchange, form)))
        if grant_type == TOKEN_EXCHANGE:
            issued = await self._exchange(exchange, form)
            return json_answer({**_token_answer(issued), "issued_token_type": ACCESS_TOKEN})
        raise OAuthError("unsupported_grant_type", f"grant_type takes {' or '.join(GRANT_TYPES)}")

    async def _client_credentials(self, exchange: Exchange, form: Form) -> IssuedToken:
        """RFC 6749 §4.4: the app's own token, which is for the broker; or one for the services that it names."""
        client_id, client_secret = credentials(exchange, form)
        targets = _targets(form)
        services = [name for name in targets if name.rstrip("/") not in self._own_names]
        wanted = _scopes(form.get("scope"))
        if not services:
            return await self._logins.log_in(exchange.caller, client_id, client_secret, wanted=wanted)
        if len(services) < len(targets):  # RFC 8707 §2
            raise OAuthError("invalid_target", "a token is for this broker or for services, and not for both")
        app = await self._logins.identify(exchange.caller, client_id, client_secret)
        return await self._clients.issue(exchange.caller, app, wanted, services)

    async def _exchange(self, exchange: Exchange, form: Form) -> IssuedToken:
        """RFC 8693 §2.1, for delegation: an actor token is needed, and so is a scope."""
        app = await self._client(exchange, form)
        request = ExchangeRequest(
            subject_token=_typed_token(form, "subject_token"),
            actor_token=_typed_token(form, "actor_token"),
            scope=_scopes(form.required("scope")),
            audience=_targets(form),
            ttl=_seconds(form, "ttl", delegation.DEFAULT_TTL_SECONDS),
        )
        if form.get("requested_token_type") not in (None, ACCESS_TOKEN):
            raise InvalidRequest(f"requested_token_type takes {ACCESS_TOKEN}")
        return await self._exchanges.exchange(exchange.caller, app, request)

    # -- introspection --------------------------------------------------------------------------------------------

    async def introspect(self, exchange: Exchange) -> Answer:
        """RFC 7662 §2. Any app, and the operator, may ask of any token that it was shown."""
        check_no_query(exchange)
        form = await exchange.form()
        await self._resource_server(exchange, form)
        claims = await self._tokens.introspect(form.required("token"))
        if claims is None:
            self._validations["invalid"] += 1
            return json_answer({"active": False})  # RFC 7662 §2.2: and nothing more
        self._validations["valid"] += 1
        return json_answer(wire.introspection(claims))

    async def _resource_server(self, exchange: Exchange, form: Form) -> None:
        """Who asks: a client, or whoever has an app's or the operator's token (RFC 7662 §2.1)."""
        authorization = exchange.authorization()
        if authorization is None or authorization[0] != "bearer":
            await self._client(exchange, form)
            return
        if form.get("client_secret") is not None:
            raise OAuthError("invalid_request", "the client authenticates in two ways at once")
        try:
            principal = await self._authenticator.bearer(exchange.caller, exchange.bearer())
            if principal.kind is GrantKind.AGENT:
                raise await self._authenticator.insufficient(exchange.caller, principal, "")
        except (Unauthorized, TokenRevoked):
            # RFC 7662 §2.3, RFC 6750 §3.1
            challenge = 'Bearer error="invalid_token"'
            raise OAuthError(
                "invalid_token", "a valid bearer token is needed", status=401, challenge=challenge
            ) from None
        except InsufficientScope:
            challenge = 'Bearer error="insufficient_scope"'
            description = "an app's or the operator's token is needed"
            raise OAuthError("insufficient_scope", description, status=403, challenge=challenge) from None

    # -- revocation -----------------------------------------------------------------------------------------------

    async def revoke(self, exchange: Exchange) -> Answer:
        """RFC 7009 §2. A token with nothing to end is no error (§2.2); `token_type_hint` is not needed."""
        check_no_query(exchange)
        form = await exchange.form()
        app = await self._client(exchange, form)
        token = form.required("token")
        if _LAUNCH_TOKEN.fullmatch(token):
            # RFC 7009 §2.2.1: said by its form alone, so that nobody takes it for ended.
            raise OAuthError("unsupported_token_type", "a launch token is not revoked: it is used once, or ends soon")
        await self._revocations.revoke(exchange.caller, app, token)
        return json_answer({})

    async def _client(self, exchange: Exchange, form: Form) -> App:
        client_id, client_secret = credentials(exchange, form)
        return await self._logins.identify(exchange.caller, client_id, client_secret)


def _token_answer(issued: IssuedToken) -> dict[str, object]:
    """RFC 6749 §5.1."""
    return {
        "access_token": issued.access_token,
        "token_type": "DPoP" if issued.grant.is_bound else "Bearer",  # RFC 9449 §5
        "expires_in": issued.expires_in,
        "scope": " ".join(issued.grant.scope),
    }


def _scopes(text: str | None) -> tuple[str, ...]:
    """A `scope` parameter, taken apart (RFC 6749 §3.3)."""
    if text is None:
        return ()
    if text.count(" ") >= scope.MAX_SCOPES:  # before they are taken apart
        raise OAuthError("invalid_scope", f"scope holds more than {scope.MAX_SCOPES} scopes")
    try:
        return scope.parse_list(text.split(" "), field="scope")
    except InvalidRequest as error:
        raise OAuthError("invalid_scope", error.detail) from None


def _targets(form: Form) -> tuple[str, ...]:
    """For whom a token is wanted: `resource` (RFC 8707 §2) and `audience` (RFC 8693 §2.1)."""
    for resource in form.all("resource"):
        if _ABSOLUTE_URI.fullmatch(resource) is None or "#" in resource:
            raise OAuthError("invalid_target", "resource takes an absolute URI without a fragment")
    return tuple(dict.fromkeys((*form.all("resource"), *form.all("audience"))))


def _typed_token(form: Form, name: str) -> str:
    token = form.required(name)
    if form.required(f"{name}_type") != ACCESS_TOKEN:
        raise InvalidRequest(f"{name}_type takes {ACCESS_TOKEN}")
    return token


def _seconds(form: Form, name: str, default: int) -> int:
    text = form.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) <= wire.MAX_INTEGER):
        raise InvalidRequest(f"{name} takes a whole number of seconds")
    return int(text)
