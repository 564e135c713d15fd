"""All errors of the project, as one tree.

::

    AgentWritError
    ├── Refusal                  the broker answers with a problem document (RFC 9457)
    │   ├── InvalidRequest       invalid_request
    │   ├── InvalidTTL           invalid_ttl
    │   ├── Unauthorized         unauthorized
    │   │   ├── ProofNonceNeeded unauthorized
    │   │   └── ProofNeeded      unauthorized
    │   ├── InsufficientScope    insufficient_scope
    │   │   └── TokenRevoked     insufficient_scope
    │   ├── ScopeViolation       scope_violation
    │   │   ├── AudienceViolation scope_violation
    │   │   ├── BindingRequired  scope_violation
    │   │   └── ChainTooLong     scope_violation
    │   ├── NotFound             not_found
    │   ├── MethodNotAllowed     method_not_allowed
    │   ├── Conflict             conflict
    │   ├── PayloadTooLarge      payload_too_large
    │   ├── RateLimited          rate_limited
    │   │   ├── LimitReached     rate_limited
    │   │   └── TooManyDelegations rate_limited
    │   ├── InternalError        internal_error
    │   └── Unavailable          unavailable
    ├── InvalidToken             a rejected token; the reason is for the audit log, never for the caller
    │   └── Unproven             a rejected token: the caller has not proven to hold its key
    ├── InvalidProof             a rejected DPoP proof; the reason is for the audit log
    │   └── WrongTarget          a rejected proof for another URL, which the caller is told
    ├── InvalidChallenge         a rejected nonce; the reason is for the audit log
    ├── TamperedRecord           evidence or stored state that does not match its hash or MAC
    ├── ConfigurationError       invalid settings or files: the broker or the command line cannot start
    └── ProblemResponseError, TransportError, CryptoError: the SDK's errors, in agentwrit.errors

`error_code` is stable, and is what programs should compare. `agentwrit.broker.http.problems` maps it to HTTP status
codes.
"""

from collections.abc import Collection, Sequence
from typing import ClassVar, Final, Self

MAX_TOLD_LENGTH: Final = 300  # characters of a client's URL or name in an error message
MAX_TOLD_URLS: Final = 4
MAX_TOLD_NAMES: Final = 8  # refused scopes or audiences in an error message


class AgentWritError(Exception):
    """Base class of all errors that AgentWrit raises on purpose.

    Catch it where all failures are handled alike:

        try:
            agent.renew()
        except AgentWritError as error:
            log.warning("%s", error)
    """


