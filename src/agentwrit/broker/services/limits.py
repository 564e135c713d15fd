"""Enforcing app limits (see `agentwrit.domain.limits`), in the units of work that create agents.

An app's live agents are counted incrementally: a registration adds one, an ending subtracts one, and an index finds the
agents that have expired since the last count. So no request scans all of an app's agents, and apps without limits cost
nothing.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import Denial
from agentwrit.broker.storage.base import GrantQuery, Row, Transaction
from agentwrit.domain import limits
from agentwrit.domain.app import App
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.errors import LimitReached, Unavailable
from agentwrit.domain.grant import Grant, GrantKind
from agentwrit.domain.limits import AppUsage
from agentwrit.domain.revocation import RETENTION_SECONDS

MAX_APPS_REMEMBERED: Final = 4096
COUNTED_AT_ONCE: Final = 256
"""Agents that one unit of work counts when an app is given a limit of them: some milliseconds of the event loop."""


class LimitedApps:
    """A cache of the apps that have limits, to avoid work. Correctness does not depend on it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reached: OrderedDict[str, LimitReached | None] = OrderedDict()

    def remember(self, app_id: str, reached: LimitReached | None = None) -> None:
        """Remember that the app has limits, and the limit that it has reached, if any."""
        self._reached[app_id] = reached
        self._reached.move_to_end(app_id)
        if len(self._reached) > MAX_APPS_REMEMBERED:
            self._reached.popitem(last=False)

    def reads(self, app_id: str) -> Sequence[Row]:
        """The rows that creating an agent of the app will read because of its limits."""
        return (Row("app_usage", app_id),) if app_id in self._reached else ()

    def check(self, caller: Caller, app_id: str, *, orch_id: str, task_id: str) -> None:
        """Fail fast while the app's rate limit is known to be exhausted.

        Raises:
            Denial: the app has no permit to create an agent, and gets the next one only later.
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
    """Charge one more agent to the app's limits.

    Raises:
        Denial: a limit is reached.
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
        if usage.counted_behind is not None:
            raise Unavailable("the app's agents are being counted", retry_after=1, cause="busy")
        usage = _recounted(transaction, usage, app.max_live_agents)
        if usage.live_agents >= app.max_live_agents:
            reached = LimitReached("max_live_agents", app.max_live_agents, retry_after=limits.FULL_SECONDS, until=now)
            raise _denied(caller, app.app_id, reached, orch_id, task_id)
    transaction.put(limits.created(usage, agents=agents, permits=permits))


def begin_to_count(transaction: Transaction, app: App) -> None:
    """Start counting the agents that are alive when the app is given a limit of them; `go_on_counting` continues."""
    usage = transaction.app_usage(app.app_id) or AppUsage(app_id=app.app_id)
    counted = limits.counted(usage, 0, transaction.now)
    transaction.put(msgspec.structs.replace(counted, counted_behind=0))
    go_on_counting(transaction, app.app_id)


def go_on_counting(transaction: Transaction, app_id: str) -> bool:
    """Count some more of an app's agents, if a count is in progress. Each grant records that it counts, for its end.

    Returns whether there may be more to count.
    """
    usage = transaction.app_usage(app_id)
    if usage is None or usage.counted_behind is None:
        return False
    registrations = GrantQuery(live_at=transaction.now, app_id=app_id, kind=GrantKind.AGENT, parent="")
    page = transaction.grant_page(registrations, behind=usage.counted_behind, limit=COUNTED_AT_ONCE)
    # Some may be counted already, from an earlier limit. None is counted twice: new registrations wait for the count.
    for grant in page.grants:
        if not grant.is_counted:
            transaction.put(msgspec.structs.replace(grant, is_counted=True))
    transaction.put(
        msgspec.structs.replace(
            usage,
            live_agents=usage.live_agents + len(page.grants),
            counted_behind=None if page.is_last else page.place,
            counted_born=page.grants[-1].born if page.grants else usage.counted_born,
        )
    )
    return not page.is_last


def make_room(transaction: Transaction, ended: Iterable[Grant]) -> None:
    """Subtract just-ended agents from their apps' live counts. `ended`: the grants as they were before."""
    by_app: defaultdict[str, list[Grant]] = defaultdict(list)
    for grant in ended:
        if grant.is_counted:
            by_app[grant.app_id].append(grant)
    for app_id, agents in by_app.items():
        usage = transaction.app_usage(app_id)
        if usage is not None:
            transaction.put(limits.without(usage, sum(_is_in(usage, agent) for agent in agents)))


def _is_in(usage: AppUsage, grant: Grant) -> bool:
    """Whether a counting grant is in the count: not if it was subtracted at its expiry, or is yet to be counted."""
    is_to_come = usage.counted_behind is not None and grant.born > usage.counted_born
    return grant.exp > usage.counted_at and not is_to_come


def _recounted(transaction: Transaction, usage: AppUsage, allowed: int) -> AppUsage:
    """The usage without agents that expired since the last count: all of them, or as many as make room."""
    now = int(transaction.now)
    if now - usage.counted_at >= RETENTION_SECONDS:  # the store has already dropped the oldest expired grants
        live = transaction.grants(GrantQuery(live_at=transaction.now, is_counted=True, app_id=usage.app_id))
        return limits.counted(usage, len(live), now)
    while usage.counted_at < now:
        expired = transaction.expired(usage.app_id, usage.counted_at, now)
        left = limits.without(usage, expired.agents)
        usage = limits.counted(left, left.live_agents, expired.until)
        if usage.live_agents < allowed:
            break  # the next unit continues from there: no caller waits until thousands are counted
    return usage


def _denied(caller: Caller, app_id: str, reached: LimitReached, orch_id: str, task_id: str) -> Denial:
    event = caller.event(
        EventType.APP_RATE_LIMITED,
        Outcome.DENIED,
        detail=reached.detail,
        app_id=app_id,
        orch_id=orch_id,
        task_id=task_id,
        data={"limit": reached.limit, "allowed": reached.allowed},
    )
    # However many machines call: the app has one limit, and they do not fill the log faster.
    return Denial(reached, caller, event, by=app_id, about=(app_id, reached.limit))
