"""What somebody did to the database behind the brokers' backs is found, beside brokers that run."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from agentwrit.broker.config import Config
from agentwrit.broker.offline.verification import verify_store
from agentwrit.domain.audit_export import unwatched
from agentwrit.domain.errors import TamperedRecord
from tests import postgres
from tests.cli.support import one_line, run
from tests.cluster.support import MASTER_KEY, member


class Left(NamedTuple):
    """A store that a broker has left, and what was found in it while the broker used it."""

    url: str
    verified: tuple[int, str]


@pytest.fixture(scope="module")
def left(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    with postgres.database(postgres_server) as url:
        with member(url, tmp_path_factory.mktemp("left") / "broker") as broker:
            app = broker.app()
            broker.release(app.agent()["access_token"])
            broker.renew(app.agent()["access_token"])
            path = f"/v1/admin/apps/{app.app_id}"
            postgres.ask(url, "CREATE TABLE public.before AS SELECT app_id, body, mac FROM agentwrit.apps")
            postgres.ask(url, EARLIER)
            assert broker.http.post(f"{path}/suspend", headers=broker.admin()).status_code == 200
            assert broker.http.post(f"{path}/resume", headers=broker.admin()).status_code == 200
            broker.renew(app.agent()["access_token"])
            broker.release(app.agent()["access_token"])
            app.agent()
            verified = verify(url)
        yield Left(url, verified)


def verify(url: str, **environment: str) -> tuple[int, str]:
    done = run("store", "verify", AGENTWRIT_DATABASE_URL=url, AGENTWRIT_MASTER_KEY=MASTER_KEY, **environment)
    return done.returncode, done.stdout + done.stderr


def test_a_store_that_nobody_touched_is_found_whole_while_a_broker_uses_it(left: Left) -> None:
    code, told = left.verified
    assert (code, "and that everything else is as they say" in told) == (0, True), told


def test_what_is_wrong_is_said_in_a_line(left: Left, postgres_server: str) -> None:
    with postgres.database(postgres_server, template=left.url.rpartition("/")[2]) as copy:
        postgres.ask(copy, CHANGES["the end of the token"])
        done = run("store", "verify", AGENTWRIT_DATABASE_URL=copy, AGENTWRIT_MASTER_KEY=MASTER_KEY)
        one_line(done, 1, "the end of the token")


EARLIER = "CREATE TABLE public.earlier AS SELECT size, note, covered FROM agentwrit.checkpoint, agentwrit.cluster"
PUT_BACK = "WITH put AS (UPDATE agentwrit.checkpoint SET size = earlier.size, note = earlier.note FROM public.earlier)"
CHANGES = {
    "or replaced by an older": f"{PUT_BACK} SELECT 1",
    "of the first .* events was deleted": "DELETE FROM agentwrit.checkpoint",
    "cluster.covered was altered": f"{PUT_BACK} UPDATE agentwrit.cluster SET covered = earlier.covered"
    " FROM public.earlier",
    "up to where a checkpoint covers the log was altered": "UPDATE agentwrit.cluster SET covered = NULL",
    "the end of the grant": "DELETE FROM agentwrit.revocations WHERE kind = 'sid'"
    " AND seq = (SELECT min(seq) FROM agentwrit.revocations WHERE kind = 'sid')",
    "the revocation with which the feed ends": "DELETE FROM agentwrit.revocations"
    " WHERE seq = (SELECT max(seq) FROM agentwrit.revocations)",
    "the end of the token": "DELETE FROM agentwrit.revocations WHERE kind = 'jti'",
    "was deleted: a token of it is in time": "DELETE FROM agentwrit.grants"
    " WHERE place = (SELECT max(place) FROM agentwrit.grants)",
    "stands in another's place": "UPDATE agentwrit.grants SET ended_at = 0 WHERE ended_at <> 0",
    "was put back": "UPDATE agentwrit.apps AS apps SET body = before.body, mac = before.mac FROM public.before"
    " WHERE before.app_id = apps.app_id",
    "the operator admin was deleted": "DELETE FROM agentwrit.operators",
    "evt-000009 was altered": "UPDATE agentwrit.events SET detail = 'nothing' WHERE sequence = 9",
    "evt-000009 is missing": "DELETE FROM agentwrit.events WHERE sequence = 9",
    "were cut off": "DELETE FROM agentwrit.events WHERE sequence > 20",
}


@pytest.mark.parametrize("found", CHANGES)
def test_what_was_deleted_altered_or_put_back_is_found(left: Left, postgres_server: str, found: str) -> None:
    with postgres.database(postgres_server, template=left.url.rpartition("/")[2]) as copy:
        postgres.ask(copy, CHANGES[found])
        config = Config(database_url=copy, master_key=MASTER_KEY)
        with pytest.raises(TamperedRecord, match=found):
            verify_store(None, config, progress=unwatched)


def test_what_cannot_be_verified_is_said_in_a_line(left: Left, database_url: str) -> None:
    shared = {"AGENTWRIT_MASTER_KEY": MASTER_KEY}
    one_line(run("store", "verify", AGENTWRIT_DATABASE_URL=database_url, **shared), 2, "no store")
    one_line(run("store", "verify", **shared), 2, "AGENTWRIT_DATABASE_URL")
    wrong = {"AGENTWRIT_MASTER_KEY": "5a" * 32}
    one_line(run("store", "verify", AGENTWRIT_DATABASE_URL=left.url, **wrong), 2, "master key")
