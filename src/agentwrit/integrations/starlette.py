"""Agents' tokens at the routes of a Starlette application.

    guard = Guard("https://broker.example.com", audience="orders")

    @guard.requires("read:data:customer-{customer_id}")
    async def read_customer(request: Request) -> Response: ...

    app = Starlette(routes=[Route("/customers/{customer_id}", read_customer)], lifespan=guard.lifespan)

What is refused is refused as RFC 6750 §3 and RFC 9449 §7.1 have it, by a Starlette HTTPException.
"""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request

from agentwrit.client.acceptance import OnStale
from agentwrit.client.async_verifier import AsyncVerifier
from agentwrit.client.reporting import UNNAMED
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.client.verifier import VERIFY_SECONDS
from agentwrit.domain import authorization, jwk, target_uri
from agentwrit.domain.authorization import SeveralCredentials
from agentwrit.domain.scope import scope_is_subset
from agentwrit.domain.scope_template import ScopeTemplate, UnfitValue
from agentwrit.domain.target_uri import KnownNames
from agentwrit.errors import AgentWritError, InvalidToken, TransportError, Unproven
from agentwrit.models import AgentClaims

A = TypeVar("A")
Endpoint: TypeAlias = Callable[[Request], Awaitable[A]]

RETRY_AFTER_SECONDS: Final = 1
UNTOLD: Final = "whether the token holds cannot be told now"

BEARER: Final = "Bearer"
DPOP: Final = f'DPoP algs="{" ".join(jwk.proof_algorithms())}"'

_IN_PATHS: Final = "/!$&'()*+,;=:@~"  # what clients leave as it is (RFC 3986 §3.3)


class _Presented(NamedTuple):
    """A token as a request presents it; `proof` None for one that anybody may bear."""

    token: Secret[str]
    proof: Secret[str] | None


