"""Comparing the store with its audit log, to find rows that were deleted or replaced by older versions.

Each row is sealed, so only the broker can have written it. But an old row is genuine too, and a missing row leaves no
trace. The log shows both.

The rules:

- A grant that ended according to the log has ended in the store, and its revocation is there while one of its tokens is
  unexpired.
- A grant with an unexpired token is in the store, with the newest token in the log; its previous tokens are revoked.
- An app is in the store, no older than the log's last event about it, and not active if that was its suspension or
  removal. The same holds for operators.
- An app with a limit of live agents has as many live agents as its count says.
- A key is in the store, and gone if it was revoked or has expired.
- An ending that began is over, or is in the store to be continued.
- The feed's epoch is the one of the last restore or database promotion, if there was one.
- The stored number of events of each type is their real number.

The log itself is assumed to be genuine: verify it first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from agentwrit.broker.storage.base import EventQuery, GrantQuery, Snapshot
from agentwrit.domain import operator
from agentwrit.domain.app import App
from agentwrit.domain.audit import Event, EventType
from agentwrit.domain.audit_export import PROGRESS_EVENTS, Progress, unwatched
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.operator import Operator
from agentwrit.domain.revocation import RETENTION_SECONDS, RevocationKind
from agentwrit.domain.signing_key import KeyState
from agentwrit.domain.timestamps import parse_rfc3339

PAGE: Final = 1000
ROUNDED_BY: Final = 0.000_001  # seconds: the possible rounding of an event's time


def check(snapshot: Snapshot, now: float, *, progress: Progress = unwatched) -> None:
    """Compare a state with its log. `now`: Unix seconds; expired rows may have been deleted by then.

    Raises:
        TamperedRecord: something is missing, or older than the log says. The message names it.
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


class _Token(NamedTuple):
    jti: str
    exp: int


