"""Following a broker's revocation feed, without I/O: what to fetch, when, and how to use it.

The rules:

- Following begins with the keys, a snapshot, and a question for what came after it. Then all revocations are known.
- From then on the broker streams news. If it has no place for a stream, if a proxy delays events, or if the events
  leave doubt, pages are fetched, one each second, and a stream is tried again later.
- If pages leave doubt, the broker is asked. If a broker does not support questions, the dates of its pages are trusted.
- If streams are refused, a verifier with an app shows the app's token: the broker reserves places for apps.
- The keys are fetched again every five minutes. A broker that is out of reach is tried again, with growing delays.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec

from agentwrit.client.exchange import RANDOM, HttpRequest, HttpResponse, LoginNeeded, Steps, retry_delay
from agentwrit.client.log import logger
from agentwrit.client.revocations import BeginAgain, OtherHistory, OutOfStep, Question
from agentwrit.client.secrecy import Secret
from agentwrit.client.verification import TokenChecker
from agentwrit.domain.feed import MAX_PAGE_BYTES, MAX_PLACES, MAX_SNAPSHOT_BYTES, PAGE_SIZE
from agentwrit.errors import AgentWritError, ProblemResponseError, TransportError, from_response

KEYS_SECONDS: Final = 300  # how long published keys may be cached
MAX_KEYS_BYTES: Final = 1024 * 1024
SILENCE: Final = (2.0, 4.0)  # seconds, minimum and maximum, after which a silent stream is considered dead
LEAST_DOUBT_SECONDS: Final = 1.5  # heartbeats come each second, with times in whole seconds
DOUBT: Final = 0.6  # of `max_staleness`: after that long, knowledge is refreshed by a question before it is too old
POLL_SECONDS: Final = 1.0
STREAM_AGAIN_SECONDS: Final = 15.0  # after a stream that failed, and doubled after each that brought nothing
OTHER_HISTORY_SECONDS: Final = 5.0  # before a broker that continues another history is tried again

KEYS: Final = "/.well-known/jwks.json"
FEED_KEYS: Final = "/v1/revocations/jwks.json"
SNAPSHOT: Final = "/v1/revocations/snapshot"
FEED: Final = "/v1/revocations"


@dataclass(frozen=True)
class OpenFeed:
    """Asks the driver to open the stream at this path, in place of one that is open.

    `silence`: seconds without an event after which the stream is considered dead, the same for all; `bearer`: a token
    to show.
    """

    path: str
    silence: float
    bearer: Secret[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class NextPage:
    """Asks the driver for the next page of the stream. The driver throws TransportError if there is none."""


@dataclass(frozen=True)
class CloseFeed:
    """Asks the driver to close the stream."""


@dataclass(frozen=True)
class Pause:
    """Asks the driver to wait for `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Retry(Pause):
    """A pause after a failure. `why`: the reason, for people; None if the broker said to begin again."""

    why: str | None = None


Needed: TypeAlias = HttpRequest | LoginNeeded | OpenFeed | NextPage | CloseFeed | Pause
Following: TypeAlias = Generator[Needed, Any, None]


def follow(checker: TokenChecker, broker_url: str, *, max_staleness: float, can_log_in: bool = False) -> Following:
    """Keep `checker` up to date, forever.

    `max_staleness`: seconds for which knowledge is relied on; `can_log_in`: whether there is an app to log in as.
    """
    return _Follower(checker, broker_url, max_staleness, can_log_in=can_log_in).run()


def fetch_keys(checker: TokenChecker) -> Generator[HttpRequest, HttpResponse, None]:
    """Fetch the currently published keys."""
    checker.set_keys((yield from _fetch_jwks(KEYS)))


def token_to_show(needed: LoginNeeded) -> Steps[str]:
    """The token of the verifier's app, as steps for its driver."""
    token: str = yield needed
    return token


class _Follower:
    def __init__(self, checker: TokenChecker, broker_url: str, max_staleness: float, *, can_log_in: bool) -> None:
        self._checker = checker
        self._revocations = checker.revocations
        self._monotonic = self._revocations.clock.monotonic
        self._broker_url = broker_url
        self._doubt = max(LEAST_DOUBT_SECONDS, DOUBT * max_staleness)
        self._silence = min(max(SILENCE[0], max_staleness / 2), SILENCE[1])
        self._can_log_in = can_log_in
        self._takes_questions = True
        self._has_told_of_fork = False

    def run(self) -> Following:
        failures = 0
        while True:
            pause, why = 0.0, None
            try:
                keys_until = self._monotonic() + KEYS_SECONDS
                yield from fetch_keys(self._checker)
                self._revocations.set_keys((yield from _fetch_jwks(FEED_KEYS)))
                if not self._revocations.have_begun:
                    snapshot = yield from _fetch(SNAPSHOT, max_bytes=MAX_SNAPSHOT_BYTES)
                    self._revocations.begin(_text(snapshot))
                self._takes_questions = True
                yield from self._ask()
                failures = 0
                yield from self._stay(keys_until)
                continue
            except OtherHistory:
                pause = OTHER_HISTORY_SECONDS
                self._tell_of_fork()
            except OutOfStep:
                why = "what it says does not fit together"
            except AgentWritError as error:
                why = str(error)
            yield Retry(pause + retry_delay(failures, None), why)
            failures += 1

    def _stay(self, until: float) -> Following:
        """Stay up to date until this time: by the stream, and by pages while it fails."""
        again_at, delay = float("-inf"), STREAM_AGAIN_SECONDS
        while (began := self._monotonic()) < until:
            if began >= again_at:
                is_worth_it = yield from self._read_stream(until)
                now = self._monotonic()
                delay = STREAM_AGAIN_SECONDS if is_worth_it else min(2 * delay, KEYS_SECONDS)
                is_good = is_worth_it and now >= began + STREAM_AGAIN_SECONDS  # its interruption may be over
                again_at = now + (POLL_SECONDS if is_good else delay) * RANDOM.uniform(0.5, 1)
            else:
                yield Pause(POLL_SECONDS)
            yield from self._fetch_news()

    def _read_stream(self, until: float) -> Generator[Needed, Any, bool]:
        """Take the pages of a stream, as long as they leave no doubt. Returns whether there were any such pages."""
        is_worth_it = False
        try:
            yield from self._open_stream()
            while self._monotonic() < until:
                self._revocations.advance((yield NextPage()))
                if self._revocations.staleness() > self._doubt:
                    break
                is_worth_it = True
        except (BeginAgain, OtherHistory):
            raise
        except OutOfStep:
            self._tell_of_pages("what it says does not fit together")
        except AgentWritError as error:
            self._tell_of_pages(str(error))
        yield CloseFeed()
        return is_worth_it

    def _open_stream(self) -> Following:
        path = self._path()
        try:
            yield OpenFeed(path, self._silence)
        except ProblemResponseError as refused:
            if refused.status_code != 503 or not self._can_log_in:
                raise
            yield OpenFeed(path, self._silence, bearer=(yield LoginNeeded()))

    def _fetch_news(self) -> Following:
        """Take the page after what is known, possibly from a cache; if it leaves a gap, ask."""
        page = yield from _fetch(self._path(), max_bytes=MAX_PAGE_BYTES)
        try:
            missing = self._revocations.advance(_text(page))
        except (BeginAgain, OtherHistory):
            raise
        except OutOfStep:
            missing = 1
        if missing or self._revocations.staleness() > self._doubt:
            yield from self._ask(missing)

    def _ask(self, missing: int = 0) -> Following:
        """Advance to the present head of the feed: by pages that may come from caches, and finally by a question.

        `missing`: how many numbers are missing up to the head, as far as is known.

        Raises:
            OutOfStep: the answers do not lead there.
        """
        revocations = self._revocations
        while True:
            before = revocations.last
            has_to = missing <= PAGE_SIZE or len(revocations.places) > MAX_PLACES // 2
            question = revocations.question() if has_to and self._takes_questions else None
            response = yield HttpRequest("GET", self._path(question), max_bytes=MAX_PAGE_BYTES)
            if response.status == 400 and self._takes_questions:
                self._takes_questions = False
                continue
            missing = revocations.advance(_text(_checked(response)), question)
            if not missing and (question is not None or not self._takes_questions):
                self._has_told_of_fork = False
                return
            if missing and revocations.last <= before:
                raise OutOfStep

    def _path(self, question: Question | None = None) -> str:
        """The path of the page after what is known."""
        path = f"{FEED}?after={self._revocations.last}"
        places = self._revocations.places[-MAX_PLACES:] if self._takes_questions else []
        if places:
            path += f"&log={','.join(map(str, places))}"
        return path if question is None else f"{path}&nonce={question.nonce}"

    def _tell_of_pages(self, why: str) -> None:
        logger.info("the revocation stream of %s ended (%s): pages are fetched instead", self._broker_url, why)

    def _tell_of_fork(self) -> None:
        if not self._has_told_of_fork:
            self._has_told_of_fork = True
            logger.warning(
                "the broker at %s continues another history than the known one: its revocation feed"
                " is not relied on until it begins a new epoch (`agentwrit store restored`)",
                self._broker_url,
            )


def _fetch_jwks(path: str) -> Generator[HttpRequest, HttpResponse, Mapping[str, object]]:
    response = yield from _fetch(path, max_bytes=MAX_KEYS_BYTES)
    try:
        return msgspec.json.decode(response.body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TransportError("the keys are not JSON: is this a broker?") from None


def _fetch(path: str, *, max_bytes: int) -> Generator[HttpRequest, HttpResponse, HttpResponse]:
    return _checked((yield HttpRequest("GET", path, max_bytes=max_bytes)))


def _checked(response: HttpResponse) -> HttpResponse:
    if response.status != 200:
        raise from_response(response.status, response.headers, response.body)
    return response


def _text(response: HttpResponse) -> str:
    return response.body.decode("ascii", "replace")
