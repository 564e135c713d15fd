"""Audit events about apps. `store verify` compares them with the apps' rows (`state_check`)."""

from collections.abc import Iterator

import msgspec

from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.ending import said
from agentwrit.domain.app import App
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.ending import Ending
from agentwrit.domain.limits import LIMIT_NAMES


def event(caller: Caller, operator: Principal, event_type: EventType, app: App, detail: str) -> Draft:
    """An event about an app, with all its settings."""
    return caller.event(
        event_type,
        detail=detail,
        principal=operator.name,
        app_id=app.app_id,
        sid=operator.claims.sid,
        data={
            "name": app.name,
            "scopes": list(app.scopes),
            "audiences": list(app.audiences),
            "token_ttl": app.token_ttl,
            "revision": app.revision,
            **({"token_type": "DPoP"} if app.requires_binding else {}),
            **({"reports_for": list(app.reports_for)} if app.reports_for else {}),
            **_limits_data(app),
        },
    )


def _limits_data(app: App) -> EventData:
    named = {name: getattr(app, name) for name in LIMIT_NAMES}
    return {name: limit for name, limit in named.items() if limit is not None}


def ending(
    caller: Caller, operator: Principal, event_type: EventType, app: App, detail: str, ended: Ending | None
) -> Draft:
    """An event about a change of an app that ended grants."""
    changed = event(caller, operator, event_type, app, detail)
    return msgspec.structs.replace(changed, data={**changed.data, **_grants_ended(ended)})


def _grants_ended(ended: Ending | None) -> EventData:
    return {"grants_ended": 0} if ended is None else {"grants_ended": ended.count, **said(ended)}


def ceiling_changed(caller: Caller, operator: Principal, before: App, app: App, ended: Ending | None) -> Draft:
    """An app's ceiling was changed."""
    return caller.event(
        EventType.SCOPES_CEILING_UPDATED,
        detail="an app's ceiling was changed",
        principal=operator.name,
        app_id=app.app_id,
        sid=operator.claims.sid,
        data={
            "before": list(before.scopes),
            "after": list(app.scopes),
            "revision": app.revision,
            **_grants_ended(ended),
        },
    )


def binding_changed(caller: Caller, operator: Principal, app: App, ended: Ending | None) -> Draft:
    """Whether an app's agents need bound tokens was changed."""
    detail = f"an app's agents {'must' if app.requires_binding else 'need not'} have bound tokens from now on"
    return ending(caller, operator, EventType.APP_UPDATED, app, detail, ended)


def audiences_changed(caller: Caller, operator: Principal, before: App, app: App, ended: Ending | None) -> Draft:
    """An app's audiences were changed."""
    changed = event(caller, operator, EventType.APP_UPDATED, app, "an app's audiences were changed")
    more: EventData = {"before": list(before.audiences), "after": list(app.audiences), **_grants_ended(ended)}
    return msgspec.structs.replace(changed, data={**changed.data, **more})


def changes(caller: Caller, operator: Principal, before: App, app: App, ended: Ending | None) -> Iterator[Draft]:
    """The events for a change: one for each kind of setting that changed."""
    if app.scopes != before.scopes:
        yield ceiling_changed(caller, operator, before, app, ended)
    if app.audiences != before.audiences:
        yield audiences_changed(caller, operator, before, app, ended)
    if app.requires_binding != before.requires_binding:
        yield binding_changed(caller, operator, app, ended)
    for is_another, detail in (
        (app.reports_for != before.reports_for, "what an app may report on was changed"),
        (_limits_data(app) != _limits_data(before), "an app's limits changed"),
        (app.token_ttl != before.token_ttl, "an app's token life changed"),
    ):
        if is_another:
            yield event(caller, operator, EventType.APP_UPDATED, app, detail)
