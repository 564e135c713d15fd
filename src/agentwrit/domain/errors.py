"""Every failure that the project names, as one tree.

::

    AgentWritError
    ├── Refusal                  what a broker answers with a problem document (RFC 9457)
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
    │   │   └── LimitReached     rate_limited
    │   ├── InternalError        internal_error
    │   └── Unavailable          unavailable
    ├── InvalidToken             why a token was not accepted: for the audit log, never for the caller
    │   └── Unproven             likewise: whoever presented it has not shown to be its holder
    ├── InvalidProof             why a proof of possession was not accepted: likewise
    │   └── WrongTarget          likewise: it is for another URL, which its maker is told
    ├── InvalidChallenge         why a nonce was not accepted: likewise
    ├── TamperedRecord           evidence or stored state that does not match its hash or MAC
    ├── ConfigurationError       the broker or the command line cannot start as it was told to
    └── ProblemResponseError, TransportError, CryptoError: the SDK's, in agentwrit.errors

`error_code` is stable: it is what programs compare. Which HTTP status a code has is the edge's business
(`agentwrit.broker.http.problems`).
"""

from collections.abc import Collection, Sequence
from typing import ClassVar, Final, Self

MAX_TOLD_LENGTH: Final = 300  # of a URL that somebody sent, in what is said of it
MAX_TOLD_URLS: Final = 4
MAX_TOLD_NAMES: Final = 8  # of what somebody asked for, and may not have


class AgentWritError(Exception):
    """Base of every error that AgentWrit raises on purpose."""


