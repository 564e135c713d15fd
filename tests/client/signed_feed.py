"""A broker's feed as it signs it, and a verifier that hears of it, on clocks that tests move."""

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from agentwrit.client.clock import Clock
from agentwrit.client.revocations import Question, Revocations
from agentwrit.domain import feed, jwk
from agentwrit.domain.jws import Ed25519Signer
from agentwrit.domain.revocation import RevocationKind

SIGNER = Ed25519Signer(bytes(range(32)))
EPOCH, ANOTHER = "e" * 32, "f" * 32
NOW = 1_800_000_000.0

Entry = tuple[str, int]


class World:
    """The clocks of a verifier's machine and of a broker, and the feed that the broker signs."""

    def __init__(self) -> None:
        self.wall = NOW
        self.monotonic = 1000.0
        self.broker = NOW
        self.epoch = EPOCH
        self.head = 0
        self.history = "a"  # of which events it is made
        self.log = 100
        self.known = Revocations(Clock(lambda: self.wall, lambda: self.monotonic))
        self.known.set_keys({"keys": [jwk.public_jwk(SIGNER.public_key)]})

    def passes(self, seconds: float, *, at_broker: float | None = None, by_wall: float | None = None) -> None:
        self.monotonic += seconds
        self.wall += seconds if by_wall is None else by_wall
        self.broker += seconds if at_broker is None else at_broker

    def place(self, number: int) -> feed.Place:
        return feed.place(number, f"{self.history}{number}")

    def snapshot(self, *entries: Entry, **members: Any) -> str:
        content: dict[str, Any] = {
            "iss": "agentwrit",
            "epoch": self.epoch,
            "head": self.head,
            "issued_at": int(self.broker),
            "entries": entries_of(entries),
            "log": self.place(self.log),
        }
        return feed.sign_snapshot(feed.Snapshot(**content | members), SIGNER)

    def page(
        self,
        *entries: Entry,
        since: Sequence[int] = (),
        places: Sequence[feed.Place] = (),
        question: Question | None = None,
        **members: Any,
    ) -> str:
        """A page of these entries behind the head, which is moved on; a heartbeat without any."""
        first = self.head + 1
        self.head += len(entries)
        self.log += len(entries)
        content: dict[str, Any] = {
            "iss": "agentwrit",
            "epoch": self.epoch,
            "first": first,
            "last": self.head,
            "head": self.head,
            "issued_at": int(self.broker),
            "entries": entries_of(entries),
            "log": self.place(self.log),
            "since": (*map(self.place, since), *places) or UNSET,
            "nonce": UNSET if question is None else question.nonce,
        }
        return feed.sign_page(feed.Page(**content | members), SIGNER)

    def ask(self, **members: Any) -> int:
        """Have the verifier ask, and the broker answer."""
        question = self.known.question()
        return self.known.advance(self.page(since=self.known.places, question=question, **members), question)

    def beat(self, *entries: Entry, **members: Any) -> int:
        """A page that comes by a stream: it goes on from the one before."""
        return self.known.advance(self.page(*entries, since=self.known.places, **members))

    def knows(self, name: str) -> bool:
        return self.known.is_revoked(((RevocationKind.GRANT, feed.digest(name)),), self.known.now())


def entries_of(entries: Sequence[Entry]) -> tuple[feed.FeedEntry, ...]:
    return tuple(
        feed.FeedEntry(RevocationKind.GRANT, feed.digest(name), int(NOW) - 1, forget_at) for name, forget_at in entries
    )


LATER = int(NOW) + 100_000
