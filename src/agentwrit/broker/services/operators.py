"""The operator: setting the secret, and logging in with it."""

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


class OperatorService:
    """Logs the operator in."""

    def __init__(
        self, store: Store, denials: DenialLog, issuer: TokenIssuer, checker: PasswordChecker, config: Config
    ) -> None:
        self._store = store
        self._denials = denials
        self._issuer = issuer
        self._checker = checker
        self._config = config

    async def authenticate(self, caller: Caller, secret: str) -> IssuedToken:
        """An operator token, for the operator's secret.

        Raises:
            Unauthorized: it is not.
            Unavailable: too many logins are being checked.
        """
        known = await self._store.read(lambda snapshot: snapshot.operator(operator.SUBJECT))
        if known is None or not await self._checker.matches(known.password_hash, secret):
            event = caller.event(EventType.ADMIN_AUTH_FAILED, Outcome.DENIED, detail="the operator's secret was wrong")
            denied = StrangerDenied(Unauthorized("the operator's secret was not accepted"), caller, event)
            raise await self._denials.record(denied)

        def issue(transaction: Transaction) -> IssuedToken:
            # Set anew since it was checked: then this is the old one, and it is too late.
            if transaction.operator(operator.SUBJECT) != known:
                raise Unauthorized("the operator's secret was not accepted")
            grant = self._issuer.new_grant(
                GrantKind.OPERATOR,
                operator.SUBJECT,
                operator.TOKEN_SCOPES,
                ttl=self._config.admin_token_ttl,
                now=transaction.now,
                audience=(self._config.issuer,),
            )
            transaction.put_grant(grant)
            transaction.record(caller.event(EventType.ADMIN_AUTH, principal=operator.SUBJECT, sid=grant.sid))
            return self._issuer.token(grant, transaction.now)

        return await self._store.write(issue)


async def set_secret(store: Store, secret: str) -> bool:
    """Store the operator's secret, plain or as its argon2id hash. Returns whether it was another than the stored one.

    A new secret ends what was granted on the old one.

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
        if known is not None and _is_secret_of(known, secret):
            return False
        if password_hash is None:
            password_hash = secret if passwords.is_password_hash(secret) else passwords.hash_password(secret)
        if await _replace_secret(store, known, password_hash):
            return True
        # Another broker has set one meanwhile: the same, if they were started together.


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
        sessions = transaction.grants(GrantQuery(live_at=transaction.now, kind=GrantKind.OPERATOR))
        end_grants(transaction, Caller(), "broker", sessions, EndReason.SECRET_ROTATED)
        transaction.record(
            Draft(
                event_type=EventType.ADMIN_SECRET_SET,
                principal="broker",
                detail="the operator's secret was set" if known is None else "the operator's secret was replaced",
                data={"name": operator.SUBJECT, "revision": revision},
            )
        )
        return True

    return await store.write(put)
