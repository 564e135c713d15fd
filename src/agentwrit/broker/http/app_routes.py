"""What apps do: logging in, and launching agents."""

from collections.abc import Sequence

from agentwrit.broker.http import wire
from agentwrit.broker.http.app_logins import AppLogins
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.launching import launch_token_answer
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.authentication import Authenticator
from agentwrit.broker.services.launch_tokens import LaunchTokenService
from agentwrit.domain import app
from agentwrit.domain.grant import GrantKind


class AppRoutes:
    """Routes under /v1/app."""

    def __init__(self, logins: AppLogins, launch_tokens: LaunchTokenService, authenticator: Authenticator) -> None:
        self._logins = logins
        self._launch_tokens = launch_tokens
        self._authenticator = authenticator

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/app/auth", {"POST": self.authenticate}, is_bounded=True),
            Resource("/v1/app/launch-tokens", {"POST": self.create_launch_token}, is_bounded=True),
        ]

    async def authenticate(self, exchange: Exchange) -> Answer:
        request = await exchange.body(wire.AppAuth)
        issued = await self._logins.log_in(exchange.caller, request.client_id, request.client_secret)
        return json_answer(
            {
                "access_token": issued.access_token,
                "expires_in": issued.expires_in,
                "token_type": "Bearer",
                "scopes": issued.grant.scope,
            }
        )

    async def create_launch_token(self, exchange: Exchange) -> Answer:
        required = {GrantKind.APP: app.LAUNCH_TOKENS_SCOPE}
        principal = await self._authenticator.require(exchange.caller, exchange.bearer(), required)
        request = await exchange.body(wire.CreateLaunchToken)
        return await launch_token_answer(self._launch_tokens, exchange.caller, principal, request)
