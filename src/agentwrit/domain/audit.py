"""The audit log: every security event, in order, each chained to the previous one.

The rules:

- An event's hash is the SHA-256 of the RFC 8785 form of the event without `hash`. That form includes `prev_hash`, the
  hash of the previous event (64 zeros for the first), so altering, dropping, inserting or moving an event breaks the
  chain from there on.
- Ids count from `evt-000001` without gaps.
- The form includes its schema version (`version`). Adding a field makes a new version; old events keep theirs.
- Text chosen by a caller is stored as data in a field of its own and cannot affect where a field begins.
- The form is also the event's entry in the Merkle tree over the log (`agentwrit.domain.merkle`), so it has at most
  65,535 bytes. If an event would be larger, the lists in `data` are truncated and say so.
- An event never contains a secret, token or key.
"""

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

import msgspec

from agentwrit.domain import audit_detail, canonical, merkle, timestamps
from agentwrit.domain.errors import TamperedRecord

SCHEMA_VERSION: Final = 1
GENESIS_HASH: Final = "0" * 64
MAX_ENTRY_BYTES: Final = 65_535  # C2SP tlog-tiles: entries have a 16-bit length prefix

_KEPT_OF_A_LIST: Final = 8
_REWRITTEN: Final = "the history was rewritten: the events are not those that the checkpoint was signed over"

Data = dict[str, str | int | list[str]]


class EventType(StrEnum):
    """The type of an event. This is the complete list."""

    ADMIN_AUTH = "admin_auth"
    ADMIN_AUTH_FAILED = "admin_auth_failed"
    ADMIN_SECRET_SET = "admin_secret_set"
    OPERATOR_ADDED = "operator_added"
    OPERATOR_SECRET_ROTATED = "operator_secret_rotated"
    OPERATOR_REMOVED = "operator_removed"
    LAUNCH_TOKEN_ISSUED = "launch_token_issued"
    LAUNCH_TOKEN_DENIED = "launch_token_denied"
    AGENT_REGISTERED = "agent_registered"
    REGISTRATION_POLICY_VIOLATION = "registration_policy_violation"
    TOKEN_ISSUED = "token_issued"
    TOKEN_REVOKED = "token_revoked"
    TOKEN_REVOCATION_DENIED = "token_revocation_denied"
    TOKEN_RENEWED = "token_renewed"
    TOKEN_RELEASED = "token_released"
    TOKEN_RENEWAL_FAILED = "token_renewal_failed"
    DELEGATION_CREATED = "delegation_created"
    RESOURCE_ACCESSED = "resource_accessed"
    ACCESS_REPORT_DENIED = "access_report_denied"
    TOKEN_AUTH_FAILED = "token_auth_failed"
    TOKEN_REVOKED_ACCESS = "token_revoked_access"
    SCOPE_VIOLATION = "scope_violation"
    SCOPE_CEILING_EXCEEDED = "scope_ceiling_exceeded"
    DELEGATION_DENIED = "delegation_denied"
    DELEGATION_ATTENUATION_VIOLATION = "delegation_attenuation_violation"
    SCOPES_CEILING_UPDATED = "scopes_ceiling_updated"
    APP_REGISTERED = "app_registered"
    APP_AUTHENTICATED = "app_authenticated"
    APP_AUTH_FAILED = "app_auth_failed"
    APP_UPDATED = "app_updated"
    APP_SECRET_ROTATED = "app_secret_rotated"
    APP_SUSPENDED = "app_suspended"
    APP_RESUMED = "app_resumed"
    APP_DEREGISTERED = "app_deregistered"
    APP_RATE_LIMITED = "app_rate_limited"
    SIGNING_KEY_CREATED = "signing_key_created"
    SIGNING_KEY_ROTATED = "signing_key_rotated"
    SIGNING_KEY_EXPIRED = "signing_key_expired"
    SIGNING_KEY_REVOKED = "signing_key_revoked"
    MASTER_KEY_CHANGED = "master_key_changed"
    AUDIT_ARCHIVED = "audit_archived"
    STORE_RESTORED = "store_restored"
    STORE_PROMOTED = "store_promoted"
    ENDING_BEGUN = "ending_begun"
    ENDING_COMPLETED = "ending_completed"
    STORE_RENAMED = "store_renamed"
    STORE_TIME_SET = "store_time_set"


