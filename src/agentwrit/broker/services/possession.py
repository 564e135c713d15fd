"""Proof of possession (RFC 9449): the presenter of a token, or the caller that requests one, holds a key."""

import os
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from agentwrit.broker.clock import Clock
from agentwrit.broker.keystore import MasterKey
from agentwrit.broker.storage.base import Row, Transaction
from agentwrit.domain import challenge, jwk, proof
from agentwrit.domain import p256 as _p256  # noqa: F401  # imported at startup: later it would block the event loop
from agentwrit.domain.claims import Claims
from agentwrit.domain.errors import InvalidChallenge, InvalidProof, ProofNonceNeeded, Unproven
from agentwrit.domain.proof import Proof

MEMORY_SECONDS: Final = 2 * proof.WINDOW_SECONDS + 1


class Presented(msgspec.Struct, frozen=True, kw_only=True):
    """A token as a request presents it. `proofs`: all its DPoP header fields; `method`: the request's.

    `urls`: the request's URL, under each of the broker's names.
    """

    token: str
    is_dpop: bool
    proofs: tuple[str, ...]
    method: str
    urls: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Presented(is_dpop={self.is_dpop}, method={self.method!r})"


class Possession:
    """Checks proofs of possession, and supplies the nonces that they may need."""

    def __init__(self, clock: Clock, master_key: MasterKey) -> None:
        self._clock = clock
        self._nonce_key = master_key.derive("nonce")

    def challenge(self) -> str:
        """A fresh nonce to sign. Supplying it keeps no state."""
        return challenge.mint(self._nonce_key, self._clock.now(), os.urandom(challenge.RANDOM_BYTES))

    def nonce(self, text: str, now: float) -> bytes:
        """The bytes of a fresh nonce of this broker.

        Raises:
            InvalidChallenge: it is not fresh, or not this broker's.
        """
        return challenge.verify(self._nonce_key, text, now)

    def proof(self, text: str, *, htm: str, urls: Collection[str], token: str) -> Proof:
        """A proof for a request to the broker itself, fully checked except for reuse (`spend`).

        Raises:
            WrongTarget: it is for none of these URLs.
            InvalidProof: it is not a valid proof for this request.
            ProofNonceNeeded: its time differs too much from the broker's.
        """
        checked = proof.check(text, htm=htm, htu=urls, token=token)
        now = self._clock.now()
        if not (self._is_fresh(checked.nonce, now) if checked.nonce else checked.is_timely(now)):
            raise ProofNonceNeeded(self.challenge())  # RFC 9449 §8, §9
        return checked

    def proof_for_another(self, text: str, claims: Claims, *, htm: str, htu: str, token: str) -> Proof:
        """As `proof`, for a request to a service that was shown the token with these claims.

        Raises:
            InvalidProof: it is not a valid proof for this request, is by another key, or its time differs too much.
        """
        checked = proof.check(text, htm=htm, htu=htu, token=token)
        if not is_holder(checked, claims):
            raise InvalidProof("the proof is by another key")
        if not checked.is_timely(self._clock.now()):  # a nonce in it is the service's, unknown to the broker
            raise InvalidProof("the proof's time is not ours")
        return checked

    def of_presenter(self, presented: Presented, claims: Claims) -> Proof | None:
        """The proof that the presenter of a genuine token holds its key; None if the token needs none.

        Raises:
            Unproven: a proof is needed and missing or invalid, or an unbound token was presented as a bound one.
            ProofNonceNeeded: the proof's time differs too much from the broker's.
        """
        if claims.cnf is None:
            if presented.is_dpop:  # RFC 9449 §7.1: this scheme is for bound tokens
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
    """The rows that `spend` reads."""
    return () if checked is None else (Row("nonces", checked.single_use_id),)


def spend(transaction: Transaction, checked: Proof) -> bool:
    """Remember that a proof was used, until it expires (RFC 9449 §11.1).

    Returns False if it was used before, or has expired since it was checked and may already be forgotten.
    """
    if not checked.nonce and not checked.is_timely(transaction.now):  # a nonce is remembered beyond its validity
        return False
    return transaction.spend_nonce(checked.single_use_id, int(transaction.now) + MEMORY_SECONDS)
