"""Apps: registering, changing, suspending and removing them, and their logins."""

import hmac
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.services import app_events
from agentwrit.broker.services.authentication import Principal, app_subject
from agentwrit.broker.services.clients import accepted
from agentwrit.broker.services.context import Caller, scope_data
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.ending import end_named
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer
from agentwrit.broker.services.launch_tokens import check_audience
from agentwrit.broker.services.limits import begin_to_count, go_on_counting
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.domain import app as app_rules
from agentwrit.domain import launch_token, scope
from agentwrit.domain.app import App, AppStatus
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.ending import Ending, EndingLevel, Named
from agentwrit.domain.errors import Conflict, InvalidRequest, InvalidTTL, NotFound, ScopeViolation
from agentwrit.domain.grant import EndReason, GrantKind
from agentwrit.domain.limits import LIMIT_NAMES, NO_LIMITS, WantedLimits


class NewAppSecret(msgspec.Struct, frozen=True, kw_only=True):
    """An app with its client secret, which is shown only once."""

    app: App
    client_secret: str

    def __repr__(self) -> str:
        return f"NewAppSecret(app_id={self.app.app_id!r})"


class AppService:
    """The operator's changes to apps, and apps' logins."""

    def __init__(
        self,
        store: Store,
        denials: DenialLog,
        issuer: TokenIssuer,
        config: Config,
        log_budget: LogBudget,
        endings: Endings,
    ) -> None:
        self._store = store
        self._log_budget = log_budget
        self._endings = endings
        self._denials = denials
        self._issuer = issuer
        self._config = config

    async def register(
        self,
        caller: Caller,
        operator: Principal,
        *,
        name: str,
        scopes: Sequence[str],
        token_ttl: int | None,
        audiences: Sequence[str] = (),
        requires_binding: bool = False,
        reports_for: Sequence[str] = (),
        limited: WantedLimits = NO_LIMITS,
    ) -> NewAppSecret:
        """Register an app under a name that no active app has.

        Raises:
            InvalidRequest, InvalidTTL: an argument is invalid.
            Conflict: the name is taken.
        """
        app_rules.check_name(name)
        reported = check_audience(reports_for, field="reports_for")
        # A resource server needs no ceiling, because it has no agents.
        ceiling = scope.parse_list(scopes, field="scopes") if scopes or not reported else ()
        ttl = _check_token_ttl(self._config.app_token_ttl if token_ttl is None else token_ttl)
        allowed_audiences = check_audience(audiences, field="audiences")
        limits_asked = limited.checked()
        secret = secrets.token_hex(launch_token.SECRET_BYTES)

        def register(transaction: Transaction) -> NewAppSecret:
            if transaction.active_app_by_name(name) is not None:
                raise Conflict(f"an app named {name} exists", hint="choose another name, or remove that app first")
            now = int(transaction.now)
            app = App(
                app_id=f"app-{secrets.token_hex(8)}",
                name=name,
                client_id=f"client-{secrets.token_hex(8)}",
                secret_hash=launch_token.fingerprint(secret),
                scopes=ceiling,
                token_ttl=ttl,
                status=AppStatus.ACTIVE,
                created_at=now,
                updated_at=now,
                audiences=allowed_audiences,
                requires_binding=requires_binding,
                reports_for=reported,
                revision=1,
                **limits_asked,
            )
            transaction.put(app)
            transaction.record(
                app_events.event(caller, operator, EventType.APP_REGISTERED, app, "an app was registered")
            )
            return NewAppSecret(app=app, client_secret=secret)

        return await self._store.write(register)

    async def list(self, *, limit: int | None, offset: int) -> tuple[Sequence[App], int]:
        """A page of apps in order of registration, and the total number."""
        return await self._store.read(
            lambda snapshot: (snapshot.apps(limit=limit, offset=offset), snapshot.app_count())
        )

    async def get(self, app_id: str) -> App:
        """One app, active or not.

        Raises:
            NotFound: there is no app with this ID.
        """
        app = await self._store.read(lambda snapshot: snapshot.app(app_id))
        if app is None:
            raise _no_such_app()
        return app

    async def update(
        self,
        caller: Caller,
        operator: Principal,
        app_id: str,
        *,
        scopes: Sequence[str] | None,
        token_ttl: int | None,
        keep_grants: bool,
        audiences: Sequence[str] | None = None,
        requires_binding: bool | None = None,
        reports_for: Sequence[str] | None = None,
        limited: WantedLimits = NO_LIMITS,
    ) -> tuple[App, int]:
        """Change an app's settings: ceiling, audiences, token lifetime, required binding, reports, or limits.

        A narrower ceiling, fewer audiences, or a new requirement of bound tokens ends the live grants that exceed it,
        unless `keep_grants`. A lower limit ends none. Returns the app and the number of ended grants.

        Raises:
            InvalidRequest, InvalidTTL: an argument is invalid, or there is none.
            NotFound: there is no such app, or it was removed.
        """
        limits_asked = limited.checked()
        if not limits_asked and all(
            given is None for given in (scopes, token_ttl, audiences, requires_binding, reports_for)
        ):
            raise InvalidRequest(
                f"give scopes, token_ttl, audiences, require_bound, reports_for, {', '.join(LIMIT_NAMES)}"
            )
        ceiling = None if scopes is None else scope.parse_list(scopes, field="scopes")
        ttl = None if token_ttl is None else _check_token_ttl(token_ttl)
        allowed_audiences = None if audiences is None else check_audience(audiences, field="audiences")
        reported = None if reports_for is None else check_audience(reports_for, field="reports_for")

        def update(transaction: Transaction) -> tuple[App, Ending | None]:
            before = _registered(transaction, app_id)
            app = _changed(
                before,
                transaction.now,
                **limits_asked,
                scopes=before.scopes if ceiling is None else ceiling,
                token_ttl=before.token_ttl if ttl is None else ttl,
                audiences=before.audiences if allowed_audiences is None else allowed_audiences,
                requires_binding=before.requires_binding if requires_binding is None else requires_binding,
                reports_for=before.reports_for if reported is None else reported,
            )
            transaction.put(app)
            if app.max_live_agents is not None and before.max_live_agents is None:
                begin_to_count(transaction, app)
            ended: Ending | None = None
            if not keep_grants:
                beyond = self._beyond(
                    app, are_audiences_given=audiences is not None, is_binding_given=requires_binding is True
                )
                ended = end_named(transaction, caller, operator.name, beyond, EndReason.CEILING_NARROWED)
            for event in app_events.changes(caller, operator, before, app, ended):
                transaction.record(event)
            return app, ended

        app, ended = await self._finished(*await self._store.write(update))
        while await self._store.write(lambda transaction: go_on_counting(transaction, app_id)):
            pass
        return app, ended

    async def rotate_secret(self, caller: Caller, operator: Principal, app_id: str, *, overlap: int) -> NewAppSecret:
        """Give an app a new secret. The old one, and tokens issued for it, work for another `overlap` seconds.

        Raises:
            InvalidRequest: the overlap is out of range.
            NotFound: there is no such app, or it was removed.
        """
        if not 0 <= overlap <= app_rules.MAX_OVERLAP_SECONDS:
            raise InvalidRequest(f"overlap takes 0 to {app_rules.MAX_OVERLAP_SECONDS} seconds")
        secret = secrets.token_hex(launch_token.SECRET_BYTES)

        def rotate(transaction: Transaction) -> tuple[NewAppSecret, Ending]:
            before = _registered(transaction, app_id)
            now = int(transaction.now)
            app = _changed(
                before,
                transaction.now,
                secret_hash=launch_token.fingerprint(secret),
                previous_secret_hash=before.secret_hash if overlap else b"",
                previous_secret_until=now + overlap if overlap else 0,
            )
            transaction.put(app)
            logins = Named(
                level=EndingLevel.SECRET,
                target=app_id,
                client_id=app.client_id,
                credential=app.previous_secret_hash,
                until=app.previous_secret_until,
            )
            ending = end_named(transaction, caller, operator.name, logins, EndReason.SECRET_ROTATED)
            transaction.record(
                app_events.event(
                    caller,
                    operator,
                    EventType.APP_SECRET_ROTATED,
                    app,
                    f"an app has a new secret, and the one before works for {overlap} s more",
                )
            )
            return NewAppSecret(app=app, client_secret=secret), ending

        new, ending = await self._store.write(rotate)
        await self._endings.finish(ending)
        return new

    async def suspend(self, caller: Caller, operator: Principal, app_id: str) -> tuple[App, int]:
        """Suspend an app: refuse it everywhere, and end all its grants. A repeated call changes nothing.

        The grants stay ended when the app is resumed: verifiers that do not ask the broker can learn that a token is
        dead, but not that it is alive again. Returns the app and the number of ended grants.

        Raises:
            NotFound: there is no app with this ID.
            Conflict: it was removed.
        """

        def suspend(transaction: Transaction) -> tuple[App, Ending | None]:
            before = _not_removed(transaction, app_id)
            if not before.is_active:
                return before, None
            app = _changed(before, transaction.now, status=AppStatus.SUSPENDED, suspensions=before.suspensions + 1)
            transaction.put(app)
            ended = _end_all(transaction, caller, operator, app, EndReason.APP_SUSPENDED)
            transaction.record(
                app_events.ending(caller, operator, EventType.APP_SUSPENDED, app, "an app was suspended", ended)
            )
            return app, ended

        return await self._finished(*await self._store.write(suspend))

    async def resume(self, caller: Caller, operator: Principal, app_id: str) -> App:
        """Let a suspended app log in again, with its present secret. A repeated call changes nothing.

        Raises:
            NotFound: there is no app with this ID.
            Conflict: it was removed.
        """

        def resume(transaction: Transaction) -> App:
            before = _not_removed(transaction, app_id)
            if before.is_active:
                return before
            app = _changed(before, transaction.now, status=AppStatus.ACTIVE)
            transaction.put(app)
            transaction.record(app_events.event(caller, operator, EventType.APP_RESUMED, app, "an app was resumed"))
            return app

        return await self._store.write(resume)

    async def deregister(self, caller: Caller, operator: Principal, app_id: str) -> App:
        """Remove an app, and end every credential that came through it. A repeated call changes nothing.

        Raises:
            NotFound: there is no app with this ID.
        """

        def deregister(transaction: Transaction) -> tuple[App, Ending | None]:
            before = transaction.app(app_id)
            if before is None:
                raise _no_such_app()
            if before.is_removed:
                return before, None
            now = transaction.now
            app = _changed(before, now, status=AppStatus.INACTIVE, deregistered_at=max(1, int(now)))
            transaction.put(app)
            ended = _end_all(transaction, caller, operator, app, EndReason.APP_DEREGISTERED)
            event = app_events.ending(caller, operator, EventType.APP_DEREGISTERED, app, "an app was removed", ended)
            transaction.record(event)
            return app, ended

        app, _ = await self._finished(*await self._store.write(deregister))
        return app

    async def authenticate(
        self,
        caller: Caller,
        client_id: str,
        client_secret: str,
        *,
        wanted: Sequence[str] = (),
    ) -> IssuedToken:
        """An app token, for the app's secret. `wanted`: the requested scope, within the app's own; empty for all of it.

        Raises:
            Unauthorized: unknown ID, wrong secret or inactive app; neither the answer nor its timing tells which.
            ScopeViolation: `wanted` exceeds what the app's tokens can have.
        """
        fingerprint = launch_token.fingerprint(client_secret)

        def authenticate(transaction: Transaction) -> IssuedToken:
            now = transaction.now
            app = accepted(transaction, caller, client_id, fingerprint, now)
            scopes = wanted or app.token_scopes
            _check_wanted(caller, app, scopes)
            is_current = hmac.compare_digest(app.secret_hash, fingerprint)
            grant = self._issuer.new_grant(
                GrantKind.APP,
                app_subject(app.app_id),
                scopes,
                ttl=app.token_ttl,
                now=now,
                born=transaction.head.sequence,
                ends_at=None if is_current else app.previous_secret_until,
                app=app,
                audience=(self._config.issuer,),
            )
            grant = msgspec.structs.replace(grant, credential=fingerprint)
            transaction.put(grant)
            transaction.record(
                caller.event(
                    EventType.APP_AUTHENTICATED,
                    detail="an app logged in",
                    principal=grant.subject,
                    app_id=app.app_id,
                    sid=grant.sid,
                )
            )
            return self._issuer.token(grant, now)

        issued = await self._denials.write(authenticate)
        self._log_budget.charge(issued.grant.client_id)
        return issued

    async def _finished(self, app: App, ending: Ending | None) -> tuple[App, int]:
        """The result of a change, once everything that it ends has ended: the app, and the number of ended grants."""
        return app, 0 if ending is None else await self._endings.finish(ending)

    def _beyond(self, app: App, *, are_audiences_given: bool, is_binding_given: bool) -> Named:
        """The app's live agents' grants that exceed its ceiling or audiences, or lack a required binding."""
        # Grants outside only because the broker's AUDIENCE changed do not end when another setting is changed. Neither
        # do unbound grants that were kept.
        return Named(
            level=EndingLevel.CEILING,
            target=app.app_id,
            client_id=app.client_id,
            scopes=app.scopes,
            audiences=self._issuer.allowed_audiences(app) if are_audiences_given else None,
            must_be_bound=is_binding_given,
        )


