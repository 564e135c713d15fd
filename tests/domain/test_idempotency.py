"""Safe retries: one request is one request, whoever else uses the same words."""

import pytest

from agentwrit.domain.errors import Conflict, InvalidRequest
from agentwrit.domain.idempotency import RETENTION_SECONDS, identify
from tests.domain.records import NOW, make_grant

BODY = {"delegate_to": "a", "scope": ["read:data:1"], "ttl": 60}


def test_a_request_is_known_by_route_caller_and_key() -> None:
    first = identify("k", route="POST /v1/delegate", caller="sid-1", body=BODY)
    assert identify("k", route="POST /v1/delegate", caller="sid-1", body=dict(reversed(BODY.items()))) == first
    others = [
        identify("l", route="POST /v1/delegate", caller="sid-1", body=BODY),
        identify("k", route="POST /v1/agents", caller="sid-1", body=BODY),
        identify("k", route="POST /v1/delegate", caller="sid-2", body=BODY),
    ]
    assert len({first.key, *(other.key for other in others)}) == 4


def test_the_first_answer_is_for_the_same_body_alone_and_for_ten_minutes() -> None:
    request = identify("k", route="r", caller="c", body=BODY)
    first = request.answered(make_grant(), NOW + 0.5)
    assert first.expires_at == NOW + RETENTION_SECONDS
    request.check_same(first)
    with pytest.raises(Conflict):
        identify("k", route="r", caller="c", body={**BODY, "ttl": 61}).check_same(first)


@pytest.mark.parametrize("key", ["", " ", "a b", "ä", "a\n", "x" * 129, "\x7f"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        identify(key, route="r", caller="c", body=BODY)
