"""The signing keys: creating, rotating and revoking them."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.config import Config
from agentwrit.broker.keystore import KeyWrap, SigningKeys, new_seed
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.ending import end_named, said
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.services.revocation import check_reason
from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.domain import app, signing_key
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.ending import Ending, EndingLevel, Named
from agentwrit.domain.errors import Conflict, NotFound
from agentwrit.domain.grant import EndReason
from agentwrit.domain.revocation import Revocation, RevocationKind
from agentwrit.domain.signing_key import KeyPurpose, KeyState, StoredKey

MARGIN_SECONDS: Final = 60  # for signing that is in progress while a key retires

BROKER: Final = "broker"  # the principal of what the broker does by itself


class KeyRings(msgspec.Struct, frozen=True, kw_only=True):
    """The signing keys of each purpose."""

    access_tokens: SigningKeys
    feed: SigningKeys
    checkpoints: SigningKeys

    @classmethod
    async def load(cls, store: Store, wrap: KeyWrap) -> "KeyRings":
        """Read the keys, and create the missing ones."""
        keys = await store.write(lambda transaction: complete(transaction, wrap))
        return cls(
            access_tokens=SigningKeys(KeyPurpose.ACCESS_TOKEN, keys, wrap),
            feed=SigningKeys(KeyPurpose.REVOCATION_FEED, keys, wrap),
            checkpoints=SigningKeys(KeyPurpose.AUDIT_CHECKPOINT, keys, wrap),
        )

    def replace(self, keys: Sequence[StoredKey]) -> None:
        """Use the keys as just committed."""
        self.access_tokens.replace(keys)
        self.feed.replace(keys)
        self.checkpoints.replace(keys)


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a rotation: the key that signs now, the one before, and the next one."""

    active: StoredKey
    retired: StoredKey
    next: StoredKey


class KeyService:
    """Manages the signing keys."""

    def __init__(
        self, store: Store, rings: KeyRings, wrap: KeyWrap, config: Config, clock: Clock, endings: Endings
    ) -> None:
        self._store = store
        self._endings = endings
        self._rings = rings
        self._wrap = wrap
        self._clock = clock
        self._max_age = config.key_max_age
        self._config = config
        self._lock = asyncio.Lock()  # so that the rings change in the order of the commits
        self.is_behind = asyncio.Event()
        """Set when a key was revoked, possibly by another broker: `keep` then has to run at once."""
        store.listen(self._announced)

    async def list(self) -> Sequence[StoredKey]:
        """All keys, newest first, revoked and expired ones included."""
        return await self._store.read(lambda snapshot: snapshot.signing_keys())

    async def rotate(self, caller: Caller, operator: Principal, purpose: KeyPurpose, *, force: bool) -> Rotation:
        """Make the next key sign. No token becomes invalid.

        Raises:
            Conflict: verifiers may not know the next key yet, and the rotation is not forced.
        """

        def rotate(transaction: Transaction) -> Rotation:
            upcoming = _key(transaction, purpose, KeyState.NEXT)
            if not force and not upcoming.is_known_to_verifiers(transaction.now):
                wait = int(upcoming.created_at + signing_key.PUBLISHED_SECONDS - transaction.now) + 1
                raise Conflict(
                    f"verifiers may not know the next key yet: wait {wait} s",
                    hint="or force it: verifiers then have to ask for a key that they do not know",
                )
            return self._rotate(transaction, caller, operator.name, purpose)

        async with self._lock:
            rotation = await self._store.write(rotate)
            await self._follow()
        return rotation

    async def revoke(self, caller: Caller, operator: Principal, kid: str, reason: str) -> int:
        """Revoke a key at once: everything that it signed is dead, and the next key takes its place.

        Returns how many live tokens this killed.

        Raises:
            NotFound: there is no such key.
            InvalidRequest: the reason is too long or not printable.
        """
        check_reason(reason)

        def revoke(transaction: Transaction) -> Ending | None:
            key = next((key for key in transaction.signing_keys() if key.kid == kid), None)
            if key is None:
                raise NotFound("no such key", hint="`agentwrit keys list` shows the keys that there are")
            if key.revoked_at:
                return None
            end_key(transaction, key, self._config)
            if key.state is KeyState.ACTIVE:
                self._activate_next(transaction, key.purpose)
            complete(transaction, self._wrap)
            ending: Ending | None = None
            if key.purpose is KeyPurpose.ACCESS_TOKEN:
                signed = Named(level=EndingLevel.KEY, target=key.kid)
                ending = end_named(transaction, caller, operator.name, signed, EndReason.KEY_REVOKED, {"kid": key.kid})
            more: EventData = {"count": 0} if ending is None else {"count": ending.count, **said(ending)}
            transaction.record(
                caller.event(
                    EventType.SIGNING_KEY_REVOKED,
                    detail="a signing key was revoked, with all that it signed",
                    principal=operator.name,
                    sid=operator.claims.sid,
                    data={**key_data(key), "revocation_reason": reason, **more},
                )
            )
            return ending

        async with self._lock:
            ending = await self._store.write(revoke)
            await self._follow()
        return 0 if ending is None else await self._endings.finish(ending)

    async def keep(self) -> None:
        """Do what is due, and follow the changes of other brokers.

        Keys that have signed for long enough are rotated, and keys that no longer verify anything are dropped.
        """

        def keep(transaction: Transaction) -> None:
            # Determined again here, because another broker of this store may have just done it.
            expired, aged = self._due(transaction.signing_keys(), transaction.now)
            for key in expired:
                transaction.put(signing_key.gone(key))
                transaction.record(
                    Draft(
                        event_type=EventType.SIGNING_KEY_EXPIRED,
                        detail="a signing key that has retired verifies no more",
                        principal=BROKER,
                        data=key_data(key),
                    )
                )
            for purpose in aged:
                if _key(transaction, purpose, KeyState.NEXT).is_known_to_verifiers(transaction.now):
                    self._rotate(transaction, Caller(), BROKER, purpose)

        async with self._lock:
            if any(self._due(await self.list(), self._clock.now())):
                await self._store.write(keep)
            await self._follow()

    def _due(self, keys: Sequence[StoredKey], now: float) -> tuple[Sequence[StoredKey], Sequence[KeyPurpose]]:
        """The keys that no longer verify anything, and the purposes whose key has signed for long enough."""
        expired = [key for key in keys if key.state is KeyState.RETIRED and now >= key.verifies_until]
        aged = [
            key.purpose
            for key in keys
            if self._max_age and key.state is KeyState.ACTIVE and now >= key.active_since + self._max_age
            if key.purpose is not KeyPurpose.AUDIT_CHECKPOINT
        ]
        return expired, aged

    def _rotate(self, transaction: Transaction, caller: Caller, principal: str, purpose: KeyPurpose) -> Rotation:
        before = _key(transaction, purpose, KeyState.ACTIVE)
        retired = signing_key.retired(before, verifies_until=_last_exp(transaction, self._config))
        transaction.put(retired)
        active = self._activate_next(transaction, purpose)
        transaction.record(
            caller.event(
                EventType.SIGNING_KEY_ROTATED,
                detail="the next key signs now",
                principal=principal,
                data={**key_data(active), "previous_kid": retired.kid, "verifies_until": retired.verifies_until},
            )
        )
        complete(transaction, self._wrap)
        return Rotation(active=active, retired=retired, next=_key(transaction, purpose, KeyState.NEXT))

    def _activate_next(self, transaction: Transaction, purpose: KeyPurpose) -> StoredKey:
        active = self._wrap.activated(_key(transaction, purpose, KeyState.NEXT), int(transaction.now))
        transaction.put(active)
        return active

    def _announced(self, revocations: Sequence[Revocation]) -> None:
        if any(revocation.kind is RevocationKind.KEY for revocation in revocations):
            self.is_behind.set()

    async def _follow(self) -> None:
        self._rings.replace(await self.list())


