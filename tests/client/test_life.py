"""When an agent's token is renewed, without a network, on a clock that the test sets."""

import json
import time
from typing import Any

import pytest

from agentwrit.client.clock import Clock
from agentwrit.client.exchange import HttpRequest, HttpResponse, InTurn, Plan
from agentwrit.client.keys import AgentKey
from agentwrit.client.life import AgentLife
from agentwrit.client.secrecy import Secret
from agentwrit.errors import AgentWritError, AuthenticationError, TransportError
from agentwrit.models import RegisterResult

REFUSED = HttpResponse(401, {}, b"{}")
OUT_OF_REACH = TransportError("out of reach")


class Scene:
    """An agent with a token for 100 s, and a broker that answers what it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        registered = RegisterResult("spiffe://x/a", "first", 100)
        self.life = AgentLife(
            AgentKey(),
            registered,
            scope=["read:data:1"],
            orch_id="o",
            task_id="t",
            asked_at=self.now,
            clock=Clock(time.time, lambda: self.now),
        )
        self.shown: list[str | None] = []

    def run(self, plan: Plan[Any], *answers: HttpResponse | Exception) -> Any:
        """Carry out a plan, every request of which is answered by the next answer."""
        waiting = list(answers)
        try:
            result = self._run(plan, waiting)
        finally:
            assert not waiting, "fewer requests were made than expected"
        return result

    def _run(self, plan: Plan[Any], waiting: list[HttpResponse | Exception]) -> Any:
        try:
            needed = next(plan)
            while True:
                if isinstance(needed, InTurn):
                    try:
                        answer = self._run(needed.steps, waiting)
                    except AgentWritError as error:
                        needed = plan.throw(error)
                        continue
                else:
                    assert isinstance(needed, HttpRequest)
                    self.shown.append(None if needed.bearer is None else needed.bearer.reveal())
                    answer = waiting.pop(0)
                needed = plan.throw(answer) if isinstance(answer, Exception) else plan.send(answer)
        except StopIteration as done:
            return done.value.reveal() if isinstance(done.value, Secret) else done.value


def renewed(token: str, expires_in: int = 100) -> HttpResponse:
    return HttpResponse(200, {}, json.dumps({"access_token": token, "expires_in": expires_in}).encode())


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_token_is_renewed_at_three_quarters_of_its_life(scene: Scene) -> None:
    for passed, token in ((74, "first"), (2, "second"), (74, "second"), (2, "third")):
        scene.now += passed
        answers = [] if passed == 74 else [renewed(token)]
        assert scene.run(scene.life.fresh_token(), *answers) == token


@pytest.mark.parametrize("lifetime", [1, 2, 3, 4, 10])
def test_a_short_token_is_renewed_while_it_lives_for_certain(scene: Scene, lifetime: int) -> None:
    """A token's times are whole seconds: it may end up to one second early."""
    scene.run(scene.life.renew(), renewed("1", lifetime))
    for token in ("2", "3", "4"):
        scene.now += max(0.75 * (lifetime - 1), 0.75 * lifetime / 2)
        assert scene.run(scene.life.fresh_token(), renewed(token, lifetime)) == token


def test_while_the_broker_is_out_of_reach_the_token_is_used_to_its_end(scene: Scene) -> None:
    scene.now += 80
    assert scene.run(scene.life.fresh_token(), OUT_OF_REACH) == "first"
    assert scene.run(scene.life.fresh_token()) == "first"  # not again at once
    scene.now += 2
    assert scene.run(scene.life.fresh_token(), OUT_OF_REACH) == "first"
    scene.now += 20
    with pytest.raises(TransportError):
        scene.run(scene.life.fresh_token(), OUT_OF_REACH)


def test_a_token_that_is_not_renewed_is_used_to_its_end(scene: Scene) -> None:
    scene.now += 80
    assert scene.run(scene.life.fresh_token(), REFUSED) == "first"
    scene.now += 10
    assert scene.run(scene.life.fresh_token()) == "first"
    scene.now += 11
    with pytest.raises(AuthenticationError):
        scene.run(scene.life.fresh_token(), REFUSED)


def test_the_last_token_of_a_grant_is_not_renewed_in_vain(scene: Scene) -> None:
    scene.now += 80
    assert scene.run(scene.life.fresh_token(), renewed("second", 20)) == "second"  # ends when the first would have
    scene.now += 19
    assert scene.run(scene.life.fresh_token()) == "second"


def test_who_renews_early_is_renewed_in_time_nevertheless(scene: Scene) -> None:
    scene.run(scene.life.renew(), renewed("second"))
    scene.now += 76
    assert scene.run(scene.life.fresh_token(), renewed("third")) == "third"


def test_a_token_of_two_seconds_is_renewed_as_well(scene: Scene) -> None:
    scene.now += 99
    assert scene.run(scene.life.fresh_token(), renewed("second", 2)) == "second"
    for token in ("third", "fourth"):
        scene.now += 1.6
        assert scene.run(scene.life.fresh_token(), renewed(token, 2)) == token


def test_a_refused_token_is_replaced_only_where_there_is_another(scene: Scene) -> None:
    assert scene.run(scene.life.token_after_refusal(Secret("first"))) is None
    scene.run(scene.life.renew(), renewed("second"))
    assert scene.run(scene.life.token_after_refusal(Secret("first"))) == "second"
    assert scene.run(scene.life.token_after_refusal(Secret("second"))) is None


def test_after_a_renewal_without_an_answer_a_refusal_has_it_made_up_for(scene: Scene) -> None:
    with pytest.raises(TransportError):
        scene.run(scene.life.renew(), OUT_OF_REACH)
    assert scene.run(scene.life.token_after_refusal(Secret("first")), OUT_OF_REACH) is None
    assert scene.run(scene.life.token_after_refusal(Secret("first")), renewed("second")) == "second"
    assert scene.shown == ["first"] * 3


def test_who_asked_for_the_same_renewal_gets_it(scene: Scene) -> None:
    plans = [scene.life.renew() for _ in range(3)]
    scene.run(plans[0], renewed("second"))
    for plan in plans[1:]:
        scene.run(plan)
    scene.run(scene.life.renew(), renewed("third"))


def test_a_released_agent_shows_nothing(scene: Scene) -> None:
    scene.run(scene.life.release(), HttpResponse(204, {}, b""))
    scene.run(scene.life.release())
    for plan in (scene.life.fresh_token(), scene.life.renew(), scene.life.delegate("x", ["read:data:1"], None)):
        with pytest.raises(AgentWritError, match="released"):
            scene.run(plan)
    assert scene.run(scene.life.token_after_refusal(Secret("first"))) is None
