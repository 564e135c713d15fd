"""Operators' logins, and the first operator's secret, which comes with the broker."""

import msgspec

from agentwrit.broker import passwords
from agentwrit.broker.config import Config
from agentwrit.broker.passwords import PasswordChecker
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.ending import end_named
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer
from agentwrit.broker.storage.base import EventQuery, Store, Transaction
from agentwrit.domain import operator
from agentwrit.domain.audit import Draft, EventType, Outcome
from agentwrit.domain.ending import Ending, EndingLevel, Named
from agentwrit.domain.errors import ConfigurationError, Unauthorized
from agentwrit.domain.grant import EndReason, GrantKind
from agentwrit.domain.operator import Operator

REFUSED = "the operator's secret was not accepted"


class OperatorService:
    """Logs operators in."""

    def __init__(
        self, store: Store, denials: DenialLog, issuer: TokenIssuer, checker: PasswordChecker, config: Config
    ) -> None:
        self._store = store
        self._denials = denials
        self._issuer = issuer
        self._checker = checker
        self._config = config
        self._unmatched = passwords.unmatched_hash()

    async def recall(self) -> None:
        """Read from the log where operators have logged in, so that a restart does not cost them their precedence."""
        query = EventQuery(event_type=EventType.ADMIN_AUTH.value, is_newest_first=True, limit=passwords.MAX_FAMILIAR)
        for event in reversed(await self._store.read(lambda snapshot: snapshot.events(query))):
            self._checker.make_familiar(Caller(address=event.client_address).network)

    async def authenticate(self, caller: Caller, secret: str, name: str = "") -> IssuedToken:
        """A token for an operator's secret; `name` is empty for the first operator.

        Raises:
            Unauthorized: unknown or removed operator, or wrong secret; neither the answer nor its timing tells which.
            Unavailable: too many logins are being checked.
        """
        name = name or operator.SUBJECT
        known = await self._store.read(lambda snapshot: snapshot.operator(name))
        password_hash = known.password_hash if known is not None and known.is_active else self._unmatched
        is_right = len(secret) <= operator.MAX_SECRET_LENGTH and await self._checker.matches(
            password_hash, secret, caller.network
        )
        if not is_right or known is None:
            raise await self._denials.record(_login_failed(caller, known))
        self._checker.make_familiar(caller.network)

        def issue(transaction: Transaction) -> IssuedToken:
            # If the secret was replaced since the check, this is the old one.
            if transaction.operator(name) != known:
                raise Unauthorized(REFUSED)
            grant = self._issuer.new_grant(
                GrantKind.OPERATOR,
                operator.SUBJECT,
                operator.TOKEN_SCOPES,
                ttl=self._config.admin_token_ttl,
                now=transaction.now,
                born=transaction.head.sequence,
                audience=(self._config.issuer,),
            )
            grant = msgspec.structs.replace(grant, operator=_as_in_grants(name))
            transaction.put(grant)
            transaction.record(
                caller.event(
                    EventType.ADMIN_AUTH,
                    detail="an operator logged in",
                    principal=operator.principal(name),
                    sid=grant.sid,
                )
            )
            return self._issuer.token(grant, transaction.now)

        return await self._store.write(issue)


def end_logins(transaction: Transaction, caller: Caller, actor: str, name: str, reason: EndReason) -> Ending:
    """End the grants of the operator with this name. `actor`: the principal that does it.

    Nothing depends on such grants: apps that an operator registered, and their agents, belong to the broker.
    """
    logins = Named(level=EndingLevel.OPERATOR, target=_as_in_grants(name))
    return end_named(transaction, caller, actor, logins, reason, {"operator": name})


async def set_secret(store: Store, secret: str) -> bool:
    """Store the first operator's secret, plain or as its argon2id hash. Returns whether it changed.

    A new secret ends the grants made with the old one. A removed first operator becomes active again.

    Raises:
        ConfigurationError: the secret is too short or too long, or is another operator's.
    """
    if not passwords.is_password_hash(secret) and len(secret) < operator.MIN_SECRET_LENGTH:
        raise ConfigurationError(
            f"the operator's secret has fewer than {operator.MIN_SECRET_LENGTH} characters:"
            " make one with `agentwrit init`"
        )
    if len(secret) > operator.MAX_SECRET_LENGTH:
        raise ConfigurationError(f"the operator's secret has more than {operator.MAX_SECRET_LENGTH} characters")
    password_hash: str | None = None
    while True:
        known = await store.read(lambda snapshot: snapshot.operator(operator.SUBJECT))
        if known is not None and known.is_active and _is_secret_of(known, secret):
            return False
        if password_hash is None:
            await _check_nobody_elses(store, secret)
            password_hash = secret if passwords.is_password_hash(secret) else passwords.hash_password(secret)
        if await _replace_secret(store, known, password_hash):
            return True
        # Another broker has set a secret in the meantime: the same one, if they were started together.


def _as_in_grants(name: str) -> str:
    """An operator's name as it appears in their grants and tokens."""
    return "" if name == operator.SUBJECT else name


def _login_failed(caller: Caller, known: Operator | None) -> Denial:
    # An unknown name is not recorded, because people sometimes enter the secret in its place.
    if known is None:
        detail = "the operator is unknown"
    else:
        detail = "the operator's secret was wrong" if known.is_active else "the operator was removed"
    event = caller.event(
        EventType.ADMIN_AUTH_FAILED,
        Outcome.DENIED,
        detail=detail,
        data={} if known is None else {"name": known.name},
    )
    about = (caller.network, "" if known is None else known.name)  # guesses for one do not hide in another's
    return Denial(Unauthorized(REFUSED), caller, event, about=about)


def _is_secret_of(known: Operator, secret: str) -> bool:
    if passwords.is_password_hash(secret):
        return known.password_hash == secret
    return passwords.matches(known.password_hash, secret)


async def _check_nobody_elses(store: Store, secret: str) -> None:
    """Refuse a secret that a named operator has, because the log could not tell the two operators apart."""
    for other in await store.read(lambda snapshot: snapshot.operators()):
        if other.name != operator.SUBJECT and other.is_active and _is_secret_of(other, secret):
            raise ConfigurationError(
                f"AGENTWRIT_ADMIN_SECRET is the secret of the operator {other.name}, and is not made the first"
                " operator's as well: unset it where the broker is started"
            )


async def _replace_secret(store: Store, known: Operator | None, password_hash: str) -> bool:
    """Store a secret, unless the operator has changed since `known` was read. Returns whether it was stored."""

    def put(transaction: Transaction) -> bool:
        if transaction.operator(operator.SUBJECT) != known:
            return False
        now = int(transaction.now)
        before = known or Operator(name=operator.SUBJECT, password_hash="", created_at=now, updated_at=now)
        revision = before.revision + 1
        # Replaced, not created anew, to keep what a newer version may have put into the row.
        transaction.put(
            msgspec.structs.replace(
                before, password_hash=password_hash, updated_at=now, revision=revision, removed_at=0
            )
        )
        end_logins(transaction, Caller(), "broker", operator.SUBJECT, EndReason.SECRET_ROTATED)
        is_new = known is None or not known.is_active
        transaction.record(
            Draft(
                event_type=EventType.ADMIN_SECRET_SET,
                principal="broker",
                detail="the operator's secret was set" if is_new else "the operator's secret was replaced",
                data={"name": operator.SUBJECT, "revision": revision},
            )
        )
        return True

    return await store.write(put)
