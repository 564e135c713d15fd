"""Registration: an agent proves its key and gets its identity, its grant and its first token."""

import os
from typing import Final

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.services import limits
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller, EventData, audience_data, scope_data
from agentwrit.broker.services.denials import DenialLog, StrangerDenied
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer, holder
from agentwrit.broker.services.launch_tokens import check_agent_name, check_audience, check_max_ttl
from agentwrit.broker.services.limits import LimitedApps
from agentwrit.broker.services.possession import Possession, spend, spending
from agentwrit.broker.storage.base import Denied, Row, Transaction
from agentwrit.domain import challenge, idempotency, launch_token, scope, spiffe_id
from agentwrit.domain.app import App
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.errors import (
    AudienceViolation,
    BindingRequired,
    InvalidChallenge,
    InvalidProof,
    LimitReached,
    ScopeViolation,
    Unauthorized,
)
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.idempotency import RequestIdentity
from agentwrit.domain.jws import is_signature
from agentwrit.domain.launch_token import LaunchToken
from agentwrit.domain.proof import Proof


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for an agent. `public_key`: 32 bytes."""

    public_key: bytes
    orch_id: str
    task_id: str
    requested_scope: tuple[str, ...]


class LaunchedApplication(Application, frozen=True, kw_only=True):
    """What an agent brings to be registered. `signature`: over the nonce's 32 bytes."""

    launch_token: str
    nonce: str
    signature: bytes


class DirectApplication(Application, frozen=True, kw_only=True):
    """What an app asks for one of its agents, in one go. `proof`: by the agent's key, with the app's token.

    `url`: where it was asked; `max_ttl`: seconds; `is_bound`: whether its tokens are to be bound to the key;
    `idempotency_key` None for none.
    """

    agent_name: str
    max_ttl: int | None
    audience: tuple[str, ...]
    is_bound: bool
    proof: str
    url: str
    idempotency_key: str | None


_HINTS: Final[dict[type[Application], str]] = {
    LaunchedApplication: "it takes a live launch token, a fresh nonce and a signature over its 32 bytes",
    DirectApplication: "it takes a new proof by the agent's key, for this URL and with the app's token (RFC 9449);"
    " behind a proxy the broker has to know the URL: set AGENTWRIT_PUBLIC_URL",
}


