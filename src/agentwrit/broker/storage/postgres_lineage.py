"""One history: whether what a connection leads to goes on from what this process has seen.

A database can have two pasts: a standby takes over that lacks a commit, a backup is put back, a copy is made.

The rules:

- What a process has seen last is one for all its connections, and for those of the process before it on this machine
  (`postgres_memory`). It moves on with everything that the database says, and with its own commits, before anybody is
  told of either.
- A new connection is used only if it leads to a primary that still has the event that was seen last, with its hash, and
  no less of the feed. Whoever has seen an event of a history never goes on with another (`OtherHistory`).
- The store says in which database it is (`History`): the system with its database and table, which no copy shares, and
  the timeline, which PostgreSQL changes whenever a server ends a recovery and goes on by itself. In another system
  nobody goes on until the store was told that it was restored (`OtherSystem`).
- On a later timeline the store has to be settled first (`Unsettled`): commits may be lost that a standby did not have.
  None is if a process vouches for it: it finds what it has seen, that was not long ago, and the server waited for its
  standbys with each commit. Then the feed begins another epoch, and all else goes on. Otherwise all that was granted
  before ends, as it does in a store that was restored from a backup.
- Whoever vouches may not know of another's last commit. So whoever finds that a promotion lost what it has seen lets
  all that was granted end, even if others have gone on by then. It goes on itself when it is started again.
- A session answers for itself (`Link.mark`): behind a pooler that changes sessions between transactions, nothing holds.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Self

import psycopg

from agentwrit.broker.storage.postgres_link import POOLED, Link
from agentwrit.broker.storage.postgres_rows import State
from agentwrit.broker.storage.sealing import Sealer
from agentwrit.broker.storage.sql import Session
from agentwrit.domain import audit
from agentwrit.domain.errors import TamperedRecord, Unavailable

VOUCHING_SECONDS: Final = 300  # how long ago, by the database's time, whoever vouches may have seen the last commit

# The database, and the table in it: a dump that is restored is another table, in whatever database.
SYSTEM: Final = (
    "concat_ws('/', (SELECT system_identifier FROM pg_control_system()),"
    " (SELECT oid FROM pg_database WHERE datname = current_database()), 'cluster'::regclass::oid)"
)
# That of the log which the server writes: what the control file says may be that of before for as long as a checkpoint
# takes. In hexadecimal digits.
TIMELINE: Final = "CASE WHEN pg_is_in_recovery() THEN '0' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END"
# What a standby was only sent (`remote_write`), its machine may lose.
_IS_SYNCHRONOUS: Final = (
    "current_setting('synchronous_standby_names') <> ''"
    " AND current_setting('synchronous_commit') IN ('on', 'remote_apply')"
)
_NOW: Final = "extract(epoch FROM clock_timestamp())::float8"

# Asked by every batch, barrier and reading: no more than what may change in a session. {0}: the text of the history as
# it is known; {1}: the session's mark.
AT_A_GLANCE: Final = (
    f"state, {_NOW}, history = {{0}} AND NOT pg_is_in_recovery(),"
    f" current_setting('agentwrit.session', true) = {{1}}, {_IS_SYNCHRONOUS}"
)
GLANCE: Final = f"SELECT {AT_A_GLANCE} FROM cluster WHERE one = 1"

# Asked by every new connection. {0}: the place of the event that was seen last.
SURVEY: Final = (
    f"SELECT pg_is_in_recovery(), {SYSTEM}, {TIMELINE}, {_IS_SYNCHRONOUS}, {_NOW}, state, history,"
    " (SELECT hash FROM events WHERE sequence = {0}), (SELECT coalesce(min(sequence), 0) FROM events)"
    " FROM cluster WHERE one = 1"
)


class OtherHistory(TamperedRecord):
    """What was seen is not in the database's past, or was put back: acknowledged commits are lost there."""


class OtherSystem(TamperedRecord):
    """The database is a copy, or a backup that was restored by other means, and was not told so."""


class NotThePrimary(psycopg.OperationalError):
    """The connection leads to a standby."""


class SharedSession(psycopg.OperationalError):
    """The connection leads to a session that is not its own alone."""


class Stale(psycopg.OperationalError):
    """What was known of the store when the connection was made is not so any more: it is to be made anew."""


class Unsettled(Unavailable):
    """The server is on a later timeline than its store knows of."""

    def __init__(self) -> None:
        super().__init__(
            "the database server was promoted, and no broker has gone on with its store yet", cause="unsettled"
        )


