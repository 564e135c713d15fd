"""Operators: logging in, and the first one's secret, which comes with the broker."""

import msgspec

from agentwrit.broker import passwords
from agentwrit.broker.config import Config
from agentwrit.broker.passwords import PasswordChecker
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import DenialLog, StrangerDenied
from agentwrit.broker.services.ending import end_grants
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer
from agentwrit.broker.storage.base import GrantQuery, Store, Transaction
from agentwrit.domain import operator
from agentwrit.domain.audit import Draft, EventType, Outcome
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

    async def authenticate(self, caller: Caller, secret: str, name: str = "") -> IssuedToken:
        """A token for an operator's secret; `name` empty for the first one.

        Raises:
            Unauthorized: unknown or removed operator, or wrong secret: which, nobody is told, and neither does time.
            Unavailable: too many logins are being checked.
        """
        name = name or operator.SUBJECT
        known = await self._store.read(lambda snapshot: snapshot.operator(name))
        password_hash = known.password_hash if known is not None and known.is_active else self._unmatched
        if not await self._checker.matches(password_hash, secret) or known is None:
            raise await self._denials.record(_login_failed(caller, known))

        def issue(transaction: Transaction) -> IssuedToken:
            # Set anew since it was checked: then this is the old one, and it is too late.
            if transaction.operator(name) != known:
                raise Unauthorized(REFUSED)
            grant = self._issuer.new_grant(
                GrantKind.OPERATOR,
                operator.SUBJECT,
                operator.TOKEN_SCOPES,
                ttl=self._config.admin_token_ttl,
                now=transaction.now,
                audience=(self._config.issuer,),
            )
            grant = msgspec.structs.replace(grant, operator=_as_in_grants(name))
            transaction.put_grant(grant)
            transaction.record(caller.event(EventType.ADMIN_AUTH, principal=operator.principal(name), sid=grant.sid))
            return self._issuer.token(grant, transaction.now)

        return await self._store.write(issue)


def end_logins(transaction: Transaction, caller: Caller, actor: str, name: str, reason: EndReason) -> int:
    """End what was granted to the operator of this name. `actor`: the principal of whoever does it. Returns how many.

    Nothing else hangs on such a grant: the apps that an operator registered, and their agents, are the broker's.
    """
    logins = transaction.grants(GrantQuery(live_at=transaction.now, kind=GrantKind.OPERATOR))
    theirs = [grant for grant in logins if grant.operator == _as_in_grants(name)]
    return len(end_grants(transaction, caller, actor, theirs, reason, {"operator": name}))


async def set_secret(store: Store, secret: str) -> bool:
    """Store the first operator's secret, plain or as its argon2id hash. Returns whether it was another one before.

    A new secret ends what was granted on the old one. An operator who was removed is one again.

    Raises:
        ConfigurationError: the secret is too short to be one.
    """
    if not passwords.is_password_hash(secret) and len(secret) < operator.MIN_SECRET_LENGTH:
        raise ConfigurationError(
            f"the operator's secret has fewer than {operator.MIN_SECRET_LENGTH} characters:"
            " make one with `agentwrit init`"
        )
    password_hash: str | None = None
    while True:
        known = await store.read(lambda snapshot: snapshot.operator(operator.SUBJECT))
        if known is not None and known.is_active and _is_secret_of(known, secret):
            return False
        if password_hash is None:
            password_hash = secret if passwords.is_password_hash(secret) else passwords.hash_password(secret)
        if await _replace_secret(store, known, password_hash):
            return True
        # Another broker has set one meanwhile: the same, if they were started together.


def _as_in_grants(name: str) -> str:
    """An operator's name as their grants and tokens have it."""
    return "" if name == operator.SUBJECT else name


def _login_failed(caller: Caller, known: Operator | None) -> StrangerDenied:
    # A name that is not ours is not recorded: people have been known to put the secret in its place.
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
    about = (caller.network, "" if known is None else known.name)  # guesses at one do not hide in another's
    return StrangerDenied(Unauthorized(REFUSED), caller, event, about=about)


def _is_secret_of(known: Operator, secret: str) -> bool:
    if passwords.is_password_hash(secret):
        return known.password_hash == secret
    return passwords.matches(known.password_hash, secret)


async def _replace_secret(store: Store, known: Operator | None, password_hash: str) -> bool:
    """Store a secret, unless the operator is no longer the one that is `known`. Returns whether it was stored."""

    def put(transaction: Transaction) -> bool:
        if transaction.operator(operator.SUBJECT) != known:
            return False
        now = int(transaction.now)
        revision = 1 if known is None else known.revision + 1
        transaction.put_operator(
            Operator(
                name=operator.SUBJECT,
                password_hash=password_hash,
                created_at=now if known is None else known.created_at,
                updated_at=now,
                revision=revision,
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
