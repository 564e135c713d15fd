"""Managing operators: adding them, giving them new secrets, removing them. All operators have the same rights."""

import secrets
from collections.abc import Sequence
from typing import Final

import msgspec

from agentwrit.broker import passwords
from agentwrit.broker.config import Config
from agentwrit.broker.passwords import PasswordChecker
from agentwrit.broker.services.authentication import Principal
from agentwrit.broker.services.context import Caller, EventData
from agentwrit.broker.services.ending import said
from agentwrit.broker.services.endings import Endings
from agentwrit.broker.services.operators import end_logins
from agentwrit.broker.storage.base import Store, Transaction
from agentwrit.domain import operator
from agentwrit.domain.audit import EventType
from agentwrit.domain.ending import Ending
from agentwrit.domain.errors import Conflict, InvalidRequest, NotFound, TokenRevoked
from agentwrit.domain.grant import EndReason
from agentwrit.domain.operator import Operator

SECRET_BYTES: Final = 32


class NewOperatorSecret(msgspec.Struct, frozen=True, kw_only=True):
    """An operator with their secret, which is shown only once; None if the caller supplied it."""

    operator: Operator
    secret: str | None

    def __repr__(self) -> str:
        return f"NewOperatorSecret(name={self.operator.name!r})"


class OperatorAccounts:
    """Manages the operators."""

    def __init__(self, store: Store, checker: PasswordChecker, config: Config, endings: Endings) -> None:
        self._store = store
        self._endings = endings
        self._checker = checker
        self._is_first_set_by_config = config.admin_secret is not None

    async def list(self) -> Sequence[Operator]:
        """All operators in order of their names, removed ones included."""
        return await self._store.read(lambda snapshot: snapshot.operators())

    async def add(self, caller: Caller, by: Principal, name: str, secret: str | None) -> NewOperatorSecret:
        """Add an operator, with the given secret (plain, or as its argon2id hash) or a generated one.

        Raises:
            InvalidRequest: the name or the secret is invalid.
            Conflict: there is an operator with this name.
            Unavailable: too many passwords are being checked.
        """
        operator.check_name(name)
        made, password_hash = await self._hashed(secret)

        def add(transaction: Transaction) -> NewOperatorSecret:
            _check_standing(transaction, by)
            known = transaction.operator(name)
            if known is not None and known.is_active:
                raise Conflict(f"an operator named {name} exists", hint="choose another name, or rotate that secret")
            now = int(transaction.now)
            added = Operator(
                name=name,
                password_hash=password_hash,
                created_at=now,
                updated_at=now,
                revision=1 if known is None else known.revision + 1,
            )
            transaction.put(added)
            _record(transaction, caller, by, EventType.OPERATOR_ADDED, added, "an operator was added")
            return NewOperatorSecret(operator=added, secret=made)

        return await self._store.write(add)

    async def rotate(self, caller: Caller, by: Principal, name: str, secret: str | None) -> NewOperatorSecret:
        """Give an operator a new secret. Grants made with the old one end.

        Raises:
            InvalidRequest: the secret is invalid.
            NotFound: there is no such operator.
            Conflict: the secret is set in the broker's configuration.
            Unavailable: too many passwords are being checked.
        """
        made, password_hash = await self._hashed(secret)

        def rotate(transaction: Transaction) -> tuple[NewOperatorSecret, Ending]:
            _check_standing(transaction, by)
            self._check_not_set_elsewhere(name)
            known = transaction.operator(name)
            if known is None or not known.is_active:
                raise _no_such_operator()
            rotated = msgspec.structs.replace(
                known, password_hash=password_hash, updated_at=int(transaction.now), revision=known.revision + 1
            )
            transaction.put(rotated)
            ending = end_logins(transaction, caller, by.name, name, EndReason.SECRET_ROTATED)
            detail = "an operator was given a new secret"
            _record(transaction, caller, by, EventType.OPERATOR_SECRET_ROTATED, rotated, detail, ending)
            return NewOperatorSecret(operator=rotated, secret=made), ending

        new, ending = await self._store.write(rotate)
        await self._endings.finish(ending)
        return new

    async def remove(self, caller: Caller, by: Principal, name: str) -> Operator:
        """Remove an operator, and end the operator's grants. A repeated call changes nothing.

        Raises:
            NotFound: there was never an operator with this name.
            Conflict: it is the last operator, or one that the broker's configuration sets.
        """

        def remove(transaction: Transaction) -> tuple[Operator, Ending | None]:
            _check_standing(transaction, by)
            known = transaction.operator(name)
            if known is None:
                raise _no_such_operator()
            if not known.is_active:
                return known, None
            self._check_not_set_elsewhere(name)
            if operator.is_last(name, transaction.operators()):
                raise Conflict("the last operator cannot be removed", hint="add another one first")
            now = int(transaction.now)
            removed = msgspec.structs.replace(
                known, password_hash="", updated_at=now, removed_at=max(1, now), revision=known.revision + 1
            )
            transaction.put(removed)
            ending = end_logins(transaction, caller, by.name, name, EndReason.OPERATOR_REMOVED)
            _record(transaction, caller, by, EventType.OPERATOR_REMOVED, removed, "an operator was removed", ending)
            return removed, ending

        removed, ending = await self._store.write(remove)
        if ending is not None:
            await self._endings.finish(ending)
        return removed

    async def _hashed(self, secret: str | None) -> tuple[str | None, str]:
        """The secret if it was generated here, and its stored form."""
        if secret is None:
            made = secrets.token_hex(SECRET_BYTES)
            return made, await self._checker.hash(made)
        if passwords.is_password_hash(secret):
            # With another cost, the timing of a failed login would reveal that the operator exists.
            if not passwords.is_of_our_cost(secret):
                raise InvalidRequest(
                    "secret is an argon2id hash of another cost than the broker's",
                    hint=f"make it with the parameters {passwords.COST}, or give the secret itself",
                )
            return None, secret
        if not operator.MIN_SECRET_LENGTH <= len(secret) <= operator.MAX_SECRET_LENGTH:
            raise InvalidRequest(
                f"secret takes {operator.MIN_SECRET_LENGTH} characters or more, up to {operator.MAX_SECRET_LENGTH}"
            )
        return None, await self._checker.hash(secret)

    def _check_not_set_elsewhere(self, name: str) -> None:
        if name == operator.SUBJECT and self._is_first_set_by_config:
            raise Conflict(
                "AGENTWRIT_ADMIN_SECRET sets the first operator's secret whenever the broker starts",
                hint="change it there; or take it away, and restart the broker",
            )


def _check_standing(transaction: Transaction, by: Principal) -> None:
    """Refuse an operator who was removed, or given a new secret, since their token was checked.

    Raises:
        TokenRevoked: they were. So of two operators who remove each other, one remains.
    """
    grant = transaction.grant(by.claims.sid)
    if grant is None or grant.is_ended or any(ending.names(grant) for ending in transaction.endings()):
        raise TokenRevoked


def _no_such_operator() -> NotFound:
    return NotFound("no such operator", hint="`agentwrit operator list` shows the operators that there are")


def _record(
    transaction: Transaction,
    caller: Caller,
    by: Principal,
    event_type: EventType,
    of: Operator,
    detail: str,
    ending: Ending | None = None,
) -> None:
    data: EventData = {"name": of.name, "revision": of.revision}
    if ending is not None:
        data |= {"grants_ended": ending.count, **said(ending)}
    transaction.record(caller.event(event_type, detail=detail, principal=by.name, sid=by.claims.sid, data=data))