class Refusal(AgentWritError):
    """A request that was understood and is not going to be done.

    `detail` is for people and for the caller: it never says why a credential was not accepted.
    `hint` says what to do about it, where that is known.
    """

    error_code: ClassVar[str]

    def __init__(self, detail: str, *, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


class InvalidRequest(Refusal):
    """Malformed JSON, a missing field, a bad scope, a bad identifier."""

    error_code = "invalid_request"


class InvalidTTL(Refusal):
    """A time to live that is zero, negative or out of range."""

    error_code = "invalid_ttl"


class Unauthorized(Refusal):
    """A bad, expired, consumed or missing credential: which of these, nobody is told."""

    error_code = "unauthorized"


class ProofNonceNeeded(Unauthorized):
    """A proof of possession whose time is wrong: with this nonce in it the time does not matter (RFC 9449 §8)."""

    def __init__(self, nonce: str) -> None:
        super().__init__("the proof's time is not the broker's: make another one, with the nonce that came along")
        self.nonce = nonce


class ProofNeeded(Unauthorized):
    """A token that is not accepted without a proof by the key that it is bound to, or with none (RFC 9449 §7.1).

    `code` is what the challenge says: `invalid_token` or `invalid_dpop_proof`.
    """

    def __init__(self, detail: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.code = code


class InsufficientScope(Refusal):
    """A valid token without the scope that the endpoint needs (RFC 6750 §3.1)."""

    error_code = "insufficient_scope"

    def __init__(self, detail: str, *, required: str = "", hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.required = required


class TokenRevoked(InsufficientScope):
    """A genuine, unexpired token of a grant that has ended, used as a bearer.

    Published clients take this answer as the end of the grant, so it is told apart from other failures.
    """

    def __init__(self) -> None:
        super().__init__("token has been revoked")


class ScopeViolation(Refusal):
    """The requested scope exceeds the launch token's, the delegator's or the app's ceiling."""

    error_code = "scope_violation"

    @classmethod
    def beyond(cls, field: str, limit: str, exceeding: Sequence[str], *, hint: str) -> Self:
        """What was asked for in `field` exceeds `limit`: `exceeding`, which the caller named, and may be told again."""
        names = [_plain_name(name) for name in exceeding[:MAX_TOLD_NAMES]]
        if len(exceeding) > MAX_TOLD_NAMES:
            names.append(f"{len(exceeding) - MAX_TOLD_NAMES} more")
        told = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        return cls(f"{field} exceeds {limit}: nothing there covers {told}", hint=hint)


class AudienceViolation(ScopeViolation):
    """A token would be for others than the app's audiences, or than the delegator's token is."""


class BindingRequired(ScopeViolation):
    """A token would not be bound to its agent's key, and the app's have to be."""

    def __init__(self) -> None:
        super().__init__(
            "the app's agents must have bound tokens",
            hint="ask with bound: true, and prove the agent's key (RFC 9449); the SDK does: create_agent(bound=True)",
        )


class ChainTooLong(ScopeViolation):
    """A delegation would have more hops than a chain may have."""


class NotFound(Refusal):
    """No such app, agent or route."""

    error_code = "not_found"


class MethodNotAllowed(Refusal):
    """The route exists, but not for this method (RFC 9110 §15.5.6)."""

    error_code = "method_not_allowed"

    def __init__(self, allowed: frozenset[str]) -> None:
        super().__init__(f"this route answers {', '.join(sorted(allowed))}")
        self.allowed = allowed


class Conflict(Refusal):
    """A name that is taken, or an idempotency key reused with another body."""

    error_code = "conflict"


class PayloadTooLarge(Refusal):
    """A body over the limit, whether it was declared or streamed."""

    error_code = "payload_too_large"


class RateLimited(Refusal):
    """Too many failed attempts, or too much at once. `retry_after`: seconds."""

    error_code = "rate_limited"

    def __init__(self, detail: str, *, retry_after: int, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.retry_after = retry_after


class LimitReached(RateLimited):
    """An app has all that one of its limits allows.

    `limit`: its name; `until`: before when that cannot be otherwise (Unix seconds).
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
    """As many delegations are alive as may be: `whose` says of what, `allowed` how many that is."""

    def __init__(self, whose: str, allowed: int, *, retry_after: int) -> None:
        super().__init__(
            f"{allowed} delegations {whose} are alive, and no more may be",
            retry_after=retry_after,
            hint="release those that are done with, or give them a shorter ttl",
        )


class InternalError(Refusal):
    """A defect in the broker. The log has the trace; the answer has none of it."""

    error_code = "internal_error"


class Unavailable(Refusal):
    """The store cannot be reached or written, or the broker is full: nothing was done. `retry_after`: seconds.

    `cause`: one of few words, by which such answers are counted.
    """

    error_code = "unavailable"

    def __init__(self, detail: str, *, retry_after: int = 1, hint: str | None = None, cause: str = "store") -> None:
        super().__init__(detail, hint=hint)
        self.retry_after = retry_after
        self.cause = cause


class InvalidToken(AgentWritError):
    """A token that is not accepted. `reason` goes to the audit log and nowhere else."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unproven(InvalidToken):
    """A token that is not accepted from whoever presents it.

    `code`: what the challenge says (RFC 9449 §7.1); `told`: what whoever presents it may know besides, or empty.
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
    """A proof of possession that is not accepted. `reason` goes to the audit log and nowhere else."""

    told = ""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongTarget(InvalidProof):
    """A proof that is good, and for another URL. `told`: for which, and for which ones it should be.

    Whoever made it learns nothing but what it is called and what it was asked for, and can do something about it.
    """

    def __init__(self, given: str, urls: Collection[str]) -> None:
        told, *expected = (_plain(url) for url in [given, *urls][: MAX_TOLD_URLS + 1])
        super().__init__(f"the proof is for {told}")
        self.told = f"the proof is for {told}, and this is {' or '.join(expected) or 'known by no name'}"


def _plain_name(name: str) -> str:
    """A scope as it is; of an audience what is not ASCII, or does not show, is escaped."""
    text = ascii(name)[1:-1]
    return text if len(text) <= MAX_TOLD_LENGTH else f"{text[:MAX_TOLD_LENGTH]}..."


def _plain(url: str) -> str:
    """In quotes, in ASCII without control characters, and no longer than can be read."""
    text = ascii(url)
    return text if len(text) <= MAX_TOLD_LENGTH else f"{text[:MAX_TOLD_LENGTH]}...'"


class InvalidChallenge(AgentWritError):
    """A nonce that is not ours, or no longer fresh. `reason` goes to the audit log and nowhere else."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TamperedRecord(AgentWritError):
    """Evidence or stored state that does not match its hash or MAC."""


class ConfigurationError(AgentWritError):
    """A setting, a file or a directory that the program cannot start with: one line that says what to do."""
