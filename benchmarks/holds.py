"""The longest hold of the broker's event loop by each kind of request, and by each action of an operator.

`python -m benchmarks.holds --agents 100000 --store sqlite` fills a store, asks for one thing after the other, and
prints by how much a timer of one millisecond came too late meanwhile: the least and the most of some rounds, because
what else runs on the machine only adds to it. What nobody asks for (`nothing`) tells how much that is. The third figure
has nothing of it: what processor time the event loop's thread took at a stretch. What ends everybody is asked for once.
"""

import argparse
import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx2

from agentwrit.broker.config import Config
from agentwrit.client.audit_log import AuditLog
from benchmarks import large
from benchmarks.broker import Running, running
from benchmarks.held import Held

WANTED_SECONDS: Final = 0.025
SETTLING_SECONDS: Final = 0.05  # for what goes on after an answer
ROUNDS: Final = 5
DELEGATIONS: Final = 900  # of one agent, which may make a thousand


class Kind(NamedTuple):
    """A kind of request: what asks for it, and whether it can be asked for again."""

    name: str
    ask: Callable[[], object]
    is_repeatable: bool = True


class Hold(NamedTuple):
    """The longest hold by a kind of request, in seconds: the least and the most of the rounds, and the least of the
    processor time that the event loop's thread took at a stretch.
    """

    name: str
    least: float
    most: float
    worked: float

    def tell(self) -> str:
        figures = "".join(f"{seconds * 1e3:9.1f} ms" for seconds in (self.least, self.most, self.worked))
        return f"{self.name:40}{figures}{'' if self.least <= WANTED_SECONDS else '  more than wanted'}"


def run(store: str, agents: int, *, rounds: int = ROUNDS) -> Iterator[Hold]:
    """Measure each kind beside so many live agents."""
    with large.place(store) as (directory, settings), tempfile.NamedTemporaryFile() as shared:
        secret = secrets.token_hex(16)
        with running(directory, operator_secret=secret, settings=settings) as broker:
            app_id = next(each["app_id"] for each in broker.operator.list_apps()["apps"])
        config = Config(
            data_dir=directory,
            master_key=settings["AGENTWRIT_MASTER_KEY"],
            database_url=settings.get("AGENTWRIT_DATABASE_URL"),
        )
        [first, *_] = asyncio.run(large.fill(config, app_id, "app", agents))
        held = Held.make(Path(shared.name))
        module = ("benchmarks.held", shared.name)
        with (
            running(directory, operator_secret=secret, settings=settings, module=module) as broker,
            httpx2.Client(base_url=broker.url, timeout=600, trust_env=False) as http,
        ):
            for kind in kinds(broker, http, app_id, first):
                yield _measure(kind, held, rounds)


def _measure(kind: Kind, held: Held, rounds: int) -> Hold:
    found: list[tuple[float, float]] = []
    for _ in range(rounds if kind.is_repeatable else 1):
        time.sleep(SETTLING_SECONDS)  # what went before is over
        held.reset()
        kind.ask()
        time.sleep(SETTLING_SECONDS)
        found.append((held.seconds, held.worked))
    holds, worked = zip(*found, strict=True)
    return Hold(kind.name, min(holds), max(holds), min(worked))


