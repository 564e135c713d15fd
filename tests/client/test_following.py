"""How a verifier follows a feed, step by step: what it asks for, and when it asks again."""

import msgspec
import pytest
from msgspec import UNSET

from agentwrit.client.exchange import HttpRequest, HttpResponse, LoginNeeded
from agentwrit.client.following import (
    FEED,
    FEED_KEYS,
    KEYS,
    KEYS_SECONDS,
    POLL_SECONDS,
    SNAPSHOT,
    CloseFeed,
    Needed,
    NextPage,
    OpenFeed,
    Pause,
    follow,
)
from agentwrit.client.revocations import Question, Revocations
from agentwrit.client.verification import TokenChecker
from agentwrit.domain import feed, jwk
from agentwrit.errors import AgentWritError, ProblemResponseError, TransportError, from_response
from tests.client.signed_feed import ANOTHER, LATER, SIGNER, World, entries_of

JWKS = msgspec.json.encode({"keys": [jwk.public_jwk(SIGNER.public_key)]})
FULL = feed.PAGE_SIZE


class Steps:
    """A verifier's steps, carried out against a broker that is made of what tests say."""

    def __init__(self, *, can_log_in: bool = False, max_staleness: float = 5.0) -> None:
        self.world = World()
        checker = TokenChecker(None, self.world.known.clock)
        self.known: Revocations = checker.revocations
        self.world.known = self.known
        self.is_old = False  # a broker that knows of no questions
        self.is_away = False
        self.has_places = True
        self.asked: list[str] = []
        self.paused = 0.0
        self._steps = follow(checker, "https://broker.example", max_staleness=max_staleness, can_log_in=can_log_in)
        self.needed: Needed = next(self._steps)

    def step(self) -> Needed:
        """Carry out what is needed. Returns what that was."""
        done = self.needed
        try:
            answer = self._answer(done)
        except AgentWritError as error:
            self.needed = self._steps.throw(error)
        else:
            self.needed = self._steps.send(answer)
        return done

    def until(self, *kinds: type) -> Needed:
        """Go on until something of this kind is needed."""
        for _ in range(1000):
            if isinstance(self.needed, kinds):
                return self.needed
            self.step()
        raise AssertionError(f"it never comes to that: {self.asked[-10:]}")

    def hears(self, page: str) -> None:
        """A page comes by the stream."""
        assert isinstance(self.needed, NextPage)
        self.needed = self._steps.send(page)

    def fails(self) -> None:
        """The stream ends."""
        assert isinstance(self.needed, NextPage)
        self.needed = self._steps.throw(TransportError("the stream has ended"))

    def page(self, path: str) -> str:
        world, given = self.world, dict(each.split("=") for each in path.partition("?")[2].split("&"))
        after = int(given["after"])
        last = min(feed.page_end(after + 1), world.head)
        is_kept = last > after and last % FULL == 0 and "nonce" not in given  # by whoever passes it on
        return world.page(
            since=list(map(int, given["log"].split(","))) if "log" in given and not is_kept else [],
            question=None if "nonce" not in given else Question(given["nonce"], self.known.question().asked),
            first=min(after, world.head) + 1,
            last=max(last, min(after, world.head)),
            log=UNSET if self.is_old else world.place(world.log),
        )

    def _answer(self, needed: Needed) -> object:
        match needed:
            case HttpRequest():
                self.asked.append(needed.path)
                if self.is_away:
                    raise TransportError("the broker cannot be reached")
                return self._respond(needed.path)
            case OpenFeed():
                self.asked.append(f"stream {needed.path} {needed.bearer or ''}".strip())
                if not self.has_places and needed.bearer is None:
                    raise from_response(503, {}, b"")
                return None
            case LoginNeeded():
                return "the-apps-token"
            case Pause():
                self.paused += needed.seconds
                self.world.passes(needed.seconds)
                return None
            case NextPage():
                raise AssertionError("nothing comes")
        return None

    def _respond(self, path: str) -> HttpResponse:
        if path in (KEYS, FEED_KEYS):
            return HttpResponse(200, {}, JWKS)
        if path == SNAPSHOT:
            log = {"log": UNSET} if self.is_old else {}
            return HttpResponse(200, {}, self.world.snapshot(**log).encode())
        if self.is_old and ("nonce=" in path or "log=" in path):
            return HttpResponse(400, {}, b"")
        return HttpResponse(200, {}, self.page(path).encode())

    def plain(self, path: str) -> str:
        """The path without what is drawn anew each time."""
        return path.partition("&nonce=")[0] + ("&nonce=…" if "&nonce=" in path else "")


def test_it_begins_with_keys_a_snapshot_and_a_question() -> None:
    steps = Steps()
    steps.until(OpenFeed)
    assert [steps.plain(path) for path in steps.asked] == [KEYS, FEED_KEYS, SNAPSHOT, f"{FEED}?after=0&log=100&nonce=…"]
    assert steps.known.staleness() == 0
    steps.until(NextPage)
    steps.hears(steps.world.page(("dead", LATER), since=[100]))
    assert isinstance(steps.needed, NextPage)
    assert steps.world.knows("dead")