class _Comparison:
    """What the log says the store should hold. Its memory is bounded by what is unexpired."""

    def __init__(self, snapshot: Snapshot, now: float) -> None:
        self._snapshot = snapshot
        self._now = now
        self._revoked = {(entry.kind, entry.id) for entry in snapshot.revocations(now)}
        self._keys = {key.kid: key for key in snapshot.signing_keys()}
        self._tokens: dict[str, _Token] = {}  # by the grant's sid
        self._last_word_on_apps: dict[str, Event] = {}
        self._last_word_on_operators: dict[str, Event] = {}
        self._last_epoch: Event | None = None
        self._endings: dict[str, Event] = {}  # those that are not over
        self._seen: Counter[str] = Counter()  # events of each type
        self._takers: Mapping[str, Callable[[Event], None]] = {
            EventType.TOKEN_ISSUED: self._issued,
            EventType.TOKEN_RENEWED: self._renewed,
            EventType.TOKEN_RELEASED: self._ended,
            EventType.TOKEN_REVOKED: self._ended,
            EventType.APP_REGISTERED: self._app_changed,
            EventType.APP_UPDATED: self._app_changed,
            EventType.APP_SECRET_ROTATED: self._app_changed,
            EventType.SCOPES_CEILING_UPDATED: self._app_changed,
            EventType.APP_SUSPENDED: self._app_changed,
            EventType.APP_RESUMED: self._app_changed,
            EventType.APP_DEREGISTERED: self._app_changed,
            EventType.ADMIN_SECRET_SET: self._operator_changed,
            EventType.OPERATOR_ADDED: self._operator_changed,
            EventType.OPERATOR_SECRET_ROTATED: self._operator_changed,
            EventType.OPERATOR_REMOVED: self._operator_changed,
            EventType.SIGNING_KEY_CREATED: self._key_made,
            EventType.SIGNING_KEY_EXPIRED: self._key_ended,
            EventType.SIGNING_KEY_REVOKED: self._key_ended,
            EventType.STORE_RESTORED: self._epoch_began,
            EventType.STORE_PROMOTED: self._epoch_began,
            EventType.ENDING_BEGUN: self._ending_begun,
            EventType.ENDING_COMPLETED: self._ending_completed,
        }

    def take(self, event: Event) -> None:
        self._seen[event.event_type] += 1
        taker = self._takers.get(event.event_type)
        if taker is not None:
            taker(event)

    def finish(self) -> None:
        """Check what can only be checked at the end of the log."""
        for sid, token in self._tokens.items():
            grant = self._snapshot.grant(sid)
            if grant is None:
                raise TamperedRecord(f"the grant {sid} was deleted: a token of it is in time")
            if grant.jti != token.jti:
                raise TamperedRecord(f"the grant {sid} was put back as it was before it was renewed")
        for app_id, event in self._last_word_on_apps.items():
            app = self._snapshot.app(app_id)
            if app is None:
                raise TamperedRecord(f"the app {app_id} was deleted: {event.id} knows it")
            is_barred = event.event_type in (EventType.APP_SUSPENDED, EventType.APP_DEREGISTERED)
            if _is_older(app, event) or (is_barred and app.is_active):
                raise TamperedRecord(f"the app {app_id} was put back as it was before {event.id}")
            self._check_usage(app)
        for name, event in self._last_word_on_operators.items():
            self._check_operator(name, event)
        if self._last_epoch is not None:
            self._check_epoch(self._last_epoch)
        self._check_endings()
        self._check_counts()

    def _check_counts(self) -> None:
        for event_type in EventType:
            counted, seen = self._snapshot.event_count(EventQuery(event_type=event_type)), self._seen[event_type]
            if counted != seen:
                raise TamperedRecord(f"{counted} events of the type {event_type} are counted, and there are {seen}")

    def _issued(self, event: Event) -> None:
        exp = event.data.get("exp", 0)
        if isinstance(exp, int) and exp > self._now:
            self._tokens[event.sid] = _Token(str(event.data.get("jti")), exp)
        else:
            self._tokens.pop(event.sid, None)  # a renewal may shorten the grant

    def _renewed(self, event: Event) -> None:
        previous = event.data.get("previous_jti")
        if event.sid in self._tokens and (RevocationKind.TOKEN, previous) not in self._revoked:
            raise TamperedRecord(f"the end of the token {previous} was deleted: it was renewed by {event.id}")
        self._issued(event)

    def _ended(self, event: Event) -> None:
        if "count" in event.data:
            return  # an event about an operator's action, by that operator's login: each ended grant has its own event
        token = self._tokens.pop(event.sid, None)
        grant = self._snapshot.grant(event.sid)
        if grant is not None and not grant.is_ended:
            raise TamperedRecord(f"the grant {event.sid} was put back to life: it ended with {event.id}")
        is_in_time = token is not None or (grant is not None and grant.exp > self._now)
        if is_in_time and (RevocationKind.GRANT, event.sid) not in self._revoked:
            raise TamperedRecord(f"the end of the grant {event.sid} was deleted: it ended with {event.id}")

    def _app_changed(self, event: Event) -> None:
        self._last_word_on_apps[event.app_id] = event

    def _operator_changed(self, event: Event) -> None:
        self._last_word_on_operators[str(event.data.get("name", operator.SUBJECT))] = event

    def _check_usage(self, app: App) -> None:
        """Check that the count of an app's agents equals their number at the time of the count."""
        if app.max_live_agents is None:
            return
        usage = self._snapshot.app_usage(app.app_id)
        if usage is None or usage.counted_behind is not None or usage.counted_at <= self._now - RETENTION_SECONDS:
            return  # counted anew when needed: counted grants may have been deleted
        query = GrantQuery(live_at=usage.counted_at, is_counted=True, app_id=app.app_id)
        live = len(self._snapshot.grants(query))
        if live != usage.live_agents:
            raise TamperedRecord(
                f"{usage.live_agents} live agents of the app {app.app_id} are counted, and there are {live}"
            )

    def _epoch_began(self, event: Event) -> None:
        self._last_epoch = event

    def _ending_begun(self, event: Event) -> None:
        self._endings[str(event.data.get("ending"))] = event

    def _ending_completed(self, event: Event) -> None:
        self._endings.pop(str(event.data.get("ending")), None)

    def _check_endings(self) -> None:
        left = {ending.id: ending for ending in self._snapshot.endings()}
        for ending_id, event in self._endings.items():
            if ending_id not in left:
                raise TamperedRecord(f"the ending that began with {event.id} was deleted: it is not over")
        for ending_id in left:
            if ending_id not in self._endings:
                raise TamperedRecord(f"the ending {ending_id} was put back: it is over")

    def _check_epoch(self, event: Event) -> None:
        if event.data.get("feed_epoch") != self._snapshot.feed_epoch():
            raise TamperedRecord(f"the feed's epoch was put back: {event.id} gave it another one")

    def _check_operator(self, name: str, event: Event) -> None:
        stored = self._snapshot.operator(name)
        if stored is None:
            raise TamperedRecord(f"the operator {name} was deleted: {event.id} knows their secret")
        is_removed = event.event_type == EventType.OPERATOR_REMOVED
        if _is_older(stored, event) or (is_removed and stored.is_active):
            raise TamperedRecord(f"the operator {name} was put back as it was before {event.id}")

    def _key_made(self, event: Event) -> None:
        if event.data.get("kid") not in self._keys:
            raise TamperedRecord(f"the signing key {event.data.get('kid')} was deleted: {event.id} knows it")

    def _key_ended(self, event: Event) -> None:
        key = self._keys.get(str(event.data.get("kid")))
        if key is None or key.state is not KeyState.GONE:
            raise TamperedRecord(f"the signing key {event.data.get('kid')} was put back: it ended with {event.id}")


def _is_older(stored: App | Operator, event: Event) -> bool:
    """Whether this state precedes the one that the event records."""
    revision = event.data.get("revision")
    if isinstance(revision, int):
        return stored.revision < revision
    return stored.updated_at < int(parse_rfc3339(event.timestamp) - ROUNDED_BY)