def kinds(broker: Running, http: httpx2.Client, app_id: str, token: str) -> Sequence[Kind]:
    """All kinds, those last that end everybody. `token`: one of the app's many agents'."""
    operator, app = broker.operator, broker.app
    bearer = {"authorization": f"Bearer {broker.operator_token()}"}
    log = AuditLog(broker.url, broker.operator_secret)

    def get(path: str, **parameters: str) -> Callable[[], object]:
        return lambda: _checked(http.get(path, params=parameters, headers=bearer))

    def post(path: str, **body: object) -> Callable[[], object]:
        return lambda: _checked(http.post(path, json=body, headers=bearer))

    def create() -> Any:
        return app.create_agent("bench", f"t-{secrets.token_hex(4)}", ["read:data:1"])

    def introspect() -> None:
        asking = {"authorization": f"Bearer {broker.app_token()}"}
        _checked(http.post("/oauth2/introspect", data={"token": token}, headers=asking))

    def delegate() -> None:
        create().delegate(create().agent_id, ["read:data:1"])

    def small_app() -> str:
        made = operator.register_app(f"app-{secrets.token_hex(4)}", ["read:data:*"])
        return str(made["app_id"])

    def change_app() -> None:
        made = small_app()
        operator.update_app(made, scopes=["read:data:1"])
        operator.rotate_secret(made)
        operator.suspend_app(made)
        operator.resume_app(made)
        operator.remove_app(made)

    def change_operator() -> None:
        name = f"o-{secrets.token_hex(4)}"
        operator.add_operator(name)
        operator.rotate_operator(name)
        operator.remove_operator(name)

    def revoke_key() -> None:
        keys = operator.list_keys()["keys"]
        [kid] = [key["kid"] for key in keys if (key["purpose"], key["state"]) == ("access_token", "active")]
        _checked(http.post(f"/v1/admin/keys/{kid}/revoke", json={"reason": "r"}, headers=bearer))

    delegator = _delegator(create())
    of_app = {"app_id": app_id}
    by_name = f"spiffe://agentwrit.local/agent/bench/{large.TASK}/{1:016x}"
    return (
        Kind("nothing", lambda: time.sleep(SETTLING_SECONDS)),
        Kind("health", get("/v1/health")),
        Kind("metrics", get("/v1/metrics")),
        Kind("JWKS", get("/.well-known/jwks.json")),
        Kind("log-in of an app", broker.app_token),
        Kind("create an agent", create),
        Kind("renew", lambda: create().renew()),
        Kind("delegate", delegate),
        Kind("release", lambda: create().release()),
        Kind("validate", post("/v1/token/validate", token=token)),
        Kind("introspect", introspect),
        Kind("revocations: a page", get("/v1/revocations", after="0")),
        Kind("revocations: a snapshot", get("/v1/revocations/snapshot")),
        Kind("log-in of an operator", broker.operator_token),
        Kind("list apps", operator.list_apps),
        Kind("show an app", lambda: operator.get_app(app_id)),
        Kind("register and change an app", change_app),
        Kind("list agents", get("/v1/agents", limit="1000")),
        Kind("list agents of an app", get("/v1/agents", limit="1000", **of_app)),
        Kind("show an agent", lambda: operator.show_agent(by_name)),
        Kind(f"show an agent with {DELEGATIONS} delegations", lambda: operator.show_agent(delegator)),
        Kind("audit events", get("/v1/audit/events", limit="1000")),
        Kind("audit events of an app", get("/v1/audit/events", limit="1000", **of_app)),
        Kind("audit events of a type", get("/v1/audit/events", limit="1000", event_type="token_revoked")),
        Kind("a checkpoint", lambda: _checked(http.post("/v1/audit/checkpoint", headers=bearer))),
        Kind("check the audit log", lambda: log.verify(log.verifier_keys()), is_repeatable=False),
        Kind("keys", operator.list_keys),
        Kind("rotate a key", lambda: operator.rotate_key(purpose="access_token", force=True)),
        Kind("add, change and remove an operator", change_operator),
        Kind("launch token", post("/v1/admin/launch-tokens", agent_name="a", allowed_scope=["read:data:1"])),
        Kind("revoke an agent", lambda: operator.revoke("agent", create().agent_id)),
        Kind("revoke a task of one", lambda: operator.revoke("task", create().task_id)),
        Kind("revoke a task of all", post("/v1/revoke", level="task", target=large.TASK), is_repeatable=False),
        Kind("revocations: a snapshot of all", get("/v1/revocations/snapshot"), is_repeatable=False),
        Kind("revoke a key", revoke_key, is_repeatable=False),
        Kind("nothing, after all have ended", lambda: time.sleep(10 * SETTLING_SECONDS)),
    )


def _delegator(agent: Any) -> str:
    """The id of an agent that has made so many delegations to itself."""
    for _ in range(DELEGATIONS):
        agent.delegate(agent.agent_id, ["read:data:1"])
    return str(agent.agent_id)


def _checked(answer: httpx2.Response) -> httpx2.Response:
    assert answer.is_success, answer.text
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.holds", description="What holds the event loop.")
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    heading = f"{given.store}, {given.agents} live agents"
    print(f"{heading:40}{'least':>12}{'most':>12}{'worked':>12}", flush=True)
    for hold in run(given.store, given.agents, rounds=given.rounds):
        print(hold.tell(), flush=True)


if __name__ == "__main__":
    main()
