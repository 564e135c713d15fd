"""What operators do: logging in, keeping apps, launching agents, revoking."""

from collections.abc import Sequence

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, integer_parameter, json_answer
from agentwrit.broker.http.launching import launch_token_answer
from agentwrit.broker.http.rate_limits import RateLimiter
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.passwords import TooManyLogins
from agentwrit.broker.services.apps import AppService
from agentwrit.broker.services.authentication import Authenticator, Principal
from agentwrit.broker.services.launch_tokens import LaunchTokenService
from agentwrit.broker.services.operators import OperatorService
from agentwrit.broker.services.revocation import RevocationService
from agentwrit.domain import operator, timestamps
from agentwrit.domain.errors import InvalidRequest, RateLimited
from agentwrit.domain.grant import GrantKind
from agentwrit.domain.limits import WantedLimits


class OperatorRoutes:
    """Routes under /v1/admin, and revocation."""

    def __init__(
        self,
        operators: OperatorService,
        apps: AppService,
        launch_tokens: LaunchTokenService,
        revocation: RevocationService,
        authenticator: Authenticator,
    ) -> None:
        self._operators = operators
        self._apps = apps
        self._launch_tokens = launch_tokens
        self._revocation = revocation
        self._authenticator = authenticator
        self._attempts = RateLimiter(per_second=5, burst=10)

    def resources(self) -> Sequence[Resource]:
        return [
            Resource("/v1/admin/auth", {"POST": self.authenticate}),
            Resource("/v1/admin/apps", {"POST": self.register_app, "GET": self.list_apps}),
            Resource(
                "/v1/admin/apps/{app_id}", {"GET": self.show_app, "PUT": self.update_app, "DELETE": self.remove_app}
            ),
            Resource("/v1/admin/apps/{app_id}/secret", {"POST": self.rotate_secret}),
            Resource("/v1/admin/apps/{app_id}/suspend", {"POST": self.suspend_app}),
            Resource("/v1/admin/apps/{app_id}/resume", {"POST": self.resume_app}),
            Resource("/v1/admin/launch-tokens", {"POST": self.create_launch_token}),
            Resource("/v1/revoke", {"POST": self.revoke}),
        ]

    async def authenticate(self, exchange: Exchange) -> Answer:
        request = await exchange.body(wire.AdminAuth)
        # Taken before the password is looked at, which is slow: waiting in line does not get around the limit.
        client = exchange.caller.network
        retry_after = self._attempts.take(client)
        if retry_after is not None:
            raise RateLimited("too many failed logins from this address", retry_after=retry_after)
        try:
            issued = await self._operators.authenticate(exchange.caller, request.secret, request.name)
        except TooManyLogins:
            self._attempts.give_back(client)  # nothing was tried
            raise
        self._attempts.give_back(client)
        return json_answer(
            {"access_token": issued.access_token, "expires_in": issued.expires_in, "token_type": "Bearer"}
        )

    async def register_app(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        request = await exchange.body(wire.RegisterApp)
        new = await self._apps.register(
            exchange.caller,
            principal,
            name=request.name,
            scopes=request.scopes,
            token_ttl=request.token_ttl,
            audiences=request.audiences,
            requires_binding=request.require_bound,
            reports_for=request.reports_for,
            limited=_limits(request),
        )
        return json_answer(
            {
                "app_id": new.app.app_id,
                "client_id": new.app.client_id,
                "client_secret": new.client_secret,
                "scopes": new.app.scopes,
                "token_ttl": new.app.token_ttl,
            },
            status=201,
        )

    async def list_apps(self, exchange: Exchange) -> Answer:
        await self._operator(exchange)
        parameters = exchange.query("limit", "offset")
        limit = integer_parameter(parameters, "limit", 0, low=1, high=wire.MAX_INTEGER) or None
        offset = integer_parameter(parameters, "offset", 0, low=0, high=wire.MAX_INTEGER)
        apps, total = await self._apps.list(limit=limit, offset=offset)
        return json_answer({"apps": [wire.app(app) for app in apps], "total": total})

    async def show_app(self, exchange: Exchange) -> Answer:
        await self._operator(exchange)
        return json_answer(wire.app(await self._apps.get(exchange.path_params["app_id"])))

    async def update_app(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        request = await exchange.body(wire.UpdateApp)
        app, grants_ended = await self._apps.update(
            exchange.caller,
            principal,
            exchange.path_params["app_id"],
            scopes=request.scopes,
            token_ttl=request.token_ttl,
            audiences=request.audiences,
            requires_binding=request.require_bound,
            reports_for=request.reports_for,
            limited=_limits(request),
            keep_grants=_keep_grants(exchange),
        )
        return json_answer({**wire.app(app), "grants_ended": grants_ended})

    async def suspend_app(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        app, grants_ended = await self._apps.suspend(exchange.caller, principal, exchange.path_params["app_id"])
        return json_answer({**wire.app(app), "grants_ended": grants_ended})

    async def resume_app(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        return json_answer(
            wire.app(await self._apps.resume(exchange.caller, principal, exchange.path_params["app_id"]))
        )

    async def remove_app(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        app = await self._apps.deregister(exchange.caller, principal, exchange.path_params["app_id"])
        return json_answer(
            {
                "app_id": app.app_id,
                "status": app.status,
                "deregistered_at": timestamps.rfc3339(app.deregistered_at),
            }
        )

    async def rotate_secret(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        request = await exchange.optional_body(wire.RotateSecret)
        new = await self._apps.rotate_secret(
            exchange.caller, principal, exchange.path_params["app_id"], overlap=request.overlap
        )
        until = new.app.previous_secret_until
        return json_answer(
            {
                "app_id": new.app.app_id,
                "client_id": new.app.client_id,
                "client_secret": new.client_secret,
                "previous_secret_expires_at": timestamps.rfc3339(until) if until else None,
            }
        )

    async def create_launch_token(self, exchange: Exchange) -> Answer:
        principal = await self._operator(exchange)
        request = await exchange.body(wire.CreateLaunchToken)
        return await launch_token_answer(self._launch_tokens, exchange.caller, principal, request)

    async def revoke(self, exchange: Exchange) -> Answer:
        required = {GrantKind.OPERATOR: operator.REVOKE_SCOPE}
        principal = await self._authenticator.require(exchange.caller, exchange.bearer(), required)
        request = await exchange.body(wire.Revoke)
        count = await self._revocation.revoke(exchange.caller, principal, request.level, request.target, request.reason)
        return json_answer({"revoked": True, "level": request.level, "target": request.target, "count": count})

    async def _operator(self, exchange: Exchange) -> Principal:
        required = {GrantKind.OPERATOR: operator.LAUNCH_TOKENS_SCOPE}
        return await self._authenticator.require(exchange.caller, exchange.bearer(), required)


def _limits(request: wire.RegisterApp | wire.UpdateApp) -> WantedLimits:
    return WantedLimits(
        max_live_agents=request.max_live_agents,
        max_ttl=request.max_ttl,
        creates_per_second=request.creates_per_second,
    )


def _keep_grants(exchange: Exchange) -> bool:
    text = exchange.query("keep_grants").get("keep_grants", "false")
    if text not in ("true", "false"):
        raise InvalidRequest("keep_grants takes true or false")
    return text == "true"
