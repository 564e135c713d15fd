"""Counts of several workers, told by whoever is asked."""

import os
from collections.abc import Iterator

import pytest

from agentwrit.broker.counts import Counts, SharedCounts, new_file
from agentwrit.broker.metrics import Metrics


@pytest.fixture
def files() -> Iterator[list[int]]:
    made = [new_file(), new_file()]
    yield made
    for file in made:
        os.close(file)


def worker(files: list[int], number: int) -> tuple[Metrics, SharedCounts]:
    metrics = Metrics()
    shared = SharedCounts([*files[number:], *files[:number]], metrics.counts)
    metrics.of_all = shared.of_all
    return metrics, shared


def told(metrics: Metrics, name: str) -> float:
    [line] = [line for line in metrics.render().decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


VALID = 'agentwrit_validations_total{result="valid"}'
ANSWERED = 'agentwrit_http_request_duration_seconds_count{route="/livez"}'


def test_whoever_is_asked_tells_those_of_all_and_never_less_than_was_told(files: list[int]) -> None:
    (one, _), (two, _) = worker(files, 0), worker(files, 1)
    one.validations["valid"] += 3
    one.count_request("GET", "/livez", 200, 0.1)
    one.connections, one.revocation_entries = 2, 7
    assert told(one, VALID) == 3
    two.validations["valid"] += 4
    two.count_request("GET", "/livez", 200, 0.2)
    two.connections, two.revocation_entries = 5, 6
    assert (told(two, VALID), told(two, ANSWERED)) == (7, 2)
    assert (told(two, "agentwrit_http_connections"), told(two, "agentwrit_revocation_entries")) == (7, 7)
    assert told(two, 'agentwrit_http_requests_total{method="GET",route="/livez",status="200"}') == 2
    assert told(one, VALID) == 7


def test_a_worker_in_anothers_place_goes_on_from_what_that_one_counted(files: list[int]) -> None:
    (one, shared), (two, _) = worker(files, 0), worker(files, 1)
    one.validations["valid"], one.connections = 3, 2
    shared.of_all()
    again, _ = worker(files, 0)
    again.validations["valid"] += 1
    assert (told(again, VALID), told(again, "agentwrit_http_connections")) == (4, 0)
    assert told(two, VALID) == 4


@pytest.mark.parametrize("content", [b"", b"\0" * 16, b"nonsense" * 8])
def test_a_file_that_is_none_counts_for_nothing(files: list[int], content: bytes) -> None:
    os.pwrite(files[1], content, 0)
    one, _ = worker(files, 0)
    one.validations["valid"] = 3
    assert told(one, VALID) == 3


def test_the_clock_that_is_furthest_off_is_the_one_that_counts() -> None:
    counts = Counts(highest={"offset": 1.0})
    counts.add(Counts(highest={"offset": -5.0}))
    assert counts.highest["offset"] == -5.0