class RegistrationService:
    """Registers agents."""

    def __init__(
        self, denials: DenialLog, issuer: TokenIssuer, config: Config, possession: Possession, limited: LimitedApps
    ) -> None:
        self._denials = denials
        self._issuer = issuer
        self._config = config
        self._possession = possession
        self._limited = limited

    def challenge(self) -> str:
        """A fresh nonce to sign."""
        return self._possession.challenge()

    async def create(
        self, caller: Caller, app_token: str, by: Principal, application: DirectApplication
    ) -> IssuedToken:
        """Register an agent for an app that asks for it directly, in one transaction.

        Raises:
            InvalidRequest, InvalidTTL: a field is not what it should be.
            Unauthorized: the proof is not good, or the app is not active.
            ProofNonceNeeded: the proof's time is not ours.
            ScopeViolation: more is asked for than the app may give.
            LimitReached: the app has all the agents that it may have, or has them made too fast.
            Conflict: the idempotency key was used for another request.
        """
        requested = _check_fields(application)
        policy = self._policy(by, application)
        try:
            self._limited.check(caller, by.app_id, orch_id=application.orch_id, task_id=application.task_id)
            proof = self._proof(caller, app_token, application)
        except StrangerDenied as denied:
            raise await self._denials.record(denied) from None
        identity = _identify(caller, by, application)

        def create(transaction: Transaction) -> tuple[IssuedToken, App]:
            now = transaction.now
            app = transaction.app(by.app_id)
            if app is None or not app.is_active:
                raise Unauthorized("the app is not active")
            if not spend(transaction, proof):
                raise _refused(caller, application, "the proof was used before")
            first = None if identity is None else transaction.first_answer(identity.key)
            if identity is not None and first is not None and first.grant is not None and now < first.expires_at:
                identity.check_same(first)
                return self._issuer.token(first.grant, now), app
            of_app = msgspec.structs.replace(policy, client_id=app.client_id)
            _check_binding(caller, application, of_app, app)
            _check_scope(caller, application, of_app, app)
            self._check_audience(caller, application, of_app, app)
            _check_limits(transaction, caller, application, app)
            grant = self._grant(application, requested, of_app, app, now)
            transaction.put_grant(grant)
            issued = self._issuer.token(grant, now)
            _record(transaction, caller, grant)
            if identity is not None:
                transaction.put_first_answer(identity.answered(grant, now))
            return issued, app

        first_answer = () if identity is None else (Row("first_answers", identity.key),)
        reads = (Row("apps", by.app_id), *self._limited.reads(by.app_id), *spending(proof), *first_answer)
        try:
            issued, app = await self._denials.write(create, reads=reads)
        except LimitReached as reached:
            self._limited.remember(by.app_id, reached)
            raise
        if app.is_limited:
            self._limited.remember(by.app_id)
        return issued

    def _policy(self, by: Principal, application: DirectApplication) -> LaunchToken:
        """What a launch token for this agent alone would say."""
        return LaunchToken(
            token_hash=b"",
            app_id=by.app_id,
            client_id="",
            agent_name=check_agent_name(application.agent_name),
            allowed_scope=application.requested_scope,
            audience=check_audience(application.audience),
            max_ttl=check_max_ttl(application.max_ttl, self._config),
            max_uses=1,
            uses=0,
            created_at=0,
            expires_at=0,
            is_bound=application.is_bound,
        )

    def _proof(self, caller: Caller, app_token: str, application: DirectApplication) -> Proof:
        """The proof, checked but for its being new."""
        try:
            checked = self._possession.proof(application.proof, htm="POST", htu=application.url, token=app_token)
        except InvalidProof as invalid:
            raise _refused(caller, application, invalid.reason) from None
        if checked.public_key != application.public_key:
            raise _refused(caller, application, "the proof is by another key")
        return checked

    async def register(self, caller: Caller, application: LaunchedApplication) -> IssuedToken:
        """Register an agent, in one transaction.

        Raises:
            InvalidRequest: a field is not what it should be.
            Unauthorized: the launch token, the nonce or the signature is not good; which, nobody is told.
            ScopeViolation: more is asked for than the launch token, or by now the app, may give.
            LimitReached: the app has all the agents that it may have, or has them made too fast.
        """
        requested = _check_fields(application)
        is_proven = _is_proven(application)

        def register(transaction: Transaction) -> IssuedToken:
            now = transaction.now
            token = transaction.launch_token(launch_token.fingerprint(application.launch_token))
            if token is None or not token.is_usable(now):
                raise _refused(caller, application, "the launch token is unknown, used up or expired")
            app = transaction.app(token.app_id) if token.app_id else None
            if token.app_id and (app is None or not app.is_active):
                raise _refused(caller, application, "the app that the launch token is from is not active")
            if app is not None and app.suspensions != token.suspensions:
                raise _refused(caller, application, "the launch token is from before its app was suspended")
            _check_binding(caller, application, token, app)
            _check_scope(caller, application, token, app)
            self._check_audience(caller, application, token, app)
            self._spend_nonce(transaction, caller, application)
            if not is_proven:
                raise _refused(caller, application, "the signature is not by that key over that nonce")
            _check_limits(transaction, caller, application, app)
            transaction.put_launch_token(launch_token.used(token))
            grant = self._grant(application, requested, token, app, now)
            transaction.put_grant(grant)
            issued = self._issuer.token(grant, now)
            _record(transaction, caller, grant)
            return issued

        return await self._denials.write(register)

    def _check_audience(self, caller: Caller, application: Application, token: LaunchToken, app: App | None) -> None:
        """For whom the app's agents may by now be given tokens."""
        exceeding = () if app is None else self._issuer.uncovered_audience(app, token.audience)
        if app is not None and exceeding:
            event = caller.event(
                EventType.SCOPE_CEILING_EXCEEDED,
                Outcome.DENIED,
                detail="the launch token is for others than the app's audiences",
                app_id=token.app_id,
                orch_id=application.orch_id,
                task_id=application.task_id,
                data=audience_data(token.audience, app.audiences, exceeding),
            )
            raise Denied(AudienceViolation("the launch token's audience exceeds the app's audiences"), event)

    def _spend_nonce(self, transaction: Transaction, caller: Caller, application: LaunchedApplication) -> None:
        try:
            nonce = self._possession.nonce(application.nonce, transaction.now)
        except InvalidChallenge as invalid:
            raise _refused(caller, application, invalid.reason) from None
        if not transaction.spend_nonce(nonce, challenge.expires_at(nonce)):
            raise _refused(caller, application, "the nonce was used before")

    def _grant(
        self,
        application: Application,
        requested: tuple[str, ...],
        token: LaunchToken,
        app: App | None,
        now: float,
    ) -> Grant:
        instance = os.urandom(spiffe_id.INSTANCE_BYTES)
        agent_id = spiffe_id.for_agent(self._config.trust_domain, application.orch_id, application.task_id, instance)
        grant = self._issuer.new_grant(
            GrantKind.AGENT,
            agent_id,
            requested,
            ttl=token.max_ttl if app is None else app.cut_ttl(token.max_ttl),
            now=now,
            ends_at=int(now) + self._config.max_lifetime,
            app=app,
            audience=token.audience,
        )
        return msgspec.structs.replace(
            grant,
            orch_id=application.orch_id,
            task_id=application.task_id,
            agent_name=token.agent_name,
            public_key=application.public_key,
            is_bound=token.is_bound,
            is_counted=app is not None and app.max_live_agents is not None,
        )


