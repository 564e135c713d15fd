"""Holding apps to their limits (see `agentwrit.domain.limits`), in the units of work that use them.

How many agents an app has is counted on: up with each registration, down with each end, and by those that have expired
since it was last counted, whom an index finds. So nobody goes through all of an app's agents, and what an app without
limits does is not looked at.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import StrangerDenied
from agentwrit.broker.storage.base import GrantQuery, Row, Transaction
from agentwrit.domain import limits
from agentwrit.domain.app import App
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.errors import LimitReached
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.revocation import RETENTION_SECONDS

MAX_APPS_REMEMBERED: Final = 4096


class LimitedApps:
    """What this broker remembers of apps that have limits, to spare itself work. Nothing depends on it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reached: OrderedDict[str, LimitReached | None] = OrderedDict()

    def remember(self, app_id: str, reached: LimitReached | None = None) -> None:
        """Remember that the app has limits, and the one that it has reached."""
        self._reached[app_id] = reached
        self._reached.move_to_end(app_id)
        if len(self._reached) > MAX_APPS_REMEMBERED:
            self._reached.popitem(last=False)

    def reads(self, app_id: str) -> Sequence[Row]:
        """What creating an agent of the app will read because of its limits."""
        return (Row("app_usage", app_id),) if app_id in self._reached else ()

    def check(self, caller: Caller, app_id: str, *, orch_id: str, task_id: str) -> None:
        """Refuse what time alone has to make possible first.

        Raises:
            StrangerDenied: the app has no permit to create an agent, and will have none before it has waited.
        """
        reached = self._reached.get(app_id)
        if reached is None:
            return
        now = self._clock.now()
        if now < reached.until:
            retry_after = limits.seconds_until(reached.until, now)
            again = LimitReached(reached.limit, reached.allowed, retry_after=retry_after, until=reached.until)
            raise _denied(caller, app_id, again, orch_id, task_id)


def use(transaction: Transaction, caller: Caller, app: App, *, orch_id: str, task_id: str) -> None:
    """Take of an app's limits what one more agent takes.

    Raises:
        StrangerDenied: there is not as much.
    """
    now = transaction.now
    usage = transaction.app_usage(app.app_id) or AppUsage(app_id=app.app_id)
    permits = agents = 0
    if app.creates_per_second is not None:
        permits = 1
        usage = limits.refilled(usage, app.creates_per_second, now)
        until = limits.permit_at(usage, app.creates_per_second)
        if until > now:
            retry_after = limits.seconds_until(until, now)
            reached = LimitReached("creates_per_second", app.creates_per_second, retry_after=retry_after, until=until)
            raise _denied(caller, app.app_id, reached, orch_id, task_id)
    if app.max_live_agents is not None:
        agents = 1
        usage = _recounted(transaction, usage, app.max_live_agents)
        if usage.live_agents >= app.max_live_agents:
            reached = LimitReached("max_live_agents", app.max_live_agents, retry_after=limits.FULL_SECONDS, until=now)
            raise _denied(caller, app.app_id, reached, orch_id, task_id)
    transaction.put_app_usage(limits.created(usage, agents=agents, permits=permits))


def begin_to_count(transaction: Transaction, app: App) -> None:
    """Count the agents that live when the app is given a limit of them. Each remembers it, for its own end."""
    registrations = GrantQuery(live_at=transaction.now, app_id=app.app_id, kind=GrantKind.AGENT, parent="")
    live = transaction.grants(registrations)
    for grant in live:
        if not grant.is_counted:
            transaction.put_grant(msgspec.structs.replace(grant, is_counted=True))
    usage = transaction.app_usage(app.app_id) or AppUsage(app_id=app.app_id)
    transaction.put_app_usage(limits.counted(usage, len(live), transaction.now))


def make_room(transaction: Transaction, ended: Iterable[Grant]) -> None:
    """Count the agents no more that have just ended: `ended`, as they were before."""
    by_app: Counter[str] = Counter()
    for grant in ended:
        if grant.is_counted:
            usage = transaction.app_usage(grant.app_id)
            if usage is not None and grant.exp > usage.counted_at:  # else it was taken away when it expired
                by_app[grant.app_id] += 1
    for app_id, agents in by_app.items():
        usage = transaction.app_usage(app_id)
        if usage is not None:
            transaction.put_app_usage(limits.without(usage, agents))


def _recounted(transaction: Transaction, usage: AppUsage, allowed: int) -> AppUsage:
    """The usage without agents that have expired since it was counted last: all, or as many as make room."""
    now = int(transaction.now)
    if now - usage.counted_at >= RETENTION_SECONDS:  # those that expired first are forgotten by the store
        live = transaction.grants(GrantQuery(live_at=transaction.now, is_counted=True, app_id=usage.app_id))
        return limits.counted(usage, len(live), now)
    while usage.counted_at < now:
        expired = transaction.expired(usage.app_id, usage.counted_at, now)
        left = limits.without(usage, expired.agents)
        usage = limits.counted(left, left.live_agents, expired.until)
        if usage.live_agents < allowed:
            break  # the next one goes on from there: nobody has to wait until thousands are counted
    return usage


def _denied(caller: Caller, app_id: str, reached: LimitReached, orch_id: str, task_id: str) -> StrangerDenied:
    event = caller.event(
        EventType.APP_RATE_LIMITED,
        Outcome.DENIED,
        detail=reached.detail,
        app_id=app_id,
        orch_id=orch_id,
        task_id=task_id,
        data={"limit": reached.limit, "allowed": reached.allowed},
    )
    # However many of its machines ask: the app has one limit, and fills the log no faster for them.
    return StrangerDenied(reached, caller, event, about=(app_id, reached.limit))
