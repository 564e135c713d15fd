"""Admission to the revocation feed when places are scarce.

The rules:

- A client that reads the stream or waits for a page holds a place. The number of places is fixed.
- Most places are for anonymous clients, and each address has a share of them. So taking all anonymous places requires
  many addresses, and anonymous clients cannot take the places reserved for apps. Each app has a share of those.
- A client without a place is refused before anything else. It then fetches pages, which need no place.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from agentwrit.broker.services import turns
from agentwrit.domain.errors import Unavailable

MAX_FOLLOWERS: Final = 1024
MAX_STRANGERS: Final = 768
MAX_OF_ADDRESS: Final = 128
MAX_OF_APP: Final = 256
RETRY_SECONDS: Final = 15

_HINT: Final = "fetch a page each second instead, or show the token of an app"


class Asker(NamedTuple):
    """A client that asks for a place. `network`: its address; `app_id`: the app of its token, "" if anonymous."""

    network: str
    app_id: str = ""

    @property
    def in_turn(self) -> turns.Asker:
        """The same, where pages are made."""
        return turns.Asker(self.app_id or self.network)


class Places:
    """Counts the places in use."""

    def __init__(self) -> None:
        self._taken: Counter[Asker] = Counter()
        self._by_strangers = 0

    def __len__(self) -> int:
        return self._taken.total()

    @contextlib.contextmanager
    def place(self, asker: Asker) -> Iterator[None]:
        """Hold a place.

        Raises:
            Unavailable: no place is free.
        """
        is_stranger = not asker.app_id
        sharer = asker if is_stranger else Asker("", asker.app_id)
        share = MAX_OF_ADDRESS if is_stranger else MAX_OF_APP
        if (
            len(self) >= MAX_FOLLOWERS
            or (is_stranger and self._by_strangers >= MAX_STRANGERS)
            or self._taken[sharer] >= share
        ):
            self._drop_unused(sharer)
            raise Unavailable("too many follow the feed", retry_after=RETRY_SECONDS, hint=_HINT, cause="followers")
        self._taken[sharer] += 1
        self._by_strangers += is_stranger
        try:
            yield
        finally:
            self._taken[sharer] -= 1
            self._by_strangers -= is_stranger
            self._drop_unused(sharer)

    def _drop_unused(self, sharer: Asker) -> None:
        if not self._taken[sharer]:
            del self._taken[sharer]
