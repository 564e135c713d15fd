"""Tables that others fill: each has its bound, whatever they do."""

import asyncio

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.http.rate_limits import MAX_BUCKETS, RateLimiter
from agentwrit.broker.passwords import MAX_FAMILIAR, PasswordChecker
from agentwrit.broker.services import log_budget
from agentwrit.broker.services.audit import TOTALS_REMEMBERED, AuditService
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.limits import MAX_APPS_REMEMBERED, LimitedApps
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.storage.base import EventQuery
from agentwrit.broker.storage.memory import MemoryStore
from agentwrit.broker.storage.sealing import ROWS_REMEMBERED, Sealer
from agentwrit.domain import jws, operator, proof, scope, timestamps
from tests.domain.records import make_claims


def test_who_is_wrong_from_many_addresses_fills_no_table() -> None:
    limiter = RateLimiter(per_second=1, burst=2, monotonic=lambda: 0.0)
    for number in range(MAX_BUCKETS + 10):
        limiter.take(number)
    assert len(limiter._buckets) == MAX_BUCKETS
    assert limiter.take(MAX_BUCKETS + 9) is None
    assert limiter.take(MAX_BUCKETS + 9) is not None  # what was used last is still known


def test_however_many_apps_there_are_only_so_many_are_remembered() -> None:
    limited, budget = LimitedApps(Clock()), LogBudget(8192)
    for number in range(MAX_APPS_REMEMBERED + 10):
        limited.remember(f"app-{number}")
        budget.charge(f"client-{number}")
    assert len(limited._reached) == MAX_APPS_REMEMBERED
    assert len(budget._owing) == log_budget.MAX_APPS


def test_only_so_many_places_are_remembered_as_those_of_operators() -> None:
    checker = PasswordChecker()
    for number in range(MAX_FAMILIAR + 10):
        checker.make_familiar(f"network {number}")
    checker.close()
    assert len(checker._familiar) == MAX_FAMILIAR
    assert "network 9" not in checker._familiar


def test_whatever_is_asked_of_the_log_only_so_many_totals_are_remembered() -> None:
    async def ask() -> int:
        service = AuditService(MemoryStore(Clock()), None)  # type: ignore[arg-type]  # who asks is known here
        who = Principal("kid", make_claims(sub=operator.SUBJECT))
        for number in range(TOTALS_REMEMBERED + 10):
            await service.events(who, EventQuery(task_id=f"task-{number}"))
        return len(service._totals)

    assert asyncio.run(ask()) == TOTALS_REMEMBERED


class Row(msgspec.Struct):
    number: int


def test_what_is_worked_out_by_a_key_is_remembered_for_so_many_keys() -> None:
    sealer = Sealer(b"s" * 32)
    for number in range(5000):
        body, mac = sealer.seal("rows", Row(number))
        assert sealer.open("rows", body, mac, Row).number == number
        scope.scope_is_subset([f"read:data:{number}"], [])
        proof.token_hash(f"token {number}")
        jws.encoded_header(f"kid {number}", typ="jwt")
        timestamps.rfc3339_micros(number)
    held = {
        "rows": (sealer._open.cache_info(), ROWS_REMEMBERED),
        "scopes": (scope._remembered.cache_info(), scope.PARSED_SCOPES_REMEMBERED),
        "hashes": (proof._remembered_hash.cache_info(), proof.TOKENS_REMEMBERED),
        "headers": (jws.encoded_header.cache_info(), jws.HEADERS_REMEMBERED),
        "seconds": (timestamps._second.cache_info(), timestamps.SECONDS_REMEMBERED),
    }
    for info, most in held.values():
        assert info.currsize == info.maxsize == most
