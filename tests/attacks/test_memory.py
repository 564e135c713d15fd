"""Making the broker, or whoever uses the SDK, hold what a stranger sends."""

import json
import tracemalloc
from collections.abc import Callable

from agentwrit import scope_is_subset
from agentwrit.domain import proof
from agentwrit.domain.errors import InvalidRequest
from agentwrit.domain.scope import parse_list
from tests.support import BrokerProcess, registration

MIB = 1024 * 1024
LONG = 150_000


def held(work: Callable[[int], object], times: int) -> int:
    """How many bytes are held after some work that was done many times, each time with another number."""
    work(0)
    tracemalloc.start()
    try:
        for number in range(1, times):
            work(number)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_texts_that_are_too_long_for_a_scope_are_not_remembered() -> None:
    def check(number: int) -> None:
        text = f"{number:08}" + "x" * LONG
        assert not scope_is_subset([text], ["read:data:*"])
        assert not scope_is_subset(["read:data:1"], [text])
        try:
            parse_list([text], field="scope")
        except InvalidRequest:
            return
        raise AssertionError

    assert held(check, 100) < MIB


def test_texts_that_are_too_long_for_a_token_are_not_remembered() -> None:
    assert held(lambda number: proof.token_hash(f"{number:08}" + "x" * LONG), 100) < MIB


def test_what_is_refused_is_not_kept(broker: BrokerProcess) -> None:
    agent = {"authorization": f"Bearer {broker.app().agent()['access_token']}"}

    def register(number: int) -> None:
        body = registration("0" * 64, "0" * 64, f"{number:08}" + "x" * LONG)
        assert broker.http.post("/v1/register", json=body).status_code == 400

    def log_in(number: int) -> None:
        form = {"grant_type": "client_credentials", "client_id": "nobody", "client_secret": "x"}
        answer = broker.http.post("/oauth2/token", data={**form, "scope": f"{number:08}" + "x" * LONG})
        assert answer.status_code == 400

    def delegate(number: int) -> None:  # refused in the unit of work, and recorded
        body = {"delegate_to": "spiffe://agentwrit.local/agent/o/t/nobody", "scope": ["read:data:1"]}
        answer = broker.http.post("/v1/delegate", headers=agent, json={**body, "padding": f"{number:08}" + "x" * LONG})
        assert answer.status_code == 404

    for attack in (register, log_in, delegate):
        for number in range(20):  # the first of them make room for the requests themselves
            attack(number)
        before = broker.resident
        for number in range(20, 120):
            attack(number)
        assert broker.resident < before + 5 * MIB, attack.__name__


def test_who_shows_one_token_in_many_wrappings_has_none_of_them_kept(broker: BrokerProcess) -> None:
    token = broker.app().agent()["access_token"]

    def validate(number: int) -> None:
        body = json.dumps({"token": token, "padding": f"{number:08}" + "x" * LONG})
        answer = broker.http.post("/v1/token/validate", content=body)
        assert answer.json()["valid"] is True

    for number in range(20):
        validate(number)
    before = broker.resident
    for number in range(20, 120):
        validate(number)
    assert broker.resident < before + 5 * MIB
