"""OAuth clients: apps that authenticate by their secret (RFC 6749 §2.3.1)."""

from agentwrit.broker.clock import Clock
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.storage.base import Snapshot, Store
from agentwrit.domain import launch_token
from agentwrit.domain.app import App, AppStatus
from agentwrit.domain.audit import EventType, Outcome
from agentwrit.domain.errors import Unauthorized


class ClientService:
    """Identifies the calling app on routes that need no token."""

    def __init__(self, store: Store, denials: DenialLog, clock: Clock) -> None:
        self._store = store
        self._denials = denials
        self._clock = clock

    async def identify(self, caller: Caller, client_id: str, client_secret: str) -> App:
        """The active app with this ID and secret.

        Raises:
            Unauthorized: unknown ID, wrong secret or inactive app; neither the answer nor its timing tells which.
        """
        fingerprint = launch_token.fingerprint(client_secret)
        now = self._clock.now()
        try:
            return await self._store.read(lambda snapshot: accepted(snapshot, caller, client_id, fingerprint, now))
        except Denial as denied:
            raise await self._denials.record(denied) from None

    async def rate_limited(self, caller: Caller) -> None:
        """Record that too many wrong secrets were tried from one network."""
        event = caller.event(EventType.APP_RATE_LIMITED, Outcome.DENIED, detail="too many wrong secrets")
        await self._denials.record(Denial(Unauthorized("too many attempts"), caller, event))


def accepted(snapshot: Snapshot, caller: Caller, client_id: str, fingerprint: bytes, now: float) -> App:
    """The app with this ID, if it is active and `fingerprint` is that of one of its valid secrets.

    Raises:
        Denial: it is not.
    """
    app = snapshot.app_by_client_id(client_id)
    is_right = (app or _NOBODY).accepts(fingerprint, now)
    if app is None or not is_right:
        raise _login_failed(caller, app)
    return app


# Compared if there is no app, so that an unknown ID takes as long as a wrong secret.
_NOBODY = App(
    app_id="",
    name="",
    client_id="",
    secret_hash=bytes(32),
    scopes=(),
    token_ttl=0,
    status=AppStatus.INACTIVE,
    created_at=0,
    updated_at=0,
)


def _login_failed(caller: Caller, app: App | None) -> Denial:
    # An unknown ID is not recorded, because people sometimes enter the secret in its place.
    event = caller.event(
        EventType.APP_AUTH_FAILED,
        Outcome.DENIED,
        detail="the client id is unknown" if app is None else "the secret is wrong, or the app is not active",
        app_id=app.app_id if app is not None else "",
    )
    return Denial(Unauthorized("the client id or the client secret was not accepted"), caller, event)
