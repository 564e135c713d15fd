"""An app's limits: how many agents it may have at once, how fast it may create them, how long their tokens live.

The rules:

- `max_live_agents` counts registrations that have not ended and whose current token is not over: not what is delegated
  among them. An agent that ends or expires makes room for another one.
- `creates_per_second` is a bucket of as many permits, filled at that rate. Only a creation that succeeds takes one.
- `max_ttl` cuts what is asked for, as the broker's own greatest TTL does: nobody is refused for asking for more.
- A limit holds from the moment at which it is set. What was given before lives on: it is counted, and cut when it is
  renewed.
- How much of its limits an app uses is state like any other, kept in the unit of work that uses it. So it is exact with
  many brokers as with one, through restarts, and for whoever comes at the same moment.
"""

import math
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from agentwrit.domain.errors import InvalidRequest, InvalidTTL

MAX_LIMIT: Final = 1_000_000
FULL_SECONDS: Final = 5
"""How long an app with all the agents that it may have is told to wait: one may be released at any moment."""


class WantedLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of an app's limits: None for no limit, UNSET to leave it as it is."""

    max_live_agents: int | UnsetType | None = UNSET
    max_ttl: int | UnsetType | None = UNSET
    creates_per_second: int | UnsetType | None = UNSET

    def checked(self) -> dict[str, Any]:
        """Those that are asked for.

        Raises:
            InvalidRequest, InvalidTTL: one cannot be had.
        """
        asked = {name: limit for name, limit in msgspec.structs.asdict(self).items() if limit is not UNSET}
        for name, limit in asked.items():
            if name == "max_ttl":
                check_max_ttl(limit)
            else:
                check(name, limit)
        return asked


NO_LIMITS: Final = WantedLimits()
LIMIT_NAMES: Final = WantedLimits.__struct_fields__


class AppUsage(msgspec.Struct, frozen=True, kw_only=True):
    """How much of its limits an app uses.

    `live_agents`: the registrations that count, without those that were over at `counted_at` (Unix seconds): an agent
    that ends is taken away at once, one that expires when somebody counts anew. `permits`: how many creations there
    was a permit for at `refilled_at`; as many as there can be where that is 0. `counted_behind`: while those who lived
    when the app was given its limit are still being counted, the place in the order of grants that this has come to,
    and `counted_born` the newest of those that were counted, by its `born`.
    """

    app_id: str
    live_agents: int = 0
    counted_at: int = 0
    permits: float = 0.0
    refilled_at: float = 0.0
    counted_behind: int | None = None
    counted_born: int = 0


def refilled(usage: AppUsage, per_second: int, now: float) -> AppUsage:
    """The usage with the permits that have come by now."""
    permits = min(per_second, usage.permits + (now - usage.refilled_at) * per_second)
    return msgspec.structs.replace(usage, permits=permits, refilled_at=now)


def permit_at(usage: AppUsage, per_second: int) -> float:
    """When there is a permit, of a usage that was refilled (Unix seconds): at once, if it has one."""
    return usage.refilled_at + max(0.0, 1 - usage.permits) / per_second


def created(usage: AppUsage, *, agents: int, permits: int) -> AppUsage:
    """The usage after a creation that takes so much of it."""
    return msgspec.structs.replace(usage, live_agents=usage.live_agents + agents, permits=usage.permits - permits)


def without(usage: AppUsage, agents: int) -> AppUsage:
    """The usage after so many agents that it counted are no more."""
    return msgspec.structs.replace(usage, live_agents=max(0, usage.live_agents - agents))


def counted(usage: AppUsage, live_agents: int, now: float) -> AppUsage:
    """The usage with as many agents as live at this time."""
    return msgspec.structs.replace(usage, live_agents=live_agents, counted_at=int(now))


def seconds_until(at: float, now: float) -> int:
    """A time as whole seconds to wait, one at least."""
    return max(1, math.ceil(at - now))


def check(name: str, limit: int | None) -> int | None:
    """`limit`, if it can be the one of this name. None is none.

    Raises:
        InvalidRequest: it cannot. Names it.
    """
    if limit is not None and not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"{name} takes 1 to {MAX_LIMIT}", hint="null is no limit")
    return limit


def check_max_ttl(max_ttl: int | None) -> int | None:
    """How long an app's agents' tokens may live (seconds), if they can. None is no limit of the app's own.

    Raises:
        InvalidTTL: they cannot.
    """
    if max_ttl is not None and max_ttl < 1:
        raise InvalidTTL("max_ttl must be at least 1 second", hint="null is no limit")
    return max_ttl