class Outcome(StrEnum):
    """Whether the action was carried out."""

    SUCCESS = "success"
    DENIED = "denied"


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An event before it is appended to the log.

    `detail` says in words what happened; the ids it concerns are appended to it (`agentwrit.domain.audit_detail`).
    `resource` is what was requested, usually a route. `principal` is who acted, as far as that was proven. `data` holds
    the fields specific to this type of event: strings, integers and lists of strings by name.
    """

    event_type: EventType
    outcome: Outcome = Outcome.SUCCESS
    detail: str = ""
    resource: str = ""
    principal: str = ""
    app_id: str = ""
    agent_id: str = ""
    task_id: str = ""
    orch_id: str = ""
    sid: str = ""
    deleg_depth: int = 0
    deleg_chain_hash: str = ""
    client_address: str = ""
    request_id: str = ""
    trace_id: str = ""
    data: Data = {}


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event in the log. The fields are those of `Draft`; `sequence` counts from 1."""

    sequence: int
    timestamp: str
    event_type: str
    outcome: str
    detail: str
    resource: str
    principal: str
    app_id: str
    agent_id: str
    task_id: str
    orch_id: str
    sid: str
    deleg_depth: int
    deleg_chain_hash: str
    client_address: str
    request_id: str
    trace_id: str
    data: Data
    prev_hash: str
    hash: str = ""
    version: int = SCHEMA_VERSION

    @property
    def id(self) -> str:
        return event_id(self.sequence)


def event_id(sequence: int) -> str:
    """The id of the event with this sequence number (1 for the first)."""
    return f"evt-{sequence:06d}"


def parse_event_id(text: str) -> int:
    """The sequence number of the event with this id.

    Raises:
        ValueError: `text` is not an event id.
    """
    prefix, _, digits = text.partition("-")
    if prefix != "evt" or not (digits.isascii() and digits.isdigit()) or event_id(int(digits)) != text:
        raise ValueError("not an event id")
    return int(digits)


class Head(NamedTuple):
    """The end of the log: the hash of the last event and the right edge of the Merkle tree over all events."""

    hash: str = GENESIS_HASH
    tree: merkle.Edge = merkle.Edge()

    @property
    def sequence(self) -> int:
        """The sequence number of the last event; 0 if the log is empty."""
        return self.tree.size


class Appended(NamedTuple):
    """An appended event, the new head of the log, and the tiles of the Merkle tree to be stored."""

    event: Event
    head: Head
    tiles: Sequence[merkle.Tile]


def append(draft: Draft, head: Head, *, now: float) -> Appended:
    """Append a draft to the log that ends at `head`. `now`: Unix seconds."""
    event = Event(
        sequence=head.sequence + 1,
        timestamp=timestamps.rfc3339_micros(now),
        event_type=draft.event_type._value_,  # `value` is a descriptor, and slower
        outcome=draft.outcome._value_,
        detail=audit_detail.line(
            draft.detail,
            audit_detail.names(draft.data),
            principal=draft.principal,
            app_id=draft.app_id,
            agent_id=draft.agent_id,
            task_id=draft.task_id,
            orch_id=draft.orch_id,
            sid=draft.sid,
        ),
        resource=draft.resource,
        principal=draft.principal,
        app_id=draft.app_id,
        agent_id=draft.agent_id,
        task_id=draft.task_id,
        orch_id=draft.orch_id,
        sid=draft.sid,
        deleg_depth=draft.deleg_depth,
        deleg_chain_hash=draft.deleg_chain_hash,
        client_address=draft.client_address,
        request_id=draft.request_id,
        trace_id=draft.trace_id,
        data=draft.data,
        prev_hash=head.hash,
    )
    event, form = _fitting(event)
    # Nobody else holds the event yet. A copy that includes the hash would take as long as creating the event did.
    msgspec.structs.force_setattr(event, "hash", hashlib.sha256(form).hexdigest())
    tree, tiles = head.tree.append(merkle.leaf_hash(form))
    return Appended(event, Head(event.hash, tree), tiles)