class Guard:
    """Checks the tokens of requests with an `AsyncVerifier`, which it makes or is given, and can report what they do.

    A token that is bound to its agent's key (RFC 9449) is taken with a proof alone, and no other with one.
    """

    @discreet
    def __init__(
        self,
        broker: str | AsyncVerifier,
        *,
        audience: str | Iterable[str] | None = None,
        max_staleness: float = 5.0,
        on_stale: OnStale = "online",
        timeout: float = VERIFY_SECONDS,
        public_url: str | Iterable[str] | None = None,
        report: bool = False,
        client_id: str | None = None,
        client_secret: str | None = None,
    ) -> None:
        """`broker`: its URL, or a verifier to use, and to close by whoever made it.

        `max_staleness`, `on_stale`, `timeout`: as for `AsyncVerifier`: when the broker is asked, and how long a request
        may wait for that.

        `public_url`: what clients reach the application by, such as https://orders.example.com, or several such URLs;
        else proofs are taken for the address that a connection came to (127.0.0.1 and localhost, say), and for no name.
        What a request has as its Host is not asked: a proof that was shown to another service would come with that.

        `report`: whether each request that is let through by its scopes is reported to the broker, for its audit log,
        with its method and path. That is done as the app of `client_id` and `client_secret`, or as that of the verifier
        (see `AsyncVerifier.report`).

        Raises:
            AgentWritError: a URL is none, or there is no app to report as.
        """
        self._names = _names(public_url)
        self._owns_verifier = isinstance(broker, str)
        self._verifier = (
            AsyncVerifier(
                broker,
                audience=audience,
                max_staleness=max_staleness,
                on_stale=on_stale,
                timeout=timeout,
                client_id=client_id,
                client_secret=client_secret,
            )
            if isinstance(broker, str)
            else broker
        )
        self._is_reporting = report
        if report and not self._verifier.can_report:
            raise AgentWritError(UNNAMED)

    @discreet
    async def check(self, request: Request, needed: Sequence[ScopeTemplate]) -> AgentClaims:
        """Who asks, if its token covers all of `needed`, filled from the path. They are also in `request.state.agent`.

        Raises:
            HTTPException: 401 without a token that holds, 403 if it does not reach that far, 503 where that cannot be
                told, 400 for two tokens at once. Its headers are those that belong to it.
            LookupError: a template has a hole that the path has no value for: a mistake of the route's author.
        """
        presented = _presented(request)
        urls = () if presented.proof is None else self._urls(request)
        try:
            claims = await self._verifier.verify(
                presented.token.reveal(),
                proof=None if presented.proof is None else presented.proof.reveal(),
                htm=request.method,
                htu=urls,
            )
        except Unproven as unproven:
            challenge = f'{DPOP}, error="{unproven.code}"'
            told = f": {unproven.told}, by the service's public_url" if unproven.told else ""
            raise _refused(401, f"the token does not hold without a proof by its key{told}", challenge) from None
        except InvalidToken:
            raise _refused(401, "the token does not hold", f'{BEARER} error="invalid_token"') from None
        except TransportError:
            raise HTTPException(503, UNTOLD, {"retry-after": str(RETRY_AFTER_SECONDS)}) from None
        if presented.proof is not None and claims.cnf is None:  # RFC 9449 §7.1: this scheme is for bound ones
            raise _refused(401, "the token is not bound to a key", f'{BEARER} error="invalid_token"')
        try:
            scopes = [template.fill(request.path_params) for template in needed]
        except UnfitValue:
            # Nobody can hold that. What the route needs is told as its author wrote it, and what was sent not at all.
            raise _insufficient(presented, [template.text for template in needed]) from None
        if not scope_is_subset(scopes, claims.scope):
            raise _insufficient(presented, scopes)
        if self._is_reporting and scopes:
            self._verifier.report(claims, scope=scopes, resource=f"{request.method} {request.url.path}")
        request.state.agent = claims
        return claims

    def _urls(self, request: Request) -> tuple[str, ...]:
        """The request's URL, as it was asked for, under each name by which the application is known."""
        scope = request.scope
        raw = scope.get("raw_path") or quote(scope["path"], safe=_IN_PATHS).encode("ascii")
        if target_uri.has_dot_segments(raw):  # to the proof's maker it is another path than to our routes
            raise _refused(401, "the path has dot segments", f'{DPOP}, error="invalid_dpop_proof"')
        root = quote(scope.get("app_root_path", scope.get("root_path", "")).rstrip("/"), safe=_IN_PATHS)
        path = target_uri.normal_path(raw)
        bases = self._names.bases(scope.get("scheme", "http"), scope.get("server"))
        return tuple(target_uri.within(base, root, path) for base in bases)

    def requires(
        self, *scopes: str
    ) -> Callable[[Callable[[Request], Awaitable[A]]], Callable[[Request], Awaitable[A]]]:
        """Let only those through to an endpoint whose tokens cover all these scopes.

        Raises:
            ValueError: one is no template of a scope.
        """
        needed = [ScopeTemplate(scope) for scope in scopes]

        def decorate(endpoint: Endpoint[A]) -> Endpoint[A]:
            @functools.wraps(endpoint)
            async def guarded(request: Request) -> A:
                await self.check(request, needed)
                return await endpoint(request)

            return guarded

        return decorate

    async def aclose(self) -> None:
        """Stop following revocations, unless the verifier is somebody else's."""
        if self._owns_verifier:
            await self._verifier.aclose()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """For an application's `lifespan`: closes at its end."""
        try:
            yield
        finally:
            await self.aclose()


def _names(public_url: str | Iterable[str] | None) -> KnownNames:
    urls = [public_url] if isinstance(public_url, str) else list(public_url or ())
    try:
        return KnownNames(urls)
    except ValueError:
        raise AgentWritError(f"public_url takes URLs such as https://orders.example.com, not {public_url!r}") from None


def _presented(request: Request) -> _Presented:
    """The request's one token, as a bearer token (RFC 6750 §2.1) or with its proof (RFC 9449 §7.1)."""
    try:
        given = authorization.read(request.headers.getlist("authorization"))
    except SeveralCredentials:
        challenge = f'{BEARER} error="invalid_request"'
        raise _refused(400, "there is more than one Authorization header", challenge) from None
    match given:
        case ("bearer", token) if token:
            return _Presented(Secret(token), None)
        case ("dpop", token) if token:
            proofs = request.headers.getlist("dpop")
            if len(proofs) != 1:  # RFC 9449 §4.3, 1
                raise _refused(401, "a token of this kind comes with one proof", f'{DPOP}, error="invalid_dpop_proof"')
            return _Presented(Secret(token), Secret(proofs[0]))
    raise _refused(401, "a token is needed", f"{BEARER}, {DPOP}")  # RFC 6750 §3.1: no error code where none was shown


def _insufficient(presented: _Presented, scopes: Sequence[str]) -> HTTPException:
    needed = " ".join(scopes)
    scheme = f"{BEARER} " if presented.proof is None else f"{DPOP}, "
    return _refused(403, f"needed: {needed}", f'{scheme}error="insufficient_scope", scope="{needed}"')


def _refused(status: int, detail: str, challenge: str) -> HTTPException:
    return HTTPException(status, detail, {"www-authenticate": challenge})
