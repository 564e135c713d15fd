"""A place among the requests under way is free again however the request ended."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import pytest

from agentwrit.broker.http import edge
from agentwrit.broker.http.admission import Admission
from agentwrit.domain.errors import TamperedRecord, Unavailable
from tests.services.test_faults import Setup, run
from tests.support import bearer, problem

PLACES: Final = 4


@pytest.fixture(autouse=True)
def _few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "Admission", partial(Admission, PLACES))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (lambda: Unavailable("the disk is full"), 503),
        (lambda: TamperedRecord("a row was altered"), 503),
        (lambda: ZeroDivisionError("a defect"), 500),
        (lambda: ConnectionError("a defect that looks like a lost client"), 500),
    ],
)
@pytest.mark.parametrize("point", ["begin", "commit"])
def test_a_request_that_fails_leaves_its_place(error: Callable[[], Exception], status: int, point: str) -> None:
    async def claim(made: Setup) -> None:
        app = await made.app()
        made.at = {point: error}
        for _ in range(PLACES + 1):
            assert (await made.login(app)).status_code == status
        made.at = {}
        assert (await made.login(app)).status_code == 200

    run(claim)


def test_a_request_that_is_refused_leaves_its_place() -> None:
    async def claim(made: Setup) -> None:
        for _ in range(PLACES + 1):
            problem(await made.http.post("/v1/token/renew", headers=bearer("no token")), 401, "unauthorized")
            problem(await made.http.post("/v1/app/auth", content=b"no JSON"), 400, "invalid_request")
        assert (await made.login(await made.app())).status_code == 200

    run(claim)


def test_who_leaves_before_the_answer_leaves_a_place_and_who_found_none_takes_nobody_elses() -> None:
    async def claim(made: Setup) -> None:
        app = await made.app()
        logins = [asyncio.ensure_future(made.login(app)) for _ in range(3 * PLACES)]
        await asyncio.sleep(0)
        for login in logins[::2]:
            login.cancel()
        await asyncio.gather(*logins, return_exceptions=True)
        for _ in range(2):
            answers = await asyncio.gather(*(made.login(app) for _ in range(3 * PLACES)))
            statuses = sorted(answer.status_code for answer in answers)
            assert statuses == [200] * PLACES + [503] * 2 * PLACES

    run(claim)