class Refusal(AgentWritError):
    """A request that the broker understood and refuses.

    `detail`: the description for the caller. It never says why a credential was rejected. `hint`: what to do about it,
    if that is known.
    """

    error_code: ClassVar[str]

    def __init__(self, detail: str, *, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class InvalidRequest(Refusal):
    """A malformed request: bad JSON, a missing field, a bad scope or a bad identifier."""

    error_code = "invalid_request"


class InvalidTTL(Refusal):
    """A time to live that is zero, negative or out of range."""

    error_code = "invalid_ttl"


class Unauthorized(Refusal):
    """A bad, expired, consumed or missing credential. The caller is not told which of these it is."""

    error_code = "unauthorized"


class ProofNonceNeeded(Unauthorized):
    """A DPoP proof whose time is wrong. A new proof with this nonce is accepted whatever its time (RFC 9449 §8)."""

    def __init__(self, nonce: str) -> None:
        super().__init__("the proof's time is not the broker's: make another one, with the nonce that came along")
        self.nonce = nonce


class ProofNeeded(Unauthorized):
    """A bound token without a valid proof by its key, or an unbound token with a proof (RFC 9449 §7.1).

    `code`: the error in the challenge, `invalid_token` or `invalid_dpop_proof`.
    """

    def __init__(self, detail: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.code = code


class InsufficientScope(Refusal):
    """A valid token that lacks the scope that the endpoint requires (RFC 6750 §3.1). `required`: that scope."""

    error_code = "insufficient_scope"

    def __init__(self, detail: str, *, required: str = "", hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.required = required


class TokenRevoked(InsufficientScope):
    """A genuine, unexpired token of a grant that has ended, used as a bearer token.

    Published clients interpret this response as the end of the grant, so it is distinct from other failures.
    """

    def __init__(self) -> None:
        super().__init__("token has been revoked")


class ScopeViolation(Refusal):
    """The requested scope exceeds that of the launch token or the delegator, or the app's ceiling."""

    error_code = "scope_violation"

    @classmethod
    def beyond(cls, field: str, limit: str, exceeding: Sequence[str], *, hint: str) -> Self:
        """`field` exceeds `limit`. `exceeding`: by which names; the caller sent them, so the error may repeat them."""
        names = [_plain_name(name) for name in exceeding[:MAX_TOLD_NAMES]]
        if len(exceeding) > MAX_TOLD_NAMES:
            names.append(f"{len(exceeding) - MAX_TOLD_NAMES} more")
        told = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        return cls(f"{field} exceeds {limit}: nothing there covers {told}", hint=hint)


class AudienceViolation(ScopeViolation):
    """A token's audience would exceed the app's audiences, or those of the delegator's token."""


class BindingRequired(ScopeViolation):
    """A token would not be bound to its agent's key, although the app requires bound tokens."""

    def __init__(self) -> None:
        super().__init__(
            "the app's agents must have bound tokens",
            hint="ask with bound: true, and prove the agent's key (RFC 9449); the SDK does: create_agent(bound=True)",
        )


class ChainTooLong(ScopeViolation):
    """A delegation would make a chain with too many hops."""


class NotFound(Refusal):
    """There is no such app, agent or route."""

    error_code = "not_found"


class MethodNotAllowed(Refusal):
    """The route exists, but does not support this method (RFC 9110 §15.5.6)."""

    error_code = "method_not_allowed"

    def __init__(self, allowed: frozenset[str]) -> None:
        super().__init__(f"this route answers {', '.join(sorted(allowed))}")
        self.allowed = allowed


class Conflict(Refusal):
    """A name is taken, or an idempotency key was reused with another body."""

    error_code = "conflict"


class PayloadTooLarge(Refusal):
    """A body over the limit, whether its length was declared or it was streamed."""

    error_code = "payload_too_large"


class RateLimited(Refusal):
    """Too many failed attempts, or too many requests at once. `retry_after`: seconds."""

    error_code = "rate_limited"

    def __init__(self, detail: str, *, retry_after: int, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.retry_after = retry_after


class LimitReached(RateLimited):
    """An app has reached one of its limits.

    `limit`: the name of the limit; `until`: the time until which it is certain to be exhausted (Unix seconds).
    """

    def __init__(self, limit: str, allowed: int, *, retry_after: int, until: float) -> None:
        super().__init__(
            f"the app has reached its {limit}, which is {allowed}",
            retry_after=retry_after,
            hint="the operator can raise it: `agentwrit app update`",
        )
        self.limit = limit
        self.allowed = allowed
        self.until = until


class TooManyDelegations(RateLimited):
    """The limit of live delegations is reached. `whose`: of which grant or tree; `allowed`: the limit."""

    def __init__(self, whose: str, allowed: int, *, retry_after: int) -> None:
        super().__init__(
            f"{allowed} delegations {whose} are alive, and no more may be",
            retry_after=retry_after,
            hint="release those that are done with, or give them a shorter ttl",
        )


class InternalError(Refusal):
    """A defect in the broker. The traceback is in the broker's log, never in the response."""

    error_code = "internal_error"


class Unavailable(Refusal):
    """The store cannot be reached or written, or the broker is at capacity: nothing was done. `retry_after`: seconds.

    `cause`: a word from a small fixed set, by which metrics count these responses.
    """

    error_code = "unavailable"

    def __init__(self, detail: str, *, retry_after: int = 1, hint: str | None = None, cause: str = "store") -> None:
        super().__init__(detail, hint=hint)
        self.retry_after = retry_after
        self.cause = cause


class InvalidToken(AgentWritError):
    """A token that is not valid.

    `reason`: why, for the audit log. Do not show it to the caller.

        try:
            claims = verifier.verify(token)
        except InvalidToken as error:
            log.info("rejected a token: %s", error.reason)
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unproven(InvalidToken):
    """A token that is rejected because the caller has not proven to hold the key that it is bound to.

    `code`: the error for the challenge (RFC 9449 §7.1): `Unproven.TOKEN` or `Unproven.PROOF`; `told`: a description
    that the caller may be shown, or empty.

        try:
            claims = verifier.verify(token)
        except Unproven as error:
            challenge = f'DPoP error="{error.code}"'  # for WWW-Authenticate, with status 401
    """

    TOKEN: ClassVar[str] = "invalid_token"
    PROOF: ClassVar[str] = "invalid_dpop_proof"

    def __init__(self, reason: str, code: str, told: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.told = told

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, self.code, self.told)


class InvalidProof(AgentWritError):
    """A DPoP proof that is not valid. `reason` is for the audit log only."""

    told = ""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongTarget(InvalidProof):
    """A valid proof for another URL. `told`: the proof's URL and the expected ones.

    Telling the caller reveals only the URLs under which the server is known and the one in the proof, and lets the
    caller correct the configuration.
    """

    def __init__(self, given: str, urls: Collection[str]) -> None:
        told, *expected = (_plain(url) for url in [given, *urls][: MAX_TOLD_URLS + 1])
        super().__init__(f"the proof is for {told}")
        self.told = f"the proof is for {told}, and this is {' or '.join(expected) or 'known by no name'}"


def _plain_name(name: str) -> str:
    """A scope unchanged; an audience with non-ASCII and non-printable characters escaped."""
    text = ascii(name)[1:-1]
    return text if len(text) <= MAX_TOLD_LENGTH else f"{text[:MAX_TOLD_LENGTH]}..."


def _plain(url: str) -> str:
    """A URL in quotes, in ASCII without control characters, truncated to a readable length."""
    text = ascii(url)
    return text if len(text) <= MAX_TOLD_LENGTH else f"{text[:MAX_TOLD_LENGTH]}...'"


class InvalidChallenge(AgentWritError):
    """A nonce that the broker did not issue or that is no longer fresh. `reason` is for the audit log only."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TamperedRecord(AgentWritError):
    """Evidence or stored state that does not match its hash or MAC."""


class ConfigurationError(AgentWritError):
    """An invalid setting, file or directory that prevents the start. The message is one line that says what to do."""
