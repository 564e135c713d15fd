"""Delegation: an agent gives part of its scope to another agent of its app."""

from collections.abc import Sequence
from typing import Final

import msgspec

from agentwrit.broker.services.authentication import REUSED_PROOF, Authenticator, Presenter, Principal, not_accepted
from agentwrit.broker.services.context import Caller, EventData, audience_data, scope_data
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer, holder
from agentwrit.broker.services.launch_tokens import WIDER_AUDIENCES, WIDER_CEILING
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.services.possession import Presented, spend, spending
from agentwrit.broker.storage.base import GrantQuery, Row, Transaction
from agentwrit.domain import delegation, idempotency, limits, scope, spiffe_id, text
from agentwrit.domain.app import App
from agentwrit.domain.audit import Draft, EventType, Outcome
from agentwrit.domain.errors import (
    AudienceViolation,
    BindingRequired,
    ChainTooLong,
    InvalidTTL,
    NotFound,
    Refusal,
    ScopeViolation,
    TooManyDelegations,
    Unauthorized,
)
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.idempotency import RequestIdentity
from agentwrit.domain.proof import Proof

NARROWER_SCOPE: Final = "an agent delegates what its own token covers, or less"
NARROWER_AUDIENCE: Final = "an agent delegates for those whom its own token is for, or some of them"


class DelegationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's request. `ttl`: seconds, at most what is left of its own token; `idempotency_key`: None for none.

    `audience`: some of the audiences of the delegator's token, empty for all of them; `names_actors`: whether the
    delegate's tokens carry `act` (RFC 8693 §4.1).
    """

    delegate_to: str
    scope: Sequence[str]
    ttl: int = delegation.DEFAULT_TTL_SECONDS
    idempotency_key: str | None = None
    audience: Sequence[str] = ()
    names_actors: bool = False


class DelegationService:
    """Creates delegations."""

    def __init__(
        self, denials: DenialLog, issuer: TokenIssuer, authenticator: Authenticator, log_budget: LogBudget
    ) -> None:
        self._denials = denials
        self._issuer = issuer
        self._authenticator = authenticator
        self._log_budget = log_budget

    async def delegator(self, caller: Caller, presented: Presented | None) -> Presenter:
        """The calling agent.

        Raises:
            Unauthorized, TokenRevoked: there is no valid token, or the caller is not its holder.
            InsufficientScope: the token is not an agent's.
        """
        presenter = await self._authenticator.holder(caller, presented)
        if presenter.principal.kind is not GrantKind.AGENT:
            raise await self._authenticator.insufficient(caller, presenter.principal, "")
        return presenter

    async def delegate(
        self, caller: Caller, delegator: Principal, request: DelegationRequest, *, proof: Proof | None = None
    ) -> IssuedToken:
        """Give another agent a grant made from the delegator's, in one transaction (see `agentwrit.domain.delegation`).

        `proof`: the delegator's proof for this request, which is marked as used.

        Raises:
            InvalidRequest, InvalidTTL: a field is invalid, or the token would be too large.
            Unauthorized: the proof was used before.
            TokenRevoked: the delegator's token has died in the meantime.
            NotFound: the delegate is not a live agent of the same app.
            ScopeViolation: the scope exceeds the delegator's or the app's present ceiling, or a bound grant would go to
                an agent without a key.
            AudienceViolation: the audience exceeds the delegator's or the app's.
            ChainTooLong: the chain has reached its maximum length.
            TooManyDelegations: the number of live delegations has reached its maximum.
            Conflict: the idempotency key was used for another request.
        """
        granted = scope.parse_list(request.scope, field="scope")
        if request.ttl < 1:
            raise InvalidTTL("ttl must be at least 1 second")
        identity = _identify(caller, delegator, request)

        def delegate(transaction: Transaction) -> IssuedToken | None:
            now = transaction.now
            if proof is not None and not spend(transaction, proof):
                raise not_accepted(caller, REUSED_PROOF)
            parent = transaction.grant(delegator.claims.sid)
            if parent is None or not parent.is_live(now) or parent.jti != delegator.claims.jti:
                return None
            first = None if identity is None else transaction.first_answer(identity.key)
            if identity is not None and first is not None and first.grant is not None and now < first.expires_at:
                identity.check_same(first)
                return self._issuer.token(first.grant, now)
            self._log_budget.check(caller, parent.client_id, who=holder(parent))
            to = self._delegate(transaction, caller, parent, request.delegate_to)
            _check_key(caller, parent, to)
            app = _app(transaction, caller, parent)
            _check_scope(caller, parent, app, granted)
            audience = tuple(request.audience) or parent.audience
            self._check_audience(caller, parent, app, audience)
            _check_depth(caller, parent)
            _check_count(transaction, caller, parent)
            ttl = request.ttl if app is None else app.cut_ttl(request.ttl)
            ends_at = min(int(now) + ttl, parent.exp)
            grant = self._issuer.delegated(
                parent, to, granted, ends_at=ends_at, now=now, born=transaction.head.sequence
            )
            grant = msgspec.structs.replace(grant, audience=audience, names_actors=request.names_actors)
            issued = self._issuer.token(grant, now, scope_field="scope")
            transaction.put(grant)
            _record(transaction, caller, parent, grant)
            if identity is not None:
                transaction.put(identity.answered(grant, now))
            return issued

        first_answer = () if identity is None else (Row("first_answers", identity.key),)
        reads = (*spending(proof), Row("grants", delegator.claims.sid), *first_answer)
        issued = await self._denials.write(delegate, reads=reads)
        if issued is None:
            raise await self._authenticator.revoked(caller, delegator)
        self._log_budget.charge(issued.grant.client_id, 2, (*issued.grant.scope, *issued.grant.scope))
        return issued

    def _delegate(self, transaction: Transaction, caller: Caller, parent: Grant, agent_id: str) -> Grant:
        """The registration of the delegate. Agents of other apps are treated as if they did not exist."""
        registrations = transaction.grants(
            GrantQuery(live_at=transaction.now, kind=GrantKind.AGENT, app_id=parent.app_id, subject=agent_id, parent="")
        )
        if not registrations:
            event = caller.event(
                EventType.DELEGATION_DENIED,
                Outcome.DENIED,
                detail="the delegate is not a live agent of the same app",
                **holder(parent),
                data={"delegate": text.escaped(agent_id, spiffe_id.MAX_LENGTH)},
            )
            raise _denied(NotFound("there is no such live agent in this app"), caller, parent, event)
        return registrations[0]

    def _check_audience(self, caller: Caller, parent: Grant, app: App | None, audience: tuple[str, ...]) -> None:
        """Check that the audience is within the delegator's and within the app's present ones."""
        beyond = [("delegator's", NARROWER_AUDIENCE, [name for name in audience if name not in parent.audience])]
        if app is not None:
            beyond.append(("app's", WIDER_AUDIENCES, list(self._issuer.uncovered_audience(app, audience))))
        for whose, hint, exceeding in beyond:
            if exceeding:
                event = caller.event(
                    EventType.DELEGATION_ATTENUATION_VIOLATION,
                    Outcome.DENIED,
                    detail=f"the delegated token's audience exceeds the {whose}",
                    **holder(parent),
                    data=audience_data(audience, parent.audience, exceeding),
                )
                error = AudienceViolation.beyond("audience", f"the {whose}", exceeding, hint=hint)
                raise _denied(error, caller, parent, event)


def _denied(error: Refusal, caller: Caller, parent: Grant, event: Draft) -> Denial:
    """A denial of a delegation, which an agent can repeat endlessly."""
    return Denial(error, caller, event, by=parent.client_id, about=(parent.sid, event.detail))


def _identify(caller: Caller, delegator: Principal, request: DelegationRequest) -> RequestIdentity | None:
    if request.idempotency_key is None:
        return None
    body = {"delegate_to": request.delegate_to, "scope": list(request.scope), "ttl": request.ttl}
    return idempotency.identify(request.idempotency_key, route=caller.route, caller=delegator.claims.sid, body=body)


def _app(transaction: Transaction, caller: Caller, parent: Grant) -> App | None:
    """The delegator's app, if it may still have such tokens; None for the operator's agents."""
    if not parent.app_id:
        return None
    app = transaction.app(parent.app_id)
    if app is None or not app.is_active:
        raise Unauthorized("the app is not active")
    if app.requires_binding and not parent.is_bound:
        detail = "the delegator's token is not bound, and by now the app's have to be"
        event = caller.event(EventType.DELEGATION_DENIED, Outcome.DENIED, detail=detail, **holder(parent))
        raise _denied(BindingRequired(), caller, parent, event)
    return app


def _check_key(caller: Caller, parent: Grant, to: Grant) -> None:
    """Check that a bound grant stays bound: an OAuth client's agent has no key for it (see `client_credentials`)."""
    if parent.is_bound and not to.public_key:
        detail = "the delegate has no key that the token could be bound to"
        event = caller.event(EventType.DELEGATION_DENIED, Outcome.DENIED, detail=detail, **holder(parent))
        raise _denied(ScopeViolation(detail), caller, parent, event)