class History(NamedTuple):
    """Where the store says that it is, and when all that had been granted ended with a restore (Unix seconds, or 0)."""

    system: str
    timeline: int
    ended_at: float = 0.0

    def sealed(self, sealer: Sealer) -> str:
        """The text of the column."""
        body = f"{self.system} {self.timeline} {self.ended_at!r}"
        return f"{body} {sealer.mac('history', body.encode('ascii')).hex()}"

    @classmethod
    def opened(cls, text: object, sealer: Sealer) -> Self:
        """What the column says.

        Raises:
            TamperedRecord: the broker did not write it, or it is missing.
        """
        body, _, mac = str(text or "").rpartition(" ")
        try:
            sealer.check("history", body.encode("utf-8"), bytes.fromhex(mac))
            system, timeline, ended_at = body.split(" ")
            return cls(system, int(timeline), float(ended_at))
        except ValueError:
            raise TamperedRecord("what the store says of its history was altered outside the broker") from None


class Seen(NamedTuple):
    """What was seen last, whether the server waited for standbys then, and its timeline; 0 if that is not known."""

    state: State = State()
    is_synchronous: bool = False
    timeline: int = 0


class Glance(NamedTuple):
    """What a session says now: the state, the database's time, and whether commits wait for standbys."""

    state: State
    now: float
    is_synchronous: bool


class Survey(NamedTuple):
    """What a server and the store in it say of themselves. `found`: the hash of the event that was asked for, if it is
    there; `first`: the oldest event that is there; `text`: of the history, as it is stored.
    """

    is_standby: bool
    system: str
    timeline: int
    is_synchronous: bool
    now: float
    state: State
    history: History
    text: str
    found: str | None
    first: int

    @classmethod
    def of(cls, row: Sequence[Any] | None, sealer: Sealer) -> Self:
        """What a row of `SURVEY` says.

        Raises:
            TamperedRecord: the broker did not write it.
        """
        if row is None:
            raise TamperedRecord("the row of the cluster's state is missing")
        is_standby, system, timeline, is_synchronous, now, state, history, found, first = row
        return cls(
            is_standby,
            system,
            int(timeline, 16),
            is_synchronous,
            now,
            State.opened((state,), sealer),
            History.opened(history, sealer),
            str(history),
            found,
            first,
        )


class Lineage:
    """What this process has seen, and of which history. Threads may share it. `keep`: told of what is seen, at once.

    Without anything seen (None) it knows no history yet, and can vouch for nothing. `lost`: what was seen, and is known
    not to have outlived a promotion.
    """

    def __init__(
        self,
        sealer: Sealer,
        seen: Seen | None = None,
        keep: Callable[[Seen], object] | None = None,
        lost: Seen | None = None,
    ) -> None:
        self._sealer = sealer
        self._seen = seen
        self._keep = keep
        self._lock = threading.Lock()
        self._timeline = 0 if seen is None else seen.timeline
        self.text = ""  # of the history of the store that was admitted last, as it is stored
        self.lost = lost

    @property
    def seen(self) -> Seen | None:
        return self._seen

    def saw(self, state: State, *, is_synchronous: bool) -> None:
        """Move on to what was seen, unless more was seen meanwhile."""
        with self._lock:
            before = self._seen
            if before is not None and state.sequence < before.state.sequence:
                return
            self._seen = Seen(state, is_synchronous, self._timeline)
            if self._keep is not None and self._seen != before:
                self._keep(self._seen)

    def glance(self, row: Sequence[Any] | None, before: Seen | None) -> Glance:
        """Take in a row of `GLANCE`. `before`: what had been seen when it was asked for.

        Raises:
            Stale, SharedSession: the connection is not to be used any more.
            TamperedRecord: the store is not as brokers left it.
        """
        if row is None:
            raise TamperedRecord("the row of the cluster's state is missing")
        state_text, now, is_ours, is_own_session, is_synchronous = row
        if not is_own_session:
            raise SharedSession(POOLED)
        if not is_ours:
            raise Stale("the server or its store changed")
        state = State.opened((state_text,), self._sealer)
        if before is not None:
            _check_follows(state, before.state)
        self.saw(state, is_synchronous=is_synchronous)
        return Glance(state, now, is_synchronous)

    def connect(self, url: str) -> Link:
        """A new connection that may be used.

        Raises:
            NotThePrimary, OtherSystem, OtherHistory, Unsettled: see `admit`.
            psycopg.Error: there is none to be had.
        """
        link = Link.connect(url)
        try:
            before = self._seen
            self.admit(survey(link, self._sealer, before), before)
        except BaseException:
            link.close()
            raise
        return link

    def admit(self, survey: Survey, before: Seen | None) -> None:
        """Let a new connection be used. `before`: what had been seen when it was asked.

        Raises:
            NotThePrimary, OtherSystem, OtherHistory: see `check`.
            Unsettled: nobody may go on yet.
        """
        try:
            check(survey, before)
        except OtherHistory:
            if before is not None and is_lost(survey, before):
                self.lost = before
            raise
        if survey.timeline != survey.history.timeline:
            raise Unsettled
        self.text = survey.text
        self._timeline = survey.timeline
        self.saw(survey.state, is_synchronous=survey.is_synchronous)

    def vouches(self, survey: Survey) -> bool:
        """Whether nothing that anybody acknowledged can be lost on a new timeline."""
        seen = self._seen
        return seen is not None and seen.is_synchronous and survey.now - seen.state.now <= VOUCHING_SECONDS

    def knows_of_loss(self, survey: Survey) -> bool:
        """Whether nobody can vouch for that: with the last commits the server did not wait."""
        seen = self._seen
        return seen is not None and not seen.is_synchronous and survey.now - seen.state.now <= VOUCHING_SECONDS


