"""Registration: an agent proves its key and gets its identity, its grant and its first token."""

import os
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.services import limits
from agentwrit.broker.services.authentication import Principal, hint_for
from agentwrit.broker.services.context import Caller, EventData, audience_data, scope_data
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer, holder
from agentwrit.broker.services.launch_tokens import (
    WIDER_AUDIENCES,
    WIDER_CEILING,
    check_agent_name,
    check_audience,
    check_max_ttl,
)
from agentwrit.broker.services.limits import LimitedApps
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.services.possession import Possession, spend, spending
from agentwrit.broker.storage.base import Row, Transaction
from agentwrit.domain import challenge, idempotency, launch_token, scope, spiffe_id
from agentwrit.domain.agent_key import is_signature
from agentwrit.domain.app import App
from agentwrit.domain.audit import Draft, EventType, Outcome
from agentwrit.domain.errors import (
    AudienceViolation,
    BindingRequired,
    InvalidChallenge,
    InvalidProof,
    LimitReached,
    Refusal,
    ScopeViolation,
    Unauthorized,
)
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.idempotency import RequestIdentity
from agentwrit.domain.launch_token import LaunchToken
from agentwrit.domain.proof import Proof


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of every registration. `public_key`: see `agentwrit.domain.agent_key`."""

    public_key: bytes
    orch_id: str
    task_id: str
    requested_scope: tuple[str, ...]


class LaunchedApplication(Application, frozen=True, kw_only=True):
    """A registration with a launch token. `signature`: over the nonce's 32 bytes."""

    launch_token: str
    nonce: str
    signature: bytes


