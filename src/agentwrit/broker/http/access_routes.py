"""What resource servers tell the broker: what was done with tokens."""

from collections.abc import Sequence
from typing import Final

from agentwrit.broker.http import wire
from agentwrit.broker.http.exchange import Answer, Exchange, json_answer
from agentwrit.broker.http.http1 import MAX_BODY_BYTES
from agentwrit.broker.http.rate_limits import RateLimiter
from agentwrit.broker.http.routing import Resource
from agentwrit.broker.services.accesses import AccessService
from agentwrit.domain import access
from agentwrit.domain.access import Access

ACCESSES_PER_SECOND: Final = 200
ACCESSES_AT_ONCE: Final = 2_000
USUAL_SCOPE_LENGTH: Final = 1024  # of all that one access used


class AccessRoutes:
    """The route that takes reports. How much one app may report is limited: each access is an event for ever."""

    def __init__(self, accesses: AccessService) -> None:
        self._accesses = accesses
        self._reported = RateLimiter(per_second=ACCESSES_PER_SECOND, burst=ACCESSES_AT_ONCE)

    def resources(self) -> Sequence[Resource]:
        handlers = {"POST": self.report}
        return [Resource("/v1/audit/accesses", handlers, is_bounded=True, max_body=MAX_BODY_BYTES)]

    async def report(self, exchange: Exchange) -> Answer:
        reporter = await self._accesses.authorize(exchange.caller, exchange.bearer())
        request = await exchange.body(wire.ReportAccesses)
        accesses = [_access(reported) for reported in request.accesses]
        retry_after = self._reported.take(reporter.app_id, sum(map(_permits, accesses)))
        if retry_after is not None:
            raise await self._accesses.rate_limited(exchange.caller, reporter, retry_after=retry_after)
        receipt = await self._accesses.report(
            exchange.caller, reporter, accesses, idempotency_key=exchange.idempotency_key()
        )
        return json_answer(receipt)


def _permits(one: Access) -> int:
    """How many accesses one counts for: more than one, where its scopes make it as large as several."""
    return 1 + sum(map(len, one.scope)) // USUAL_SCOPE_LENGTH


def _access(reported: wire.ReportedAccess) -> Access:
    return access.read(
        sid=reported.sid,
        jti=reported.jti,
        scopes=reported.scope,
        resource=reported.resource,
        outcome=reported.outcome,
        count=reported.count,
        first=reported.first,
        last=reported.last,
    )
