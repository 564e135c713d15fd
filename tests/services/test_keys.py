"""What is kept of a signing key after it has signed for the last time, and for how long."""

from typing import Final

from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap, MasterKey
from agentwrit.broker.metrics import Metrics
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.background import Background
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.services.keys import MARGIN_SECONDS, KeyRings, KeyService
from agentwrit.broker.services.liveness import Liveness
from agentwrit.domain.app import MAX_TOKEN_TTL_SECONDS
from agentwrit.domain.revocation import RevocationKind
from agentwrit.domain.signing_key import KeyPurpose, KeyState, StoredKey
from tests.services.test_authority import read, signer
from tests.services.test_faults import Setup, run

LONG: Final = 10 * MAX_TOKEN_TTL_SECONDS  # longer than anything that today's settings allow
WRAP: Final = KeyWrap(MasterKey.parse("00" * 32))
LONG_LIVED: Final = Config(max_ttl=LONG, max_lifetime=2 * LONG)


async def stored(made: Setup, kid: str) -> StoredKey:
    keys = await made.store.read(lambda snapshot: snapshot.signing_keys())
    return next(key for key in keys if key.kid == kid)


async def rotate(made: Setup, purpose: KeyPurpose = KeyPurpose.ACCESS_TOKEN) -> StoredKey:
    """Have the next key sign. Returns what is stored of the one before."""
    body = {"purpose": purpose.value, "force": True}
    answer = await made.http.post("/v1/admin/keys/rotate", json=body, headers=await made.admin())
    assert answer.status_code == 200, answer.text
    return await stored(made, answer.json()["retired"]["kid"])


async def of_purpose(made: Setup, purpose: KeyPurpose, state: KeyState) -> StoredKey:
    keys = await made.store.read(lambda snapshot: snapshot.signing_keys())
    [key] = [key for key in keys if key.purpose is purpose and key.state is state]
    return key


async def later(made: Setup, config: Config) -> KeyService:
    """The keys of a broker that is started over the same store with these settings."""
    rings = await KeyRings.load(made.store, WRAP)
    endings = Endings(made.store, await Liveness.load(made.store, made.clock), Background(Metrics()))
    return KeyService(made.store, rings, WRAP, config, made.clock, endings)


def test_a_retired_key_of_whatever_purpose_has_lost_its_private_half() -> None:
    async def claim(made: Setup) -> None:
        for purpose in KeyPurpose:
            active = await of_purpose(made, purpose, KeyState.ACTIVE)
            assert active.wrapped
            retired = await rotate(made, purpose)
            assert (retired.kid, retired.state) == (active.kid, KeyState.RETIRED)
            assert retired.wrapped == b""
            assert retired.public_key == active.public_key  # that verifies on

    run(claim)


def test_a_key_that_is_gone_or_was_revoked_has_lost_it_too() -> None:
    async def claim(made: Setup) -> None:
        for purpose in KeyPurpose:
            for state in (KeyState.ACTIVE, KeyState.NEXT):
                kid = (await of_purpose(made, purpose, state)).kid
                answer = await made.http.post(
                    f"/v1/admin/keys/{kid}/revoke", json={"reason": "test"}, headers=await made.admin()
                )
                assert answer.status_code == 200, answer.text
                revoked = await stored(made, kid)
                assert (revoked.state, revoked.wrapped) == (KeyState.GONE, b"")
                assert revoked.revoked_at == int(made.time.now)

    run(claim)


def test_a_key_verifies_for_as_long_as_a_token_by_it_may_live_whatever_the_settings_are_by_now() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=LONG)
        exp = read(token).exp
        assert exp == int(made.time.now) + LONG
        kid = (await signer(made)).kid
        keys = await later(made, Config(max_ttl=60, key_max_age=1000))
        made.time.now += 1000
        await keys.keep()
        retired = await stored(made, kid)
        assert retired.state is KeyState.RETIRED
        assert retired.verifies_until == exp + MARGIN_SECONDS
        made.time.now = exp - 1
        await keys.keep()
        assert (await stored(made, kid)).state is KeyState.RETIRED
        assert await made.is_valid(token)

    run(claim, LONG_LIVED)


def test_a_key_verifies_for_as_long_as_a_token_by_it_may_live_that_nobody_has_been_given_yet() -> None:
    async def claim(made: Setup) -> None:
        kid = (await signer(made)).kid
        await rotate(made)
        assert (await stored(made, kid)).verifies_until == int(made.time.now) + LONG + MARGIN_SECONDS

    run(claim, LONG_LIVED)


def test_the_revocation_of_a_key_is_kept_for_as_long_as_a_token_by_it_may_live() -> None:
    async def claim(made: Setup) -> None:
        token = await made.agent(max_ttl=LONG)
        kid = (await signer(made)).kid
        keys = await later(made, Config(max_ttl=60))
        admin = (await made.admin())["authorization"].removeprefix("Bearer ")
        await keys.revoke(Caller(), Principal(kid, read(admin)), kid, "stolen")
        entry = await made.store.read(lambda snapshot: snapshot.revocation(RevocationKind.KEY, kid))
        assert entry is not None
        assert entry.last_exp >= read(token).exp
        assert not await made.is_valid(token)

    run(claim, LONG_LIVED)
