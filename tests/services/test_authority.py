"""Delegation and revocation with the broker's own keys, time and faults in the test's hand."""

from typing import Any

import msgspec

from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap, MasterKey
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.background import Background
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.services.keys import KeyRings, KeyService
from agentwrit.broker.services.liveness import Liveness
from agentwrit.domain import base64url, delegation, jws
from agentwrit.domain import claims as claims_rules
from agentwrit.domain.audit import EventType
from agentwrit.domain.claims import Claims
from agentwrit.domain.signing_key import KeyPurpose, KeyState
from tests.services.test_faults import Setup, run
from tests.support import bearer, problem


async def pair(made: Setup) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two agents of one app."""
    app = await made.app()
    agents = []
    for _ in range(2):
        body = await made.registration(await made.launch_token(app))
        agents.append(dict((await made.http.post("/v1/register", json=body)).json()))
    return agents[0], agents[1]


async def delegate(made: Setup, by: str, to: str, **fields: Any) -> Any:
    headers = bearer(by) | fields.pop("headers", {})
    body = {"delegate_to": to, "scope": ["read:data:1"], **fields}
    return await made.http.post("/v1/delegate", json=body, headers=headers)


async def signer(made: Setup) -> jws.Ed25519Signer:
    """The key that the broker signs access tokens with."""
    keys = await made.store.read(lambda snapshot: snapshot.signing_keys())
    [active] = [key for key in keys if key.state is KeyState.ACTIVE and key.purpose is KeyPurpose.ACCESS_TOKEN]
    return KeyWrap(MasterKey.parse("00" * 32)).unwrap(active)


def read(token: str) -> Claims:
    return claims_rules.decode(base64url.decode(token.split(".")[1]))


def test_a_token_by_the_right_key_is_refused_if_its_chain_is_not_genuine() -> None:
    async def claim(made: Setup) -> None:
        root, other = await pair(made)
        token = (await delegate(made, root["access_token"], other["agent_id"])).json()["access_token"]
        key, genuine = await signer(made), read(token)

        def signed(**changes: Any) -> str:
            return jws.sign(claims_rules.encode(msgspec.structs.replace(genuine, **changes)), key, typ=jws.ACCESS_TOKEN)

        assert signed() == token
        assert await made.is_valid(token)
        [record] = genuine.delegation_chain
        forged = msgspec.structs.replace(record, scope=("read:data:*",), granted=("read:data:*",))
        for changes in (
            {"delegation_chain": (), "chain_hash": ""} | {"sid": "another", "chain_hash": genuine.chain_hash},
            {"chain_hash": "0" * 64},
            {"scope": "read:data:*"},
            {"sub": root["agent_id"]},
            {"delegation_chain": (forged,), "chain_hash": delegation.chain_hash([forged]), "scope": "read:data:*"},
        ):
            assert not await made.is_valid(signed(**changes)), changes

    run(claim)


def test_an_idempotency_key_is_forgotten_after_ten_minutes_and_not_before() -> None:
    async def claim(made: Setup) -> None:
        root, other = await pair(made)
        key = {"idempotency-key": "k"}
        token = root["access_token"]
        first = (await delegate(made, token, other["agent_id"], ttl=900, headers=key)).json()
        for _ in range(2):
            made.time.now += 200
            token = (await made.http.post("/v1/token/renew", headers=bearer(token))).json()["access_token"]
        # Registered for 300 s and never renewed, the delegate is dead by now: the answer is the first one all the same.
        again = (await delegate(made, token, other["agent_id"], ttl=900, headers=key)).json()
        assert again["access_token"] == first["access_token"]
        assert again["expires_in"] == max(0, first["expires_in"] - 400)
        made.time.now += 200
        token = (await made.http.post("/v1/token/renew", headers=bearer(token))).json()["access_token"]
        problem(await delegate(made, token, other["agent_id"], ttl=900, headers=key), 404, "not_found")

    run(claim)


def test_a_delegate_whose_latest_token_has_expired_is_dead() -> None:
    async def claim(made: Setup) -> None:
        root, other = await pair(made)
        made.time.now += 200
        token = (await made.http.post("/v1/token/renew", headers=bearer(root["access_token"]))).json()["access_token"]
        assert (await delegate(made, token, other["agent_id"])).status_code == 200
        made.time.now += 100
        problem(await delegate(made, token, other["agent_id"]), 404, "not_found")

    run(claim)


def test_no_renewal_of_parent_or_child_moves_a_delegations_end() -> None:
    async def claim(made: Setup) -> None:
        root, other = await pair(made)
        made.time.now += 100
        token = (await delegate(made, root["access_token"], other["agent_id"], ttl=1000)).json()["access_token"]
        end = read(root["access_token"]).exp
        assert read(token).exp == end
        parent = root["access_token"]
        for _ in range(6):
            made.time.now += 33
            parent = (await made.http.post("/v1/token/renew", headers=bearer(parent))).json()["access_token"]
            token = (await made.http.post("/v1/token/renew", headers=bearer(token))).json()["access_token"]
            assert read(token).exp == end
        made.time.now = end
        assert await made.is_valid(parent)
        assert not await made.is_valid(token)

    run(claim)


def test_what_cannot_be_made_durable_is_503_and_not_done() -> None:
    async def claim(made: Setup) -> None:
        root, other = await pair(made)
        admin = await made.admin()
        before = made.events()
        for point in ("begin", "commit"):
            made.failing = {point}
            problem(await delegate(made, root["access_token"], other["agent_id"]), 503, "unavailable")
            for level in ("agent", "chain"):
                body = {"level": level, "target": root["agent_id"]}
                problem(await made.http.post("/v1/revoke", json=body, headers=admin), 503, "unavailable")
            answer = await made.http.post("/v1/admin/keys/rotate", json={"force": True}, headers=admin)
            problem(answer, 503, "unavailable")
            made.failing = set()
            assert await made.is_valid(root["access_token"])
        assert made.events() == before
        body = {"level": "agent", "target": root["agent_id"]}
        assert (await made.http.post("/v1/revoke", json=body, headers=admin)).json()["count"] == 1
        assert not await made.is_valid(root["access_token"])

    run(claim)


def test_a_broker_follows_a_rotation_that_another_one_made_and_does_not_make_it_again() -> None:
    async def claim(made: Setup) -> None:
        wrap = KeyWrap(MasterKey.parse("00" * 32))
        other = await KeyRings.load(made.store, wrap)
        endings = Endings(made.store, await Liveness.load(made.store, made.clock), Background(Metrics()))
        late = KeyService(made.store, other, wrap, Config(), made.clock, endings)
        made.time.now += 30 * 86_400
        await made.housekeeping.round()
        await late.keep()
        assert other.access_tokens.signer.kid == (await signer(made)).kid
        rotated = [event for event in made.events() if event.event_type == EventType.SIGNING_KEY_ROTATED]
        assert len(rotated) == 2  # of tokens and of the feed, once each

    run(claim)


def test_keys_rotate_by_age_and_let_go_of_those_that_verify_no_more() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=100)
        before = (await signer(made)).kid
        admin = await made.admin()

        async def states() -> dict[str, str]:
            answer = await made.http.get("/v1/admin/keys", headers=await made.admin())
            return {key["kid"]: key["state"] for key in answer.json()["keys"]}

        made.time.now += 30 * 86_400
        await made.housekeeping.round()
        after = (await signer(made)).kid
        assert after != before
        assert (await states())[before] == "retired"
        assert not await made.is_valid(token)
        made.time.now += 86_400 + 60
        await made.housekeeping.round()
        assert (await states())[before] == "gone"
        assert (await states())[after] == "active"
        assert admin

    run(claim)