def _check_fields(application: Application) -> tuple[str, ...]:
    """The requested scope, if all that an agent's identity is made of can be."""
    spiffe_id.check_segment(application.orch_id, field="orch_id")
    spiffe_id.check_segment(application.task_id, field="task_id")
    return scope.parse_list(application.requested_scope, field="requested_scope")


def _identify(caller: Caller, by: Principal, application: DirectApplication) -> RequestIdentity | None:
    if application.idempotency_key is None:
        return None
    body = {
        "orch_id": application.orch_id,
        "task_id": application.task_id,
        "requested_scope": application.requested_scope,
        "max_ttl": application.max_ttl,
        "agent_name": application.agent_name,
        "audience": application.audience,
        "bound": application.is_bound,
        "public_key": application.public_key.hex(),
    }
    return idempotency.identify(application.idempotency_key, route=caller.route, caller=by.app_id, body=body)


def _is_proven(application: LaunchedApplication) -> bool:
    """Whether the signature is right. The nonce's own merits are another question."""
    try:
        message = bytes.fromhex(application.nonce)
    except ValueError:
        return False
    return is_signature(application.signature, message, application.public_key)


def _refused(caller: Caller, application: Application, reason: str) -> StrangerDenied:
    """A refusal that tells the caller the same, whatever the reason: that goes to the audit log."""
    event = caller.event(
        EventType.REGISTRATION_POLICY_VIOLATION,
        Outcome.DENIED,
        detail=reason,
        orch_id=application.orch_id,
        task_id=application.task_id,
    )
    return StrangerDenied(
        Unauthorized("the registration was not accepted", hint=_HINTS[type(application)]), caller, event
    )


def _check_binding(caller: Caller, application: Application, token: LaunchToken, app: App | None) -> None:
    """Bound, where the app's agents by now have to be."""
    if app is not None and app.requires_binding and not token.is_bound:
        event = caller.event(
            EventType.REGISTRATION_POLICY_VIOLATION,
            Outcome.DENIED,
            detail="the agent's tokens would not be bound, and the app's have to be",
            app_id=token.app_id,
            orch_id=application.orch_id,
            task_id=application.task_id,
        )
        raise Denied(BindingRequired(), event)


def _check_limits(transaction: Transaction, caller: Caller, application: Application, app: App | None) -> None:
    """Within the app's limits, of which one more agent takes its part. Last: only what succeeds takes any."""
    if app is not None and app.is_limited:
        limits.use(transaction, caller, app, orch_id=application.orch_id, task_id=application.task_id)


def _check_scope(caller: Caller, application: Application, token: LaunchToken, app: App | None) -> None:
    """Within the launch token, and within the ceiling that the app has by now."""
    ceilings = [(EventType.REGISTRATION_POLICY_VIOLATION, "launch token", token.allowed_scope)]
    if app is not None:
        ceilings.append((EventType.SCOPE_CEILING_EXCEEDED, "app's ceiling", app.scopes))
    for event_type, name, held in ceilings:
        exceeding = scope.uncovered(application.requested_scope, held)
        if exceeding:
            event = caller.event(
                event_type,
                Outcome.DENIED,
                detail=f"the requested scope exceeds the {name}",
                app_id=token.app_id,
                orch_id=application.orch_id,
                task_id=application.task_id,
                data=scope_data(application.requested_scope, held, exceeding),
            )
            raise Denied(ScopeViolation(f"requested_scope exceeds the {name}"), event)


def _record(transaction: Transaction, caller: Caller, grant: Grant) -> None:
    binding: EventData = {"token_type": "DPoP"} if grant.is_bound else {}
    registered = caller.event(
        EventType.AGENT_REGISTERED,
        detail="an agent was registered",
        **holder(grant),
        data={"agent_name": grant.agent_name, "scope": list(grant.scope), "ends_at": grant.ends_at, **binding},
    )
    transaction.record(registered)
    transaction.record(
        msgspec.structs.replace(
            registered,
            event_type=EventType.TOKEN_ISSUED,
            detail="a token was issued",
            data={"jti": grant.jti, "scope": list(grant.scope), "exp": grant.exp},
        )
    )