def _fitting(event: Event) -> tuple[Event, bytes]:
    """The event, with its data truncated to what fits into an entry, and the entry."""
    form = entry(event)
    data, longest = event.data, MAX_ENTRY_BYTES
    while len(form) > MAX_ENTRY_BYTES and longest:
        longest //= 16
        event = msgspec.structs.replace(event, data=cut(data, longest))
        form = entry(event)
    return event, form


class About(NamedTuple):
    """The fields of an event that say whom it is about, in the order of the event's own fields."""

    app_id: str
    agent_id: str
    task_id: str
    orch_id: str
    sid: str
    deleg_depth: int
    deleg_chain_hash: str


class Alike:
    """The common part of many events, encoded once: everything in `draft`, and the time, but not whom they are about.

    The data of each event also has the `jti` of a token, unless `draft` has one for all of them.
    """

    def __init__(self, draft: Draft, *, now: float) -> None:
        self.draft = draft
        self.timestamp = timestamps.rfc3339_micros(now)
        self._names = audit_detail.names(draft.data)
        names = sorted({"jti", *draft.data})
        self.data = _object((name, _constant(draft.data[name]) if name in draft.data else b"%b") for name in names)
        common = {
            "client_address": draft.client_address,
            "event_type": draft.event_type.value,
            "outcome": draft.outcome.value,
            "principal": draft.principal,
            "request_id": draft.request_id,
            "resource": draft.resource,
            "timestamp": self.timestamp,
            "trace_id": draft.trace_id,
            "version": SCHEMA_VERSION,
        }
        special = {"deleg_depth": b"%d", "id": b'"evt-%06d"', "prev_hash": b'"%b"'}
        self.form = _object(
            (name, _constant(common[name]) if name in common else special.get(name, b"%b")) for name in MEMBERS
        )

    def detail(self, about: About, jti: str) -> str:
        """The detail of one of these events."""
        draft = self.draft
        return audit_detail.line(
            draft.detail,
            self._names if "jti" in draft.data else [audit_detail.token(jti), *self._names],
            principal=draft.principal,
            app_id=about.app_id,
            agent_id=about.agent_id,
            task_id=about.task_id,
            orch_id=about.orch_id,
            sid=about.sid,
        )


_encode = msgspec.json.encode


def _object(members: Iterable[tuple[str, bytes]]) -> bytes:
    return b"{%b}" % b",".join(b"%b:%b" % (_constant(name), form) for name, form in members)


def _constant(value: object) -> bytes:
    """A value as JSON, escaped for use in a `%` format."""
    return _encode(value).replace(b"%", b"%%")


class Placed(NamedTuple):
    """The fields of an appended event that `Alike` and `About` do not have. `data`: as JSON."""

    sequence: int
    detail: str
    data: str
    prev_hash: str
    hash: str


