"""Brokers of one database with settings that differ say so."""

import json
from pathlib import Path

from tests.cluster.support import member
from tests.cluster.test_as_one import wait_for
from tests.support import ADMIN_SECRET, BrokerProcess

DIFFERING = ["AGENTWRIT_ADMIN_SECRET", "AGENTWRIT_AUDIENCE", "AGENTWRIT_DEFAULT_TTL"]


def warned(broker: BrokerProcess, words: str) -> list[list[str]]:
    lines = map(json.loads, broker.logged().splitlines())
    return [line["settings"] for line in lines if words in line["event"]]


def differing(broker: BrokerProcess) -> list[str]:
    return list(broker.http.get("/v1/health").json()["settings_differing"])


def test_whoever_has_other_settings_than_the_last_that_was_started_says_so(database_url: str, tmp_path: Path) -> None:
    with member(database_url, tmp_path / "one") as one:
        others = {
            "AGENTWRIT_AUDIENCE": "orders",
            "AGENTWRIT_DEFAULT_TTL": "60",
            "AGENTWRIT_ADMIN_SECRET": "another" * 5,
        }
        with member(database_url, tmp_path / "two", **others) as two:
            assert warned(two, "this broker's settings differ") == [DIFFERING]
            wait_for(lambda: differing(one))
            assert differing(one) == DIFFERING
            assert warned(one, "another broker has started with settings that differ") == [DIFFERING]
            assert "agentwrit_settings_differing 3.0" in one.http.get("/v1/metrics").text
            assert differing(two) == []
            for log in (one.log, two.log):
                assert not any(secret in log.read_text() for secret in (ADMIN_SECRET, others["AGENTWRIT_ADMIN_SECRET"]))
