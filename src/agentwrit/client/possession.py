"""Checking whether the holder of its key showed a bound token (RFC 9449 §7), without asking the broker.

The rules:

- A bound token is valid only with a proof by its key, for this request and this token, made within 30 seconds of now.
- A proof can be used once (§11.1): seen proofs are remembered until they are too old anyway. Each process remembers its
  own.
- The memory for proofs is bounded, in total and for each key. While it is full, further proofs are refused rather than
  accepted twice. Only holders of live tokens can fill it, and none of them beyond its share.
"""

import os
import threading
import weakref
from collections import Counter, OrderedDict
from typing import Final

from agentwrit.client.steps import ShownProof
from agentwrit.domain import jwk
from agentwrit.domain import proof as proof_rules
from agentwrit.domain.errors import InvalidProof
from agentwrit.domain.proof import Proof
from agentwrit.errors import Unproven

MAX_PROOFS: Final = 131_072
MAX_PROOFS_OF_A_KEY: Final = MAX_PROOFS // 8
MEMORY_SECONDS: Final = 2 * proof_rules.WINDOW_SECONDS + 1


class Possession:
    """Checks proofs, and remembers them. Safe to share between threads, and to use on both sides of a fork."""

    def __init__(self, *, max_proofs: int = MAX_PROOFS, max_of_a_key: int = MAX_PROOFS_OF_A_KEY) -> None:
        self._max_proofs = max_proofs
        self._max_of_a_key = max_of_a_key
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, tuple[float, str]] = OrderedDict()  # expiry and key of each proof, oldest first
        self._of_key: Counter[str] = Counter()
        _all.add(self)

    def check(self, shown: ShownProof | None, token: str, jkt: str, now: float) -> None:
        """Refuse a token, bound to the key with thumbprint `jkt`, that did not come with a new proof by that key.

        Raises:
            Unproven: the proof is missing, invalid, or already used.
        """
        if shown is None or shown.proof is None or shown.htm is None or shown.htu is None:
            raise Unproven("the token is bound to a key, and no proof by it came along", code=Unproven.TOKEN)
        try:
            proof = proof_rules.check(shown.proof, htm=shown.htm, htu=shown.htu, token=token)
        except InvalidProof as invalid:
            raise Unproven(invalid.reason, code=Unproven.PROOF, told=invalid.told) from None
        if jwk.thumbprint(proof.public_key) != jkt:  # RFC 9449 §4.3, 12
            raise Unproven("the proof is by another key", code=Unproven.TOKEN)
        if not proof.is_timely(now):
            raise Unproven("the proof's time is not ours", code=Unproven.PROOF)
        self._spend(proof, jkt, now)

    def after_fork(self) -> None:
        """Replace the lock and the counts: another thread of the parent may have held the lock while changing them."""
        self._lock = threading.Lock()
        self._of_key = Counter(jkt for _, jkt in self._seen.values())

    def _spend(self, proof: Proof, jkt: str, now: float) -> None:
        with self._lock:
            self._forget(now)
            if proof.single_use_id in self._seen:
                raise Unproven("the proof was used before", code=Unproven.PROOF)
            if len(self._seen) >= self._max_proofs or self._of_key[jkt] >= self._max_of_a_key:
                raise Unproven("too many proofs came in too short a time", code=Unproven.PROOF)
            self._seen[proof.single_use_id] = now + MEMORY_SECONDS, jkt
            self._of_key[jkt] += 1

    def _forget(self, now: float) -> None:
        while self._seen:
            oldest = next(iter(self._seen))
            until, jkt = self._seen[oldest]
            if until > now:
                return
            del self._seen[oldest]
            self._of_key[jkt] -= 1
            if not self._of_key[jkt]:
                del self._of_key[jkt]

    def __len__(self) -> int:
        return len(self._seen)


_all: "weakref.WeakSet[Possession]" = weakref.WeakSet()


def _after_fork() -> None:
    for possession in list(_all):
        possession.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
