"""The audit log over the wire, for auditors: read, checked on arrival, and proven.

What a broker says about its log is trusted only as far as a checkpoint covers it that was signed by one of the
auditor's keys.
"""

import base64
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from agentwrit.client import shapes, steps
from agentwrit.client.driver import Connected, Driver
from agentwrit.client.exchange import MAX_ANSWER_BYTES, HttpRequest, HttpResponse, Steps
from agentwrit.client.policy import Login
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.domain import audit, audit_archive, audit_export, audit_proof, checkpoint, merkle, tiles
from agentwrit.domain.audit import Head
from agentwrit.domain.audit_export import PROGRESS_EVENTS, Ending, Progress, Verified, unwatched
from agentwrit.domain.checkpoint import Checkpoint
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.merkle import TileReader
from agentwrit.domain.note import VerifierKey
from agentwrit.domain.tiles import EntryBundle, HashTile
from agentwrit.errors import TransportError

if TYPE_CHECKING:
    from agentwrit.archive_files import Checked

AUDIT: Final = "/v1/audit"
MAX_BUNDLE_BYTES: Final = merkle.TILE_WIDTH * (audit.MAX_ENTRY_BYTES + 2)
LOG_SECONDS: Final = 30.0  # the default for a call: a query may read all of a long log
FETCHED_AHEAD: Final = 4  # bundles: the broker reads the next ones while one is checked


class Archives(NamedTuple):
    """The event up to which the log was archived, and the event up to which the broker has removed it."""

    archived: int
    removed: int