def _registered(transaction: Transaction, app_id: str) -> App:
    app = transaction.app(app_id)
    if app is None or app.is_removed:
        raise _no_such_app()
    return app


def _not_removed(transaction: Transaction, app_id: str) -> App:
    app = transaction.app(app_id)
    if app is None:
        raise _no_such_app()
    if app.is_removed:
        raise Conflict("the app was removed", hint="that is final: register a new one with `agentwrit app register`")
    return app


def _end_all(transaction: Transaction, caller: Caller, operator: Principal, app: App, reason: EndReason) -> Ending:
    """End all grants that came through an app, its own logins included."""
    all_of_it = Named(level=EndingLevel.APP, target=app.app_id, client_id=app.client_id)
    return end_named(transaction, caller, operator.name, all_of_it, reason)


def _changed(app: App, now: float, **fields: Any) -> App:
    return msgspec.structs.replace(app, **fields, updated_at=int(now), revision=app.revision + 1)


def _no_such_app() -> NotFound:
    return NotFound("no such app", hint="`agentwrit app list` shows the apps that there are")


def _check_token_ttl(ttl: int) -> int:
    low, high = app_rules.MIN_TOKEN_TTL_SECONDS, app_rules.MAX_TOKEN_TTL_SECONDS
    if not low <= ttl <= high:
        raise InvalidTTL(f"token_ttl takes {low} to {high} seconds")
    return ttl


def _check_wanted(caller: Caller, app: App, wanted: Sequence[str]) -> None:
    exceeding = scope.uncovered(wanted, app.token_scopes)
    if exceeding:
        event = caller.event(
            EventType.SCOPE_CEILING_EXCEEDED,
            Outcome.DENIED,
            principal=app_subject(app.app_id),
            app_id=app.app_id,
            detail="an app asked for more than its tokens can have",
            data=scope_data(wanted, app.token_scopes, exceeding),
        )
        error = ScopeViolation.beyond(
            "scope",
            "what an app's own token can have",
            exceeding,
            hint="what a service asks for, an agent's token covers: name the service as the resource (RFC 8707)",
        )
        raise Denial(error, caller, event, by=app.client_id, about=(app.app_id,))