def test_who_is_refused_a_stream_fetches_a_page_each_second_and_asks_for_a_stream_ever_less_often() -> None:
    steps = Steps()
    steps.has_places = False
    streams: list[float] = []
    began = steps.world.monotonic
    while steps.world.monotonic < began + KEYS_SECONDS - 10:
        if isinstance(steps.needed, OpenFeed):
            streams.append(steps.world.monotonic - began)
        steps.step()
        if isinstance(steps.needed, Pause) and streams:
            assert steps.known.staleness() <= POLL_SECONDS
            assert steps.needed.seconds == POLL_SECONDS
    assert 3 <= len(streams) <= 6
    steps.has_places = True
    steps.until(NextPage)


def test_whoever_has_an_app_shows_its_token_where_strangers_are_refused_and_nowhere_else() -> None:
    steps = Steps(can_log_in=True)
    steps.until(NextPage)
    assert steps.asked[-1] == f"stream {FEED}?after=0&log=100"
    steps.fails()
    steps.has_places = False
    steps.until(NextPage)
    assert steps.asked[-1] == f"stream {FEED}?after=0&log=100 the-apps-token"
    stranger = Steps()
    stranger.has_places = False
    for _ in range(200):
        assert not isinstance(stranger.step(), LoginNeeded)


def test_a_stream_that_is_in_doubt_is_closed_and_the_broker_asked() -> None:
    steps = Steps()
    steps.until(NextPage)
    steps.world.passes(4, at_broker=0)  # its clock was set back
    steps.hears(steps.world.page(since=[100]))
    assert isinstance(steps.needed, CloseFeed)
    steps.until(Pause)
    assert steps.plain(steps.asked[-1]).endswith("nonce=…")
    assert steps.known.staleness() == 0


def test_who_was_away_for_long_takes_full_pages_as_anybody_may_have_kept_them_and_asks_at_the_end() -> None:
    steps = Steps()
    steps.until(NextPage)
    steps.world.page(*((f"sid-{number}", LATER) for number in range(3 * FULL + 5)))
    steps.fails()
    steps.asked.clear()
    steps.until(Pause)
    log = steps.world.log
    assert [steps.plain(path) for path in steps.asked] == [
        f"{FEED}?after=0&log=100",
        f"{FEED}?after={FULL}&log=100,{log}",
        f"{FEED}?after={2 * FULL}&log=100,{log}",
        f"{FEED}?after={3 * FULL}&log=100,{log}&nonce=…",
    ]
    assert steps.known.last == 3 * FULL + 5
    assert steps.known.staleness() == 0


def test_a_broker_that_knows_of_no_questions_is_followed_by_its_pages() -> None:
    steps = Steps()
    steps.is_old = True
    steps.until(NextPage)
    assert steps.known.staleness() == 0
    assert steps.asked[-2:] == [f"{FEED}?after=0", f"stream {FEED}?after=0"]
    steps.world.passes(1)
    steps.hears(steps.world.page(("dead", LATER), log=UNSET))
    assert (steps.known.staleness(), steps.world.knows("dead")) == (0, True)
    steps.fails()
    steps.until(Pause)
    assert steps.asked[-1] == f"{FEED}?after=1"


def test_another_epoch_is_begun_with_its_snapshot_and_the_same_one_is_not() -> None:
    steps = Steps()
    steps.until(NextPage)
    steps.world.epoch = ANOTHER
    steps.hears(steps.world.page(since=[100]))
    steps.until(NextPage)
    assert steps.asked.count(SNAPSHOT) == 2
    steps.world.page(("skipped", LATER))
    steps.hears(steps.world.page(since=[101]))  # which leaves a gap
    steps.until(Pause)
    assert steps.asked.count(SNAPSHOT) == 2
    assert steps.known.staleness() == 0


@pytest.mark.parametrize("what", ["another history", "the same page for ever", "nothing"])
def test_a_broker_that_leads_nowhere_is_asked_with_pauses(what: str, caplog: pytest.LogCaptureFixture) -> None:
    steps = Steps()
    steps.until(NextPage)
    if what == "another history":
        steps.world.history = "b"
    elif what == "nothing":
        steps.is_away = True
    else:
        page = steps.world.page(("one", LATER), head=100, entries=entries_of([("one", LATER)]))
        steps.page = lambda path: page  # type: ignore[method-assign]  # whoever answers
    steps.fails()
    steps.asked.clear()
    steps.paused = 0
    for _ in range(400):
        steps.step()
    assert steps.paused > len(steps.asked) * 0.1
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == (what == "another history")


def test_the_keys_are_fetched_again_every_five_minutes() -> None:
    steps = Steps()
    steps.until(NextPage)
    steps.asked.clear()
    for _ in range(KEYS_SECONDS + 1):
        steps.world.passes(1)
        if isinstance(steps.needed, NextPage):
            steps.hears(steps.world.page(since=[100]))
    steps.until(NextPage)
    assert steps.asked.count(KEYS) == 1


def test_a_refusal_of_another_kind_is_not_answered_with_a_login() -> None:
    steps = Steps(can_log_in=True)
    steps.until(OpenFeed)
    steps.needed = steps._steps.throw(ProblemResponseError(from_response(404, {}, b"").problem, 404))
    for _ in range(20):
        assert not isinstance(steps.needed, LoginNeeded)
        if isinstance(steps.needed, OpenFeed):
            break
        steps.step()