def _check_scope(caller: Caller, parent: Grant, app: App | None, granted: Sequence[str]) -> None:
    """Check that the scope is within the delegator's and within the app's present ceiling."""
    ceilings = [(EventType.DELEGATION_ATTENUATION_VIOLATION, "delegator's scope", NARROWER_SCOPE, parent.scope)]
    if app is not None:
        ceilings.append((EventType.SCOPE_CEILING_EXCEEDED, "app's ceiling", WIDER_CEILING, app.scopes))
    for event_type, name, hint, held in ceilings:
        exceeding = scope.uncovered(granted, held)
        if exceeding:
            detail = f"the delegated scope exceeds the {name}"
            data = scope_data(granted, held, exceeding)
            event = caller.event(event_type, Outcome.DENIED, detail=detail, **holder(parent), data=data)
            raise _denied(ScopeViolation.beyond("scope", f"the {name}", exceeding, hint=hint), caller, parent, event)


def _check_depth(caller: Caller, parent: Grant) -> None:
    if len(parent.chain) >= delegation.MAX_DEPTH:
        detail = f"the delegation would have more than {delegation.MAX_DEPTH} hops"
        event = caller.event(
            EventType.DELEGATION_ATTENUATION_VIOLATION, Outcome.DENIED, detail=detail, **holder(parent)
        )
        raise _denied(ChainTooLong(detail), caller, parent, event)


def _check_count(transaction: Transaction, caller: Caller, parent: Grant) -> None:
    """Check the number of live delegations, which bounds the work of ending them."""
    root = parent.tree or parent.sid
    for whose, sid, in_tree, most in (
        ("from this grant", parent.sid, False, delegation.MAX_FROM_GRANT),
        ("in this agent's chains", root, True, delegation.MAX_IN_TREE),
    ):
        if transaction.live_delegations(sid, in_tree=in_tree, now=transaction.now, limit=most) >= most:
            reached = TooManyDelegations(whose, most, retry_after=limits.FULL_SECONDS)
            event = caller.event(EventType.DELEGATION_DENIED, Outcome.DENIED, detail=reached.detail, **holder(parent))
            raise _denied(reached, caller, parent, event)


def _record(transaction: Transaction, caller: Caller, parent: Grant, grant: Grant) -> None:
    below, above = holder(grant), holder(parent)
    below["principal"] = parent.subject
    above["deleg_depth"], above["deleg_chain_hash"] = below["deleg_depth"], below["deleg_chain_hash"]
    data: EventData = {"jti": grant.jti, "scope": list(grant.scope), "exp": grant.exp}
    transaction.record(
        caller.event(
            EventType.DELEGATION_CREATED,
            detail="an agent delegated",
            **above,
            data={**data, "delegate": grant.subject, "delegated_sid": grant.sid},
        )
    )
    transaction.record(
        caller.event(
            EventType.TOKEN_ISSUED,
            detail="a token was issued by delegation",
            **below,
            data={
                **data,
                "parent_sid": parent.sid,
                "parent_sids": [record.sid for record in grant.chain],
                "original_principal": grant.chain[0].agent,
            },
        )
    )
