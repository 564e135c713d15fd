"""Launch tokens: the right to register agents."""

import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller, audience_data, scope_data
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import launch_token, scope, text
from agentwrit.domain.app import App
from agentwrit.domain.audit import Draft, EventType, Outcome
from agentwrit.domain.errors import (
    AudienceViolation,
    BindingRequired,
    InvalidRequest,
    InvalidTTL,
    Refusal,
    ScopeViolation,
    Unauthorized,
)
from agentwrit.domain.grant import GrantKind
from agentwrit.domain.launch_token import LaunchToken

WIDER_CEILING: Final = "ask for less, or have the operator widen the app's ceiling: `agentwrit app update --scope`"
WIDER_AUDIENCES: Final = "ask for others, or have the operator add to the app's: `agentwrit app update --audience`"

MAX_AGENT_NAME_LENGTH = 256
MAX_USES = 1_000_000
MAX_AUDIENCES = 16
MAX_AUDIENCE_LENGTH = 256


class LaunchPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a launch token. `ttl`: its lifetime in seconds; `max_ttl`: that of its agents' tokens.

    `max_uses` None: one use if `single_use`, else unlimited. `is_bound`: whether its agents' tokens are bound to their
    keys.
    """

    agent_name: str
    allowed_scope: Sequence[str]
    max_ttl: int | None = None
    single_use: bool = True
    max_uses: int | None = None
    ttl: int = launch_token.DEFAULT_TTL_SECONDS
    audience: Sequence[str] = ()
    is_bound: bool = False


class NewLaunchToken(msgspec.Struct, frozen=True, kw_only=True):
    """A launch token, for the caller that requested it: `secret` is shown only once."""

    secret: str
    record: LaunchToken

    def __repr__(self) -> str:
        return "NewLaunchToken(…)"


class LaunchTokenService:
    """Issues launch tokens: to apps within their ceiling, and to operators."""

    def __init__(self, denials: DenialLog, config: Config, log_budget: LogBudget) -> None:
        self._denials = denials
        self._log_budget = log_budget
        self._config = config

    async def issue(self, caller: Caller, principal: Principal, policy: LaunchPolicy) -> NewLaunchToken:
        """Create a launch token.

        Raises:
            InvalidRequest, InvalidTTL: the policy is invalid.
            ScopeViolation: it exceeds the app's ceiling or audiences, or permits unbound tokens although the app
                requires bound ones.
            Unauthorized: the app is not active.
        """
        allowed = scope.parse_list(policy.allowed_scope, field="allowed_scope")
        max_ttl, ttl = self._lifetimes(policy)
        max_uses = _max_uses(policy)
        check_agent_name(policy.agent_name)
        audience = check_audience(policy.audience)
        secret = secrets.token_hex(launch_token.SECRET_BYTES)

        def issue(transaction: Transaction) -> NewLaunchToken:
            app = self._app(transaction, principal)
            if app is not None:
                self._log_budget.check(caller, app.client_id, who=principal.who)
                _check_binding(caller, principal, app, policy)
                _check_ceiling(caller, principal, app, allowed)
                self._check_audience(caller, principal, app, audience)
            now = int(transaction.now)
            record = LaunchToken(
                token_hash=launch_token.fingerprint(secret),
                app_id=app.app_id if app is not None else "",
                client_id=app.client_id if app is not None else "",
                agent_name=policy.agent_name,
                allowed_scope=allowed,
                audience=audience,
                max_ttl=max_ttl if app is None else app.cut_ttl(max_ttl),
                max_uses=max_uses,
                uses=0,
                created_at=now,
                expires_at=now + ttl,
                is_bound=policy.is_bound,
                suspensions=app.suspensions if app is not None else 0,
            )
            transaction.put(record)
            transaction.record(
                caller.event(
                    EventType.LAUNCH_TOKEN_ISSUED,
                    principal=principal.name,
                    app_id=record.app_id,
                    sid=principal.claims.sid,
                    detail="a launch token was issued",
                    data={
                        "agent_name": policy.agent_name,
                        "allowed_scope": list(allowed),
                        "max_ttl": record.max_ttl,
                        "max_uses": max_uses,
                        "ttl": ttl,
                        **({"token_type": "DPoP"} if policy.is_bound else {}),
                    },
                )
            )
            return NewLaunchToken(secret=secret, record=record)

        new = await self._denials.write(issue)
        if new.record.app_id:
            self._log_budget.charge(new.record.client_id, 1, allowed)
        return new

    def _app(self, transaction: Transaction, principal: Principal) -> App | None:
        """The calling app, or None for an operator."""
        if principal.kind is GrantKind.OPERATOR:
            return None
        app = transaction.app(principal.app_id)
        if app is None or not app.is_active:
            raise Unauthorized("the app is not active")
        return app

    def _check_audience(self, caller: Caller, principal: Principal, app: App, audience: Sequence[str]) -> None:
        exceeding = app.uncovered_audience(audience, self._config.default_audience)
        if exceeding:
            event = caller.event(
                EventType.SCOPE_CEILING_EXCEEDED,
                Outcome.DENIED,
                principal=principal.name,
                app_id=app.app_id,
                sid=principal.claims.sid,
                detail="the launch token would be for others than the app's audiences",
                data=audience_data(audience, app.audiences, exceeding),
            )
            # Well formed, but more than the app may give: the answer is as for a scope beyond the ceiling.
            error = AudienceViolation.beyond("audience", "the app's audiences", exceeding, hint=WIDER_AUDIENCES)
            raise _denied(error, caller, app, event)

    def _lifetimes(self, policy: LaunchPolicy) -> tuple[int, int]:
        if policy.ttl < 1:
            raise InvalidTTL("ttl must be at least 1 second")
        return check_max_ttl(policy.max_ttl, self._config), min(policy.ttl, launch_token.MAX_TTL_SECONDS)


def check_audience(audience: Sequence[str], *, field: str = "audience") -> tuple[str, ...]:
    """`audience`, if tokens can have it. `field`: the name of the field in errors.

    Raises:
        InvalidRequest: tokens cannot have it.
    """
    if len(audience) > MAX_AUDIENCES:
        raise InvalidRequest(f"{field} takes up to {MAX_AUDIENCES} names")
    return tuple(text.check(name, MAX_AUDIENCE_LENGTH, field=field) for name in audience)


def check_max_ttl(max_ttl: int | None, config: Config) -> int:
    """The token lifetime (seconds) for a requested one; None for the default.

    Raises:
        InvalidTTL: it is less than a second.
    """
    if max_ttl is not None and max_ttl < 1:
        raise InvalidTTL("max_ttl must be at least 1 second")
    return min(config.default_ttl if max_ttl is None else max_ttl, config.max_ttl)


def check_agent_name(name: str) -> str:
    """`name`, if it is a valid agent name.

    Raises:
        InvalidRequest: it is not.
    """
    return text.check(name, MAX_AGENT_NAME_LENGTH, field="agent_name")


def _max_uses(policy: LaunchPolicy) -> int:
    if policy.max_uses is None:
        return 1 if policy.single_use else 0
    if not 1 <= policy.max_uses <= MAX_USES or (policy.single_use and policy.max_uses != 1):
        raise InvalidRequest(f"max_uses takes 1 to {MAX_USES}, and more than 1 only with single_use false")
    return policy.max_uses


def _check_binding(caller: Caller, principal: Principal, app: App, policy: LaunchPolicy) -> None:
    if app.requires_binding and not policy.is_bound:
        event = caller.event(
            EventType.LAUNCH_TOKEN_DENIED,
            Outcome.DENIED,
            principal=principal.name,
            app_id=app.app_id,
            sid=principal.claims.sid,
            detail="the launch token would lead to tokens that are not bound, and the app's have to be",
        )
        raise _denied(BindingRequired(), caller, app, event)


def _check_ceiling(caller: Caller, principal: Principal, app: App, allowed: Sequence[str]) -> None:
    exceeding = scope.uncovered(allowed, app.scopes)
    if exceeding:
        event = caller.event(
            EventType.SCOPE_CEILING_EXCEEDED,
            Outcome.DENIED,
            principal=principal.name,
            app_id=app.app_id,
            sid=principal.claims.sid,
            detail="the launch token would allow more than the app's ceiling",
            data=scope_data(allowed, app.scopes, exceeding),
        )
        error = ScopeViolation.beyond("allowed_scope", "the app's ceiling", exceeding, hint=WIDER_CEILING)
        raise _denied(error, caller, app, event)


def _denied(error: Refusal, caller: Caller, app: App, event: Draft) -> Denial:
    """A denial of more than the app may give, which an app can repeat endlessly."""
    return Denial(error, caller, event, by=app.client_id, about=(app.app_id, event.detail))