class DirectApplication(Application, frozen=True, kw_only=True):
    """A registration by an app, in one step. `proof`: a DPoP proof by the agent's key, for the app's token.

    An agent without a key (`public_key` empty) proves nothing, and cannot have bound tokens.

    `urls`: the request's URL, under each of the broker's names; `max_ttl`: seconds; `is_bound`: whether to bind its
    tokens to its key; `idempotency_key`: None for none.
    """

    agent_name: str
    max_ttl: int | None
    audience: tuple[str, ...]
    is_bound: bool
    proof: str
    urls: tuple[str, ...]
    idempotency_key: str | None


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The terms of a new agent, from its app or a launch token. `max_ttl`: lifetime of its tokens in seconds.

    `app_id` and `client_id` are empty for an operator's agents. `launch_token`: the launch token, if one was used.
    """

    app_id: str
    client_id: str
    agent_name: str
    audience: tuple[str, ...]
    max_ttl: int
    is_bound: bool
    launch_token: LaunchToken | None = None


_HINTS: Final[dict[type[Application], str]] = {
    LaunchedApplication: "it takes a live launch token, a fresh nonce and a signature over its 32 bytes",
    DirectApplication: "it takes a new proof by the agent's key, for this URL and with the app's token (RFC 9449)",
}
_LAUNCHED_WITH: Final = "ask for less, or for a launch token that allows more"
_LAUNCHED_FOR: Final = "ask for another launch token, or have the operator add to the app's audiences"


class RegistrationService:
    """Registers agents."""

    def __init__(
        self,
        denials: DenialLog,
        issuer: TokenIssuer,
        config: Config,
        possession: Possession,
        limited: LimitedApps,
        log_budget: LogBudget,
    ) -> None:
        self._denials = denials
        self._issuer = issuer
        self._config = config
        self._possession = possession
        self._limited = limited
        self._log_budget = log_budget

    def challenge(self) -> str:
        """A fresh nonce to sign."""
        return self._possession.challenge()

    async def create(
        self, caller: Caller, app_token: str, by: Principal, application: DirectApplication
    ) -> IssuedToken:
        """Register an agent for an app that requests it directly, in one transaction.

        Raises:
            InvalidRequest, InvalidTTL: a field is invalid.
            Unauthorized: the proof is invalid, or the app is not active.
            ProofNonceNeeded: the proof's time differs too much from the broker's.
            ScopeViolation: the request exceeds what the app may give.
            LimitReached: the app has reached its limit of live agents or of its creation rate.
            Conflict: the idempotency key was used for another request.
        """
        application = msgspec.structs.replace(application, requested_scope=_check_fields(application))
        terms = self.terms(by.app_id, by.claims.client_id, application)
        try:
            self._limited.check(caller, by.app_id, orch_id=application.orch_id, task_id=application.task_id)
            proof = self._proof(caller, app_token, application)
        except Denial as denied:
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
            self._log_budget.check(caller, app.client_id, who=by.who)
            issued = self.admit(transaction, caller, application, terms, app)
            if identity is not None:
                transaction.put(identity.answered(issued.grant, now))
            return issued, app

        first_answer = () if identity is None else (Row("first_answers", identity.key),)
        return await self.write(create, by.app_id, reads=(*spending(proof), *first_answer))

    async def write(
        self, create: Callable[[Transaction], tuple[IssuedToken, App]], app_id: str, *, reads: Sequence[Row] = ()
    ) -> IssuedToken:
        """Run the unit of work that creates an agent, and remember what it shows about the app's limits."""
        reads = (Row("apps", app_id), *self._limited.reads(app_id), *reads)
        try:
            issued, app = await self._denials.write(create, reads=reads)
        except LimitReached as reached:
            self._limited.remember(app_id, reached)
            raise
        if app.is_limited:
            self._limited.remember(app_id)
        self._charge(issued.grant)
        return issued

    def admit(
        self, transaction: Transaction, caller: Caller, application: DirectApplication, terms: Terms, app: App
    ) -> IssuedToken:
        """Create an agent of an app, if the app may have it. `terms`: see `terms`.

        Raises:
            InvalidRequest: the token would be too large.
            ScopeViolation: the request exceeds what the app may give.
            LimitReached: the app has reached its limit of live agents or of its creation rate.
        """
        _check_binding(caller, application, terms, app)
        _check_scope(caller, application, terms, app)
        self._check_audience(caller, application, terms, app)
        _check_limits(transaction, caller, application, app)
        grant = self._grant(application, application.requested_scope, terms, app, transaction)
        if not grant.public_key:  # without a key, the holder could not be identified later: it is not renewed
            grant = msgspec.structs.replace(grant, ends_at=grant.exp)
        transaction.put(grant)
        issued = self._issuer.token(grant, transaction.now)
        _record(transaction, caller, grant)
        return issued

    def terms(self, app_id: str, client_id: str, application: DirectApplication) -> Terms:
        """The terms of an agent that an app requests directly.

        Raises:
            InvalidRequest, InvalidTTL: a field is invalid.
        """
        return Terms(
            app_id=app_id,
            client_id=client_id,
            agent_name=check_agent_name(application.agent_name),
            audience=check_audience(application.audience),
            max_ttl=check_max_ttl(application.max_ttl, self._config),
            is_bound=application.is_bound,
        )

    def _proof(self, caller: Caller, app_token: str, application: DirectApplication) -> Proof:
        """The proof, checked except for reuse."""
        try:
            checked = self._possession.proof(application.proof, htm="POST", urls=application.urls, token=app_token)
        except InvalidProof as invalid:
            raise _refused(caller, application, invalid.reason, hint=hint_for(invalid.told)) from None
        if checked.public_key != application.public_key:
            raise _refused(caller, application, "the proof is by another key")
        return checked

    async def register(self, caller: Caller, application: LaunchedApplication) -> IssuedToken:
        """Register an agent, in one transaction.

        Raises:
            InvalidRequest: a field is invalid.
            Unauthorized: the launch token, the nonce or the signature is invalid; the answer does not tell which.
            ScopeViolation: the request exceeds the launch token, or what the app may give by now.
            LimitReached: the app has reached its limit of live agents or of its creation rate.
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
            terms = _terms_of(token)
            _check_binding(caller, application, terms, app)
            _check_scope(caller, application, terms, app)
            self._check_audience(caller, application, terms, app)
            self._log_budget.check(caller, token.client_id, app_id=token.app_id)
            self._spend_nonce(transaction, caller, application)
            if not is_proven:
                raise _refused(caller, application, "the signature is not by that key over that nonce")
            _check_limits(transaction, caller, application, app)
            transaction.put(launch_token.used(token))
            grant = self._grant(application, requested, terms, app, transaction)
            transaction.put(grant)
            issued = self._issuer.token(grant, now)
            _record(transaction, caller, grant)
            return issued

        issued = await self._denials.write(register)
        self._charge(issued.grant)
        return issued

    def _charge(self, grant: Grant) -> None:
        """Charge the app for what `_record` wrote."""
        self._log_budget.charge(grant.client_id, 2, (*grant.scope, *grant.scope))

    def _check_audience(self, caller: Caller, application: Application, terms: Terms, app: App | None) -> None:
        """Check that the audience is within the app's present audiences."""
        exceeding = () if app is None else self._issuer.uncovered_audience(app, terms.audience)
        if app is not None and exceeding:
            is_launched = terms.launch_token is not None
            whose = "the launch token's" if is_launched else "the requested"
            event = caller.event(
                EventType.SCOPE_CEILING_EXCEEDED,
                Outcome.DENIED,
                detail=f"{whose} audience exceeds the app's audiences",
                app_id=terms.app_id,
                orch_id=application.orch_id,
                task_id=application.task_id,
                data=audience_data(terms.audience, app.audiences, exceeding),
            )
            field, hint = (f"{whose} audience", _LAUNCHED_FOR) if is_launched else ("audience", WIDER_AUDIENCES)
            error = AudienceViolation.beyond(field, "the app's audiences", exceeding, hint=hint)
            raise _denied(error, caller, terms, event)

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
        terms: Terms,
        app: App | None,
        transaction: Transaction,
    ) -> Grant:
        now = transaction.now
        instance = os.urandom(spiffe_id.INSTANCE_BYTES)
        agent_id = spiffe_id.for_agent(self._config.trust_domain, application.orch_id, application.task_id, instance)
        grant = self._issuer.new_grant(
            GrantKind.AGENT,
            agent_id,
            requested,
            ttl=terms.max_ttl if app is None else app.cut_ttl(terms.max_ttl),
            now=now,
            born=transaction.head.sequence,
            ends_at=int(now) + self._config.max_lifetime,
            app=app,
            audience=terms.audience,
        )
        return msgspec.structs.replace(
            grant,
            orch_id=application.orch_id,
            task_id=application.task_id,
            agent_name=terms.agent_name,
            public_key=application.public_key,
            is_bound=terms.is_bound,
            is_counted=app is not None and app.max_live_agents is not None,
        )


