"""An app's limits: how many agents it may have at once, how fast it may create them, and how long their tokens live.

The rules:

- `max_live_agents` limits registrations that have not ended and whose current token has not expired. Delegations do not
  count. An agent that ends or expires makes room for another one.
- `creates_per_second` is a token bucket: it holds that many permits and is refilled at that rate. Only a successful
  creation takes a permit.
- `max_ttl` caps the requested lifetime, as the broker's own maximum TTL does. A longer request is not refused.
- A limit applies from the moment it is set. Existing agents continue: they are counted, and their tokens are capped at
  the next renewal.
- An app's usage is part of the store and is updated in the unit of work that uses it. It is therefore exact with any
  number of brokers, across restarts, and for concurrent requests.
"""

import math
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from agentwrit.domain.errors import InvalidRequest, InvalidTTL

MAX_LIMIT: Final = 1_000_000
FULL_SECONDS: Final = 5
"""The `retry_after` for an app that has as many agents as it may have. One may be released at any moment."""


class WantedLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Requested changes of an app's limits: None removes a limit, UNSET leaves it unchanged."""

    max_live_agents: int | UnsetType | None = UNSET
    max_ttl: int | UnsetType | None = UNSET
    creates_per_second: int | UnsetType | None = UNSET

    def checked(self) -> dict[str, Any]:
        """The requested limits by name.

        Raises:
            InvalidRequest, InvalidTTL: a limit is out of range.
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
    """An app's usage of its limits.

    `live_agents`: the counted registrations, without those that had expired at `counted_at` (Unix seconds). An agent
    that ends is subtracted at once, an agent that expires at the next count. `permits`: the creation permits that were
    left at `refilled_at` (Unix seconds); if that is 0, the bucket is full. `counted_behind`: while agents from before
    the limit was set are still being counted, the position in the order of grants that the count has reached;
    `counted_born`: the `born` of the newest counted agent.
    """

    app_id: str
    live_agents: int = 0
    counted_at: int = 0
    permits: float = 0.0
    refilled_at: float = 0.0
    counted_behind: int | None = None
    counted_born: int = 0


def refilled(usage: AppUsage, per_second: int, now: float) -> AppUsage:
    """The usage with its permits refilled up to `now`."""
    permits = min(per_second, usage.permits + (now - usage.refilled_at) * per_second)
    return msgspec.structs.replace(usage, permits=permits, refilled_at=now)


def permit_at(usage: AppUsage, per_second: int) -> float:
    """When the next permit is available (Unix seconds). `usage`: as returned by `refilled`."""
    return usage.refilled_at + max(0.0, 1 - usage.permits) / per_second


def created(usage: AppUsage, *, agents: int, permits: int) -> AppUsage:
    """The usage after a creation that takes so many agents and permits."""
    return msgspec.structs.replace(usage, live_agents=usage.live_agents + agents, permits=usage.permits - permits)


def without(usage: AppUsage, agents: int) -> AppUsage:
    """The usage after so many counted agents have ended."""
    return msgspec.structs.replace(usage, live_agents=max(0, usage.live_agents - agents))


def counted(usage: AppUsage, live_agents: int, now: float) -> AppUsage:
    """The usage with a new count of the agents that are alive at `now`."""
    return msgspec.structs.replace(usage, live_agents=live_agents, counted_at=int(now))


def seconds_until(at: float, now: float) -> int:
    """The whole seconds to wait until a time, at least one."""
    return max(1, math.ceil(at - now))


def check(name: str, limit: int | None) -> int | None:
    """Return `limit` if it is valid. None means no limit.

    Raises:
        InvalidRequest: the limit is out of range. The error names it.
    """
    if limit is not None and not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"{name} takes 1 to {MAX_LIMIT}", hint="null is no limit")
    return limit


def check_max_ttl(max_ttl: int | None) -> int | None:
    """Return `max_ttl` (seconds) if it is valid. None means that the app has no limit of its own.

    Raises:
        InvalidTTL: `max_ttl` is less than a second.
    """
    if max_ttl is not None and max_ttl < 1:
        raise InvalidTTL("max_ttl must be at least 1 second", hint="null is no limit")
    return max_ttl
