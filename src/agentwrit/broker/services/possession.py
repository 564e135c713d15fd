"""Proof of possession (RFC 9449): that whoever presents a token, or asks for one, holds a key."""

import os
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.storage.base import Row, Transaction
from agentwrit.domain import challenge, jwk, proof
from agentwrit.domain import p256 as _p256  # noqa: F401  # or the first who needs it waits, and all with them
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidChallenge, InvalidProof, ProofNonceNeeded, Unproven
from agentwrit.domain.proof import Proof

MEMORY_SECONDS: Final = 2 * proof.WINDOW_SECONDS + 1


class Presented(msgspec.Struct, frozen=True, kw_only=True):
    """A token as a request of this method presents it. `proofs`: all its DPoP header fields.

    `urls`: the request's URL, under each name by which the broker is known.
    """

    token: str
    is_dpop: bool
    proofs: tuple[str, ...]
    method: str
    urls: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Presented(is_dpop={self.is_dpop}, method={self.method!r})"


class Possession:
    """Checks proofs of possession, and hands out the nonces that they may need."""

    def __init__(self, clock: Clock, master_key: MasterKey) -> None:
        self._clock = clock
        self._nonce_key = master_key.derive("nonce")

    def challenge(self) -> str:
        """A fresh nonce to sign. Handing it out keeps no state."""
        return challenge.mint(self._nonce_key, self._clock.now(), os.urandom(challenge.RANDOM_BYTES))

    def nonce(self, text: str, now: float) -> bytes:
        """The bytes of a nonce that is ours and fresh.

        Raises:
            InvalidChallenge: it is not.
        """
        return challenge.verify(self._nonce_key, text, now)

    def proof(self, text: str, *, htm: str, urls: Collection[str], token: str) -> Proof:
        """The proof that `text` is, checked for a request to the broker itself but for its being new (`spend`).

        Raises:
            WrongTarget: it is for none of these URLs.
            InvalidProof: it is none for this request.
            ProofNonceNeeded: its time is not ours.
        """
        checked = proof.check(text, htm=htm, htu=urls, token=token)
        now = self._clock.now()
        if not (self._is_fresh(checked.nonce, now) if checked.nonce else checked.is_timely(now)):
            raise ProofNonceNeeded(self.challenge())  # RFC 9449 §8, §9
        return checked

    def proof_for_another(self, text: str, claims: Claims, *, htm: str, htu: str, token: str) -> Proof:
        """As `proof`, for a request to a service that was shown the token of these claims.

        Raises:
            InvalidProof: it is none for this request, is by another key, or its time is not ours.
        """
        checked = proof.check(text, htm=htm, htu=htu, token=token)
        if not is_holder(checked, claims):
            raise InvalidProof("the proof is by another key")
        if not checked.is_timely(self._clock.now()):  # a nonce in it is the service's, and says nothing to us
            raise InvalidProof("the proof's time is not ours")
        return checked

    def of_presenter(self, presented: Presented, claims: Claims) -> Proof | None:
        """The proof that whoever presents a genuine token is its holder; None where the token needs none.

        Raises:
            Unproven: it needs one, and none that is good came along; or it needs none and came with one.
            ProofNonceNeeded: the proof's time is not ours.
        """
        if claims.cnf is None:
            if presented.is_dpop:  # RFC 9449 §7.1: this scheme is for tokens that are bound
                raise Unproven("a token that is not bound was presented as one that is", code=Unproven.TOKEN)
            return None
        if not presented.is_dpop:  # RFC 9449 §7.2
            raise Unproven("a bound token was presented as a bearer token", code=Unproven.TOKEN)
        if len(presented.proofs) != 1:  # RFC 9449 §4.3, 1
            raise Unproven("there is not one proof, but none or several", code=Unproven.PROOF)
        try:
            checked = self.proof(presented.proofs[0], htm=presented.method, urls=presented.urls, token=presented.token)
        except InvalidProof as invalid:
            raise Unproven(invalid.reason, code=Unproven.PROOF, told=invalid.told) from None
        if not is_holder(checked, claims):
            raise Unproven("the proof is by another key", code=Unproven.TOKEN)  # as in RFC 9449 §7.1
        return checked

    def _is_fresh(self, nonce: str, now: float) -> bool:
        try:
            self.nonce(nonce, now)
        except InvalidChallenge:
            return False
        return True


def is_holder(checked: Proof, claims: Claims) -> bool:
    """Whether a proof is by the key that a token is bound to (RFC 9449 §4.3, 12; §6.1)."""
    return claims.cnf is not None and jwk.thumbprint(checked.public_key) == claims.cnf.jkt


def spending(checked: Proof | None) -> Sequence[Row]:
    """What `spend` reads."""
    return () if checked is None else (Row("nonces", checked.single_use_id),)


def spend(transaction: Transaction, checked: Proof) -> bool:
    """Remember that a proof was used, until it is good no more (RFC 9449 §11.1).

    False when it had been used before, or its time ran out since it was checked: then nobody may remember it any more.
    """
    if not checked.nonce and not checked.is_timely(transaction.now):  # a nonce is remembered for longer than it is good
        return False
    return transaction.spend_nonce(checked.single_use_id, int(transaction.now) + MEMORY_SECONDS)