def _terms_of(token: LaunchToken) -> Terms:
    return Terms(
        app_id=token.app_id,
        client_id=token.client_id,
        agent_name=token.agent_name,
        audience=token.audience,
        max_ttl=token.max_ttl,
        is_bound=token.is_bound,
        launch_token=token,
    )


def _check_fields(application: Application) -> tuple[str, ...]:
    """The requested scope, if the parts of the agent's identity are valid."""
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
    """Whether the signature is valid. The nonce itself is checked elsewhere."""
    if len(application.nonce) != challenge.LENGTH:
        return False
    try:
        message = bytes.fromhex(application.nonce)
    except ValueError:
        return False
    return is_signature(application.signature, message, application.public_key)


def _refused(caller: Caller, application: Application, reason: str, *, hint: str | None = None) -> Denial:
    """A refusal with one answer for all reasons, except for a `hint`. The reason goes to the audit log."""
    event = caller.event(
        EventType.REGISTRATION_POLICY_VIOLATION,
        Outcome.DENIED,
        detail=reason,
        orch_id=application.orch_id,
        task_id=application.task_id,
    )
    refusal = Unauthorized("the registration was not accepted", hint=hint or _HINTS[type(application)])
    return Denial(refusal, caller, event)


def _denied(error: Refusal, caller: Caller, terms: Terms, event: Draft) -> Denial:
    """A denial beyond a launch token or an app's rights, which the holder of the token can repeat endlessly."""
    shown = "" if terms.launch_token is None else terms.launch_token.token_hash.hex()
    return Denial(error, caller, event, by=terms.client_id, about=(terms.client_id, shown, event.detail))


def _check_binding(caller: Caller, application: Application, terms: Terms, app: App | None) -> None:
    """Check that the tokens are bound if the app requires it by now."""
    if app is not None and app.requires_binding and not terms.is_bound:
        event = caller.event(
            EventType.REGISTRATION_POLICY_VIOLATION,
            Outcome.DENIED,
            detail="the agent's tokens would not be bound, and the app's have to be",
            app_id=terms.app_id,
            orch_id=application.orch_id,
            task_id=application.task_id,
        )
        raise _denied(BindingRequired(), caller, terms, event)


def _check_limits(transaction: Transaction, caller: Caller, application: Application, app: App | None) -> None:
    """Charge the agent to the app's limits. Last, so that only a successful registration is charged."""
    if app is not None and app.is_limited:
        limits.use(transaction, caller, app, orch_id=application.orch_id, task_id=application.task_id)


def _check_scope(caller: Caller, application: Application, terms: Terms, app: App | None) -> None:
    """Check that the scope is within the launch token, if there is one, and within the app's present ceiling."""
    ceilings = []
    if terms.launch_token is not None:
        allowed = terms.launch_token.allowed_scope
        ceilings.append((EventType.REGISTRATION_POLICY_VIOLATION, "launch token", _LAUNCHED_WITH, allowed))
    if app is not None:
        ceilings.append((EventType.SCOPE_CEILING_EXCEEDED, "app's ceiling", WIDER_CEILING, app.scopes))
    for event_type, name, hint, held in ceilings:
        exceeding = scope.uncovered(application.requested_scope, held)
        if exceeding:
            event = caller.event(
                event_type,
                Outcome.DENIED,
                detail=f"the requested scope exceeds the {name}",
                app_id=terms.app_id,
                orch_id=application.orch_id,
                task_id=application.task_id,
                data=scope_data(application.requested_scope, held, exceeding),
            )
            error = ScopeViolation.beyond("requested_scope", f"the {name}", exceeding, hint=hint)
            raise _denied(error, caller, terms, event)


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
