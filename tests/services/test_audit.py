"""Who is shown which events."""

from typing import Any

from agentwrit.broker.storage.base import DATA_FIELDS, EQUAL_FIELDS
from agentwrit.domain.audit import Event
from tests.services.test_authority import delegate
from tests.services.test_faults import Setup, run
from tests.support import bearer


async def asked(made: Setup, token: str, **filters: Any) -> dict[str, Any]:
    answer = await made.http.get("/v1/audit/events", params={"limit": 1000, **filters}, headers=bearer(token))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def value(event: Event, name: str) -> str:
    found = getattr(event, name, None) or event.data.get(name) or ""
    return str(found)


def test_an_app_is_shown_its_own_events_whomever_it_asks_for() -> None:
    async def claim(made: Setup) -> None:
        mine, theirs = await made.app("mine"), await made.app("theirs")
        agents: dict[str, list[dict[str, Any]]] = {}
        for app in (mine, theirs):
            for _ in range(2):
                body = await made.registration(await made.launch_token(app))
                headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
                agent = (await made.http.post("/v1/register", json=body, headers=headers)).json()
                agents.setdefault(app["app_id"], []).append(agent)
            first, second = agents[app["app_id"]]
            assert (await delegate(made, first["access_token"], second["agent_id"])).status_code == 200
        token = (await made.login(mine)).json()["access_token"]

        own = await asked(made, token)
        assert {event["app_id"] for event in own["events"]} == {mine["app_id"]}
        assert own["total"] == len(own["events"])
        of_theirs = [event for event in made.events() if event.app_id == theirs["app_id"]]
        assert of_theirs
        for name in (*EQUAL_FIELDS, *DATA_FIELDS):
            for wanted in {value(event, name) for event in of_theirs} - {""}:
                shown = await asked(made, token, **{name: wanted})
                expected = [event for event in made.events() if event.app_id == mine["app_id"]]
                matching = [event for event in expected if value(event, name) == wanted or name == "app_id"]
                assert [event["id"] for event in shown["events"]] == [f"evt-{event.sequence:06}" for event in matching]
                assert shown["total"] == len(matching), name
        # The operator is shown whatever is asked for.
        admin = (await made.admin())["authorization"].removeprefix("Bearer ")
        shown = await asked(made, admin, app_id=theirs["app_id"])
        assert {event["app_id"] for event in shown["events"]} == {theirs["app_id"]}

    run(claim)
