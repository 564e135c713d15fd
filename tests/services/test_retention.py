"""Archiving by schedule: what is old leaves the store once a day, whatever happens on the way."""

from itertools import pairwise
from pathlib import Path

import pytest

from agentwrit import archive_files
from agentwrit.broker.keystore import KeyWrap, MasterKey
from agentwrit.broker.services.archives import ArchiveService
from agentwrit.broker.services.checkpoints import Checkpoints
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.keys import KeyRings
from agentwrit.broker.services.retention import DAY_SECONDS, Retention
from agentwrit.broker.storage.base import EventQuery
from agentwrit.domain import audit_export
from agentwrit.domain.audit import Draft, EventType
from agentwrit.domain.audit_archive import Archive
from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.note import VerifierKey
from tests.storage.conftest import Subject
from tests.storage.conftest import subject as subject  # the fixture

DAYS = 30
ISSUED = Draft(event_type=EventType.TOKEN_ISSUED)


class Setup:
    """A store that keeps events for thirty days, and a directory for those that are older."""

    def __init__(self, subject: Subject, directory: Path) -> None:
        self.subject = subject
        self.directory = directory
        rings = subject.run(KeyRings.load(subject.store, KeyWrap(MasterKey(b"m" * 32))))
        self.checkpoints = Checkpoints(subject.store, rings.checkpoints, "log")
        self.archives = ArchiveService(subject.store)
        clock = subject.time.clock()
        self.retention = Retention(subject.store, clock, self.checkpoints, self.archives, directory, DAYS)
        self.keys = [VerifierKey("log", rings.checkpoints.signer.public_key)]

    def grow(self, events: int) -> None:
        self.subject.write(lambda t: [t.record(ISSUED) for _ in range(events)])

    def pass_days(self, days: float) -> None:
        self.subject.time.wall += days * DAY_SECONDS
        self.subject.time.monotonic += days * DAY_SECONDS

    def archive(self) -> bool:
        """A round of each of the tasks."""
        is_done = bool(self.subject.run(self.retention.round()))
        self.subject.run(self.archives.prune())
        self.subject.run(self.checkpoints.make())
        self.subject.run(self.archives.prune())
        return is_done

    def known(self) -> tuple[int, list[Archive]]:
        pruned, archives = self.subject.run(self.archives.known())
        return pruned, list(archives)


@pytest.fixture
def setup(subject: Subject, tmp_path: Path) -> Setup:
    return Setup(subject, tmp_path / "archive")


def test_events_leave_the_store_in_whole_tiles_when_they_are_old(setup: Setup) -> None:
    setup.grow(600)
    assert not setup.archive()
    setup.pass_days(DAYS + 1)
    setup.grow(300)
    assert setup.archive()
    pruned, [archive] = setup.known()
    assert (pruned, archive.first, archive.last) == (512, 1, 512)
    assert setup.subject.read(lambda s: s.events(EventQuery(limit=1)))[0].sequence == 513
    assert setup.subject.read(lambda s: s.event_count()) == setup.subject.read(lambda s: s.event_head()) - 512
    path = setup.directory / archive.file
    assert archive_files.check(path, setup.keys).sha256 == archive.sha256
    assert not setup.archive()


def test_archives_follow_one_another_a_day_apart(setup: Setup) -> None:
    setup.grow(300)
    setup.pass_days(DAYS + 1)
    assert setup.archive()
    setup.grow(600)
    setup.pass_days(DAYS)
    setup.grow(600)
    assert setup.archive()
    setup.pass_days(DAYS)
    setup.grow(1)
    assert setup.archive()
    pruned, archives = setup.known()
    assert [archive.first for archive in archives[1:]] == [archive.last + 1 for archive in archives[:-1]]
    assert pruned == archives[-1].last
    verified = []
    for path in sorted(setup.directory.iterdir()):
        with path.open("rb") as file:
            verified.append(audit_export.verify(file, setup.keys))
    for before, then in pairwise(verified):
        audit_export.check_joined(before, then)


def test_less_than_a_day_after_an_archive_there_is_no_other(setup: Setup) -> None:
    setup.grow(300)
    setup.pass_days(0.5)
    setup.grow(300)
    setup.pass_days(DAYS - 0.4)
    assert setup.archive()
    setup.pass_days(0.9)
    assert not setup.archive()
    setup.pass_days(0.2)
    assert setup.archive()
    assert [(archive.first, archive.last) for archive in setup.known()[1]] == [(1, 256), (257, 512)]


def test_nothing_goes_before_a_checkpoint_covers_the_event_that_says_so(setup: Setup) -> None:
    setup.grow(300)
    setup.pass_days(DAYS + 1)
    assert setup.subject.run(setup.retention.round())
    setup.subject.run(setup.archives.prune())
    assert setup.known()[0] == 0
    setup.subject.run(setup.checkpoints.make())
    setup.subject.run(setup.archives.prune())
    assert setup.known()[0] == 256


def test_an_archive_that_the_broker_was_killed_behind_is_taken_as_it_is(setup: Setup) -> None:
    setup.grow(300)
    setup.pass_days(DAYS + 1)
    written = setup.subject.run(setup.retention._write(0, 256))
    before = written.stat().st_mtime_ns
    (setup.directory / "audit-000000000001-000000000512.partial").write_bytes(b"half")
    assert setup.archive()
    assert written.stat().st_mtime_ns == before
    assert setup.known()[1][0].file == written.name


def test_an_archive_that_cannot_be_read_back_leaves_everything_where_it_is(setup: Setup) -> None:
    setup.grow(300)
    setup.pass_days(DAYS + 1)
    written = setup.subject.run(setup.retention._write(0, 256))
    written.write_bytes(written.read_bytes()[:-1])
    with pytest.raises(TamperedRecord):
        setup.archive()
    assert setup.known() == (0, [])


def test_said_twice_it_is_archived_once(setup: Setup) -> None:
    setup.grow(300)
    setup.pass_days(DAYS + 1)
    assert setup.archive()
    _, [archive] = setup.known()
    checked = archive_files.check(setup.directory / archive.file, setup.keys)
    again = setup.subject.run(setup.archives.record(Caller(), checked, principal="admin"))
    assert again == archive