def end_key(transaction: Transaction, key: StoredKey, config: Config) -> None:
    """Revoke a key at once, with everything that it signed. The caller provides its replacement."""
    now = int(transaction.now)
    transaction.put(signing_key.gone(key, revoked_at=max(1, now)))
    last_exp = _last_exp(transaction, config)
    transaction.revoke(Revocation(kind=RevocationKind.KEY, id=key.kid, effective_at=now, last_exp=last_exp))


def complete(transaction: Transaction, wrap: KeyWrap) -> Sequence[StoredKey]:
    """Create the missing keys, and return all."""
    for purpose in KeyPurpose:
        for state in (KeyState.ACTIVE, KeyState.NEXT):
            if not any(key.purpose is purpose and key.state is state for key in transaction.signing_keys()):
                now = int(transaction.now)
                key = wrap.wrap(new_seed(), purpose=purpose, state=state, created_at=now)
                transaction.put(key)
                transaction.record(
                    Draft(
                        event_type=EventType.SIGNING_KEY_CREATED,
                        detail=f"a signing key was made, and is the {key.state.value} one",
                        principal=BROKER,
                        data=key_data(key),
                    )
                )
    return transaction.signing_keys()


def _key(transaction: Transaction, purpose: KeyPurpose, state: KeyState) -> StoredKey:
    [key] = [key for key in transaction.signing_keys() if key.purpose is purpose and key.state is state]
    return key


def _last_exp(transaction: Transaction, config: Config) -> int:
    """When the last token that can have been signed so far expires (Unix seconds)."""
    longest_ttl = max(config.max_ttl, config.admin_token_ttl, app.MAX_TOKEN_TTL_SECONDS)
    return max(transaction.last_exp(), int(transaction.now) + longest_ttl) + MARGIN_SECONDS


def key_data(key: StoredKey) -> EventData:
    """The data that identifies a key in an event."""
    return {"kid": key.kid, "purpose": key.purpose.value}