class Run:
    """Appends events with a common part (`Alike`) behind `head`. Like `append`, but faster for many events."""

    def __init__(self, head: Head) -> None:
        self._hash = head.hash
        self._sequence = head.sequence
        self._tree = merkle.Growth(head.tree)
        self.tiles: list[merkle.Tile] = []

    @property
    def head(self) -> Head:
        """The current head. `tiles` has the tiles of the Merkle tree to be stored."""
        return Head(self._hash, self._tree.edge)

    def append(self, alike: Alike, about: About, jti: str) -> Placed:
        """Append one event."""
        before = self._hash
        self._sequence += 1
        app_id, agent_id, task_id, orch_id, sid, depth, chain_hash = about
        data = alike.data % (() if "jti" in alike.draft.data else _encode(jti))
        detail = alike.detail(about, jti)
        form = alike.form % (
            _encode(agent_id),
            _encode(app_id),
            data,
            _encode(chain_hash),
            depth,
            _encode(detail),
            self._sequence,
            _encode(orch_id),
            before.encode("ascii"),
            _encode(sid),
            _encode(task_id),
        )
        if len(form) > MAX_ENTRY_BYTES:
            event, form = _fitting(self._event(alike, about, jti, detail))
            data = _encode(event.data)
        self._hash = hashlib.sha256(form).hexdigest()
        self.tiles += self._tree.append(merkle.leaf_hash(form))
        return Placed(self._sequence, detail, data.decode(), before, self._hash)

    def _event(self, alike: Alike, about: About, jti: str, detail: str) -> Event:
        draft = msgspec.structs.asdict(alike.draft)
        draft |= about._asdict() | {"detail": detail, "data": {"jti": jti, **alike.draft.data}}
        draft |= {"event_type": alike.draft.event_type.value, "outcome": alike.draft.outcome.value}
        return Event(sequence=self._sequence, timestamp=alike.timestamp, prev_hash=self._hash, **draft)


def record(event: Event) -> dict[str, object]:
    """The event as exported. The SHA-256 of the RFC 8785 form of all members but `hash` is `hash`."""
    members = msgspec.structs.asdict(event)
    del members["sequence"]
    return {"id": event.id, **members}


MEMBERS: Final = tuple(
    sorted("id" if name == "sequence" else name for name in Event.__struct_fields__ if name != "hash")
)
"""The members of an entry, sorted by name as RFC 8785 requires."""

_Members: Any = msgspec.defstruct("_Members", [(name, Any) for name in MEMBERS])
_pick_members = attrgetter(*MEMBERS)


def entry(event: Event) -> bytes:
    """The bytes of an event that are hashed, its entry in the Merkle tree: the RFC 8785 form without `hash`."""
    return entry_of(_pick_members(event))


def entry_of(members: Sequence[object]) -> bytes:
    """An entry, from a value for each of MEMBERS."""
    return canonical.encode_ordered(_Members(*members))


def verify(events: Iterable[Event], *, start: Head = Head()) -> int:  # noqa: B008  # an immutable value
    """Check consecutive events that begin behind `start`. Returns their number.

    Raises:
        TamperedRecord: an event is missing, out of place or altered. The error names the first such event.
    """
    replay = Replay(start)
    for event in events:
        replay.take_event(event)
    return replay.sequence - start.sequence


