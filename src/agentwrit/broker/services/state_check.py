"""Comparing the store with its audit log: what was deleted from it, and what was put back as it once was.

Each row is sealed, so nobody but the broker can have written it; but an old row is genuine too, and a row that is
missing says nothing. The log knows better.

The rules:

- A grant that the log saw end has ended in the store, and its revocation is there while a token of it is in time.
- A grant with a token that is in time is in the store, with no older token than the log knows; the tokens before that
  one are revoked.
- An app is in the store, no older than the log's last word on it, and inactive if it was removed.
- A key is in the store, and gone if it was revoked or has expired.

The log itself is taken to be genuine: check it first.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from agentwrit.broker.storage.base import EventQuery, Snapshot
from agentwrit.domain.audit import Event, EventType
from agentwrit.domain.audit_export import PROGRESS_EVENTS, Progress, unwatched
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.revocation import RevocationKind
from agentwrit.domain.signing_key import KeyState
from agentwrit.domain.timestamps import parse_rfc3339

PAGE: Final = 1000
ROUNDED_BY: Final = 0.000_001  # seconds: an event's time may be that much later than it was


def check(snapshot: Snapshot, now: float, *, progress: Progress = unwatched) -> None:
    """Compare a state with the log in it. `now`: Unix seconds; what is over by then may have been forgotten.

    Raises:
        TamperedRecord: something is missing, or older than the log says. Names it.
    """
    comparison = _Comparison(snapshot, now)
    total = snapshot.event_head()
    for event in _events(snapshot):
        comparison.take(event)
        if event.sequence % PROGRESS_EVENTS == 0:
            progress(event.sequence, total)
    comparison.finish()


def _events(snapshot: Snapshot) -> Iterator[Event]:
    after = 0
    while page := snapshot.events(EventQuery(after=after, limit=PAGE)):
        yield from page
        after = page[-1].sequence


class _Comparison:
    """What the log says of all that the store ought to hold. Remembers no more than what is in time."""

    def __init__(self, snapshot: Snapshot, now: float) -> None:
        self._snapshot = snapshot
        self._now = now
        self._revoked = {(entry.kind, entry.id) for entry in snapshot.revocations(now)}
        self._keys = {key.kid: key for key in snapshot.signing_keys()}
        self._exp_of_grants: dict[str, int] = {}
        self._last_word_on_apps: dict[str, Event] = {}
        self._takers: Mapping[str, Callable[[Event], None]] = {
            EventType.TOKEN_ISSUED: self._issued,
            EventType.TOKEN_RENEWED: self._renewed,
            EventType.TOKEN_RELEASED: self._ended,
            EventType.TOKEN_REVOKED: self._ended,
            EventType.APP_REGISTERED: self._app_changed,
            EventType.APP_UPDATED: self._app_changed,
            EventType.APP_SECRET_ROTATED: self._app_changed,
            EventType.SCOPES_CEILING_UPDATED: self._app_changed,
            EventType.APP_DEREGISTERED: self._app_changed,
            EventType.SIGNING_KEY_CREATED: self._key_made,
            EventType.SIGNING_KEY_EXPIRED: self._key_ended,
            EventType.SIGNING_KEY_REVOKED: self._key_ended,
        }

    def take(self, event: Event) -> None:
        taker = self._takers.get(event.event_type)
        if taker is not None:
            taker(event)

    def finish(self) -> None:
        """Check what only the end of the log tells."""
        for sid, exp in self._exp_of_grants.items():
            grant = self._snapshot.grant(sid)
            if grant is None:
                raise TamperedRecord(f"the grant {sid} was deleted: a token of it is in time")
            if grant.exp < exp:
                raise TamperedRecord(f"the grant {sid} was put back as it was before it was renewed")
        for app_id, event in self._last_word_on_apps.items():
            app = self._snapshot.app(app_id)
            if app is None:
                raise TamperedRecord(f"the app {app_id} was deleted: {event.id} knows it")
            is_removed = event.event_type == EventType.APP_DEREGISTERED
            is_older = app.updated_at < int(parse_rfc3339(event.timestamp) - ROUNDED_BY)
            if is_older or (is_removed and app.is_active):
                raise TamperedRecord(f"the app {app_id} was put back as it was before {event.id}")

    def _issued(self, event: Event) -> None:
        exp = event.data.get("exp", 0)
        if isinstance(exp, int) and exp > self._now:
            self._exp_of_grants[event.sid] = exp

    def _renewed(self, event: Event) -> None:
        previous = event.data.get("previous_jti")
        was_in_time = self._exp_of_grants.get(event.sid, 0) > self._now
        if was_in_time and (RevocationKind.TOKEN, previous) not in self._revoked:
            raise TamperedRecord(f"the end of the token {previous} was deleted: it was renewed by {event.id}")
        self._issued(event)

    def _ended(self, event: Event) -> None:
        exp = self._exp_of_grants.pop(event.sid, 0)
        grant = self._snapshot.grant(event.sid)
        if grant is not None and not grant.is_ended:
            raise TamperedRecord(f"the grant {event.sid} was put back to life: it ended with {event.id}")
        is_in_time = max(exp, 0 if grant is None else grant.exp) > self._now
        if is_in_time and (RevocationKind.GRANT, event.sid) not in self._revoked:
            raise TamperedRecord(f"the end of the grant {event.sid} was deleted: it ended with {event.id}")

    def _app_changed(self, event: Event) -> None:
        self._last_word_on_apps[event.app_id] = event

    def _key_made(self, event: Event) -> None:
        if event.data.get("kid") not in self._keys:
            raise TamperedRecord(f"the signing key {event.data.get('kid')} was deleted: {event.id} knows it")

    def _key_ended(self, event: Event) -> None:
        key = self._keys.get(str(event.data.get("kid")))
        if key is None or key.state is not KeyState.GONE:
            raise TamperedRecord(f"the signing key {event.data.get('kid')} was put back: it ended with {event.id}")