class AuditLog(Connected):
    """The audit log of the broker at `broker_url`. Checkpoints and proofs need no secret; events need an operator's.

    `operator`: the operator's name, if it is not the first operator; `timeout`: seconds for a call; `cert`: a client
    certificate, as for `AgentWritApp`. Every method raises ProblemResponseError if the broker refuses, and
    TransportError if it was not reached.
    """

    @discreet
    def __init__(
        self,
        broker_url: str,
        admin_secret: str | None = None,
        *,
        operator: str | None = None,
        timeout: float = LOG_SECONDS,
        cert: Any = None,
    ) -> None:
        secret = None if admin_secret is None else Secret(admin_secret)
        login = None if secret is None else Login(lambda: steps.operator_login(secret, operator))
        self._is_operator = login is not None
        self._driver = Driver(broker_url, timeout=timeout, login=login, cert=cert)

    def checkpoint(self) -> str:
        """The newest checkpoint. For an operator, the broker makes one that covers all events so far."""
        method = "POST" if self._is_operator else "GET"
        return _text(self._ask(f"{AUDIT}/checkpoint", method=method))

    def verifier_keys(self) -> list[VerifierKey]:
        """The keys that have signed checkpoints and were not revoked, as the broker names them.

        They show that a log is intact, but not whose log it is: keep the expected keys elsewhere.
        """
        listed = steps.read_object(self._ask(f"{AUDIT}/keys")).get("keys")
        try:
            return [
                VerifierKey.parse(key["verifier_key"])
                for key in listed or []
                if key["state"] != "next" and not key["revoked_at"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise TransportError("the answer does not list the keys of checkpoints: is this a broker?") from None

    def events(self, filters: Mapping[str, str | int | None]) -> dict[str, Any]:
        """A page of events, as `events` and `total`. `filters`: the query of GET /v1/audit/events."""
        query = urlencode({name: value for name, value in filters.items() if value is not None})
        return shapes.check(steps.read_object(self._ask(f"{AUDIT}/events?{query}")), shapes.Events)

    def entries(self, size: int, *, after: int = 0) -> Iterator[bytes]:
        """The entries after the event `after`, up to the event `size`, read in the standard's entry bundles."""
        numbers = range(after // merkle.TILE_WIDTH, -(-size // merkle.TILE_WIDTH))
        wanted = (EntryBundle(number, merkle.width(0, number, size)) for number in numbers)
        with ThreadPoolExecutor(2) as threads:
            coming = deque(threads.submit(self._bundle, bundle) for bundle in islice(wanted, FETCHED_AHEAD))
            passed_over = after % merkle.TILE_WIDTH
            while coming:
                entries = list(tiles.unbundle(coming.popleft().result()))
                coming.extend(threads.submit(self._bundle, bundle) for bundle in islice(wanted, 1))
                yield from entries[passed_over:]
                passed_over = 0

    def archives(self) -> "Archives":
        """How far the log was archived, and how far its events were removed."""
        answer = steps.read_object(self._ask(f"{AUDIT}/archives"))
        try:
            listed, removed = answer["archives"], answer["removed"]
            archived = audit.parse_event_id(listed[-1]["last"]) if listed else 0
            return Archives(archived, 0 if removed is None else audit.parse_event_id(removed))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise TransportError("the answer does not list archives: is this a broker?") from None

    def record_archive(self, archived: "Checked") -> None:
        """Tell the broker that these events are durable elsewhere, so that it removes them."""
        body = {**archived._asdict(), "first": audit.event_id(archived.first), "last": audit.event_id(archived.last)}
        self._ask(f"{AUDIT}/archives", method="POST", body=body)

    def beginning(self, after: int, covered: Checkpoint) -> Head:
        """The log's head after the event `after`, from its tiles. Checking the log against `covered` proves it."""
        if not after:
            return Head()
        entry = self._entry(after)
        return audit_archive.beginning(entry, after, self._tiles(covered))

    def archive(self, signed: str, covered: Checkpoint, after: int, last: int) -> Iterator[bytes]:
        """The lines of the archive of the events after `after`, up to `last`. `signed`: `covered` in signed form."""
        proof = merkle.consistency_proof(last, covered.size, self._tiles(covered))
        start = self.beginning(after, covered)
        return audit_export.write(signed, self.entries(last, after=after), start=start, ending=Ending(last, proof))

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """The proof that the log of `new` events continues the log of `old` events."""
        query = urlencode({"old": old, "new": new})
        return _hashes(steps.read_object(self._ask(f"{AUDIT}/proof/consistency?{query}")))

    def prove(self, event_id: str, keys: Sequence[VerifierKey], *, entry: bytes | None = None) -> str:
        """A proof of one event, checked before it is returned. `entry`: the event's entry, if it was archived.

        Raises:
            TamperedRecord: the broker's proof is not valid.
        """
        self.checkpoint()  # the event may be newer than the newest checkpoint
        answer = steps.read_object(self._ask(f"{AUDIT}/proof/inclusion?{urlencode({'event': event_id})}"))
        index, signed = answer.get("index"), answer.get("checkpoint")
        if not isinstance(index, int) or not isinstance(signed, str) or event_id != audit.event_id(index + 1):
            raise TransportError("the answer is no proof of this event: is this a broker?")
        if entry is None:
            entry = self._entry(index)
        proof = audit_proof.write(entry, index, _hashes(answer), signed)
        audit_proof.check(proof, keys)
        return proof

    def verify(self, keys: Sequence[VerifierKey], *, progress: Progress = unwatched) -> Verified:
        """Check the events that the broker still stores against its newest checkpoint.

        Raises:
            TamperedRecord: the log is not the one that was signed. The message names the first wrong event.
        """
        covered = checkpoint.read(self.checkpoint(), keys)
        start = self.beginning(self.archives().removed, covered)
        replay = audit.Replay(start)
        for _ in self.checked_entries(covered, replay, progress=progress):
            pass
        return Verified(start, replay.head, covered)

    def checked_entries(
        self, covered: Checkpoint, replay: audit.Replay, *, progress: Progress = unwatched
    ) -> Iterator[bytes]:
        """The entries that a checkpoint covers, each after a check that it continues the previous one.

        `replay`: on entry, where the stored log begins; at the end, where it ends.

        Raises:
            TamperedRecord: the log is not the one that was signed. The message names the first wrong event.
        """
        before = b""
        for entry in self.entries(covered.size, after=replay.sequence):
            try:
                replay.take_entry(entry)
            except TamperedRecord:
                if before:
                    self._check_kept(replay.sequence, before)
                raise
            if replay.sequence % PROGRESS_EVENTS == 0:
                progress(replay.sequence, covered.size)
            before = entry
            yield entry
        replay.check_covered(covered.size, covered.root)
        replay.check_beginning()

    def _tiles(self, covered: Checkpoint) -> TileReader:
        def read(level: int, number: int) -> bytes:
            tile = HashTile(level, number, merkle.width(level, number, covered.size))
            return self._ask(f"{AUDIT}/tile/{tile.path}").body

        return read

    def _check_kept(self, sequence: int, entry: bytes) -> None:
        """Check that this is the entry of the event `sequence` whose hash the broker keeps.

        Raises:
            TamperedRecord: it is not.
        """
        number, at = divmod(sequence - 1, merkle.TILE_WIDTH)
        kept = self._ask(f"{AUDIT}/tile/{HashTile(0, number, at + 1).path}").body
        if kept[-merkle.HASH_BYTES :] != merkle.leaf_hash(entry):
            raise TamperedRecord(f"{audit.event_id(sequence)} was altered")

    def _entry(self, index: int) -> bytes:
        entries = list(self.entries(index + 1, after=index))
        if len(entries) != 1:
            raise TransportError(f"the answer does not hold {audit.event_id(index + 1)}: is this a broker?")
        return entries[0]

    def _bundle(self, bundle: EntryBundle) -> bytes:
        return self._ask(f"{AUDIT}/tile/{quote(bundle.path)}", max_bytes=MAX_BUNDLE_BYTES).body

    def _ask(
        self, path: str, *, method: str = "GET", body: object = None, max_bytes: int = MAX_ANSWER_BYTES
    ) -> HttpResponse:
        request = HttpRequest(method, path, json=body, is_idempotent=True, max_bytes=max_bytes)
        return self._driver.run(_ask(request, is_operator=self._is_operator))


def _ask(request: HttpRequest, *, is_operator: bool) -> Steps[HttpResponse]:
    response = (yield from steps.logged_in(request)) if is_operator else (yield request)
    steps.check(response)
    return response


def _text(response: HttpResponse) -> str:
    try:
        return response.body.decode("utf-8")
    except UnicodeDecodeError:
        raise TransportError("the answer is not text: is this a broker?") from None


def _hashes(answer: Mapping[str, Any]) -> list[bytes]:
    try:
        return [base64.b64decode(value, validate=True) for value in answer["proof"]]
    except (KeyError, TypeError, ValueError):
        raise TransportError("the answer is no proof: is this a broker?") from None