class Replay:
    """Follows and checks a log event by event, starting behind `head`.

    `archived`: the last event that was archived, according to the events seen so far.
    """

    def __init__(self, head: Head = Head()) -> None:  # noqa: B008  # an immutable value
        self.sequence = head.sequence
        self.hash = head.hash
        self.archived = 0
        self._missing = head.sequence
        self._tree = merkle.Growth(head.tree)

    @property
    def head(self) -> Head:
        """The head of the log after the last checked event."""
        return Head(self.hash, self._tree.edge)

    def take(self, form: bytes, sequence: int, prev_hash: str, claimed: str | None = None) -> Sequence[merkle.Tile]:
        """Check the next event, given as its entry and its own `sequence`, `prev_hash` and hash (`claimed`).

        Returns the tiles of the Merkle tree to be stored. Without `claimed`, an altered entry is noticed only at the
        next event.

        Raises:
            TamperedRecord: the event is not the next one, or was altered.
        """
        expected = self.sequence + 1
        if sequence != expected:
            raise TamperedRecord(f"{event_id(expected)} is missing: {event_id(sequence)} stands in its place")
        found = hashlib.sha256(form).hexdigest()
        if claimed is not None and claimed != found:
            raise TamperedRecord(f"{event_id(expected)} was altered")
        if prev_hash != self.hash:
            raise TamperedRecord(f"{event_id(expected)} does not follow the event before it: one of them was altered")
        self.sequence, self.hash = expected, found
        if _SAYS_ARCHIVED in form:
            self.archived = max(self.archived, _archived_by(form))
        return self._tree.append(merkle.leaf_hash(form))

    def take_event(self, event: Event) -> Sequence[merkle.Tile]:
        """Like `take`, for an event as it is stored."""
        try:
            form = entry(event)
        except ValueError:
            form = b""
        return self.take(form, event.sequence, event.prev_hash, event.hash)

    def take_entry(self, form: bytes) -> None:
        """Like `take`, for an entry alone: sequence number and previous hash are read from it."""
        try:
            place = _read_place(form)
            sequence = parse_event_id(place.id)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise TamperedRecord(f"{event_id(self.sequence + 1)} was altered: it is no event") from None
        self.take(form, sequence, place.prev_hash)

    def check_covered(self, size: int, root: bytes) -> None:
        """Check that the log so far is the log whose checkpoint has this size and root.

        Raises:
            TamperedRecord: the end of the log was cut off, or its history was rewritten.
        """
        self._check_reached(size)
        if self.sequence > size or self._tree.edge.root() != root:
            raise TamperedRecord(_REWRITTEN)

    def check_continued(self, last: int, size: int, root: bytes, proof: Sequence[bytes]) -> None:
        """Check that the log so far, up to the event `last`, is a prefix of the log of this size and root.

        Raises:
            TamperedRecord: it is not a prefix.
        """
        self._check_reached(last)
        try:
            merkle.check_consistency(last, size, proof, self._tree.edge.root(), root)
        except TamperedRecord:
            raise TamperedRecord(_REWRITTEN) from None

    def _check_reached(self, last: int) -> None:
        if self.sequence < last:
            missing = f"{event_id(self.sequence + 1)} to {event_id(last)}"
            raise TamperedRecord(f"the log ends with {event_id(self.sequence)}: {missing} were cut off")

    def check_beginning(self) -> None:
        """Check that all events missing at the beginning of the log are events that it says were archived.

        Raises:
            TamperedRecord: other events are missing.
        """
        if self._missing > self.archived:
            missing = f"{event_id(self.archived + 1)} to {event_id(self._missing)}"
            raise TamperedRecord(f"{missing} are missing, and no event says that they were archived")


def _archived_by(form: bytes) -> int:
    """The last archived event according to an entry about an archive; 0 if the entry does not say it."""
    try:
        return parse_event_id(_read_archived(form).data.last)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return 0


_SAYS_ARCHIVED: Final = b'"event_type":"%b"' % EventType.AUDIT_ARCHIVED.encode()


class _ArchivedData(msgspec.Struct, frozen=True):
    last: str


class _Archived(msgspec.Struct, frozen=True):
    data: _ArchivedData


_read_archived = msgspec.json.Decoder(_Archived).decode


class _Place(msgspec.Struct, frozen=True):
    id: str
    prev_hash: str


_read_place = msgspec.json.Decoder(_Place).decode


def cut(data: Data, longest: int) -> Data:
    """`data`, shortened: a few items of each list, and at most `longest` characters of each text."""
    short: Data = {}
    for name, value in data.items():
        if isinstance(value, list):
            more = [f"(and {len(value) - _KEPT_OF_A_LIST} more)"] if len(value) > _KEPT_OF_A_LIST else []
            short[name] = [item[:longest] for item in value[:_KEPT_OF_A_LIST]] + more
        else:
            short[name] = value[:longest] if isinstance(value, str) else value
    return short