def is_lost(survey: Survey, seen: Seen) -> bool:
    """Whether what was seen was lost by a promotion since, and all that had been granted has not ended for it yet. What
    is on the same timeline was put back, which nobody but an operator can judge; or, if its store was never settled
    there, it is another standby, which did not know that there was a timeline of this number.
    """
    is_unsettled = survey.history.timeline < survey.timeline
    is_after = seen.timeline < survey.timeline or (is_unsettled and seen.timeline == survey.timeline)
    return bool(seen.timeline) and is_after and seen.state.now >= survey.history.ended_at


def survey(session: Session, sealer: Sealer, seen: Seen | None = None) -> Survey:
    """Ask a server and its store, with the hash of what was seen.

    Raises:
        TamperedRecord: the broker did not write what they say.
    """
    place = 0 if seen is None else seen.state.sequence
    return Survey.of(session.execute(SURVEY.format("?"), (place,)).fetchone(), sealer)


def check(survey: Survey, before: Seen | None) -> None:
    """Refuse what nobody may go on with who has seen this, settled or not.

    Raises:
        NotThePrimary: it is a standby.
        OtherSystem: it is a copy.
        OtherHistory: its past is another one.
    """
    if survey.is_standby:
        raise NotThePrimary("the server is a standby")
    if survey.system != survey.history.system or survey.timeline < survey.history.timeline:
        raise OtherSystem(
            "the database is a copy of the one that the store was in, or a backup of it:"
            " run `agentwrit store restored`, and start the brokers then"
        )
    if before is not None:
        _check_timeline(survey, before)
        _check_continues(survey, before.state)


def _check_timeline(survey: Survey, seen: Seen) -> None:
    if survey.timeline < seen.timeline:
        raise OtherHistory(
            f"the server is on timeline {survey.timeline}, and this broker has seen timeline {seen.timeline}:"
            " a standby took over from it. Fence it; or, if it is the one to go on with, stop all brokers,"
            " run `agentwrit store restored`, and start them again"
        )


def _check_continues(survey: Survey, seen: State) -> None:
    _check_follows(survey.state, seen)
    is_archived = seen.sequence < survey.first  # then it is known only that the log has gone on for long
    if seen.sequence and not is_archived and survey.found != seen.hash:
        raise OtherHistory(
            f"{audit.event_id(seen.sequence)} is not the event that this broker has seen, so commits that were"
            " acknowledged are lost. Stop all brokers, run `agentwrit store restored`, and start them again"
        )


def _check_follows(state: State, before: State) -> None:
    """Refuse a state that is older than one that was seen, or another one.

    Raises:
        OtherHistory: it is.
    """
    is_older = state.sequence < before.sequence or state.feed_head < before.feed_head
    if is_older or (state.sequence == before.sequence and state.hash != before.hash):
        raise OtherHistory(
            f"the database was put back: it ended with {audit.event_id(before.sequence)}, and ends with"
            f" {audit.event_id(state.sequence)} now, so commits that were acknowledged are lost. Stop all brokers, run"
            " `agentwrit store restored`, and start them again"
        )
