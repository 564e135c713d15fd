"""Apps' secrets, with one limit on wrong ones for all the routes that take them."""

import hashlib
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from agentwrit.broker.http.rate_limits import RateLimiter
from agentwrit.broker.services.apps import AppService
from agentwrit.broker.services.clients import ClientService
from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.issuing import IssuedToken
from agentwrit.domain.app import App
from agentwrit.domain.errors import RateLimited, Unauthorized

T = TypeVar("T")


class AppLogins:
    """Checks the secrets of apps. Each method raises Unauthorized for a wrong one, and RateLimited for too many."""

    def __init__(self, apps: AppService, clients: ClientService) -> None:
        self._apps = apps
        self._clients = clients
        self._attempts = RateLimiter(per_second=10 / 60, burst=3)

    async def log_in(
        self, caller: Caller, client_id: str, client_secret: str, *, wanted: Sequence[str] = ()
    ) -> IssuedToken:
        """An app token, as `AppService.authenticate` gives it."""
        attempt = self._apps.authenticate(caller, client_id, client_secret, wanted=wanted)
        return await self._limited(caller, client_id, attempt)

    async def identify(self, caller: Caller, client_id: str, client_secret: str) -> App:
        """The app whose secret it is."""
        return await self._limited(caller, client_id, self._clients.identify(caller, client_id, client_secret))

    async def _limited(self, caller: Caller, client_id: str, attempt: Awaitable[T]) -> T:
        try:
            return await attempt
        except Unauthorized:
            # Only now: a right secret is never limited, so nobody can lock an app out by naming it. By its digest,
            # because a stranger's id may be as long as a body.
            name = hashlib.sha256(client_id.encode("utf-8", "surrogatepass")).digest()
            retry_after = self._attempts.take((caller.network, name))
            if retry_after is not None:
                await self._clients.rate_limited(caller)
                raise RateLimited("too many failed logins for this client", retry_after=retry_after) from None
            raise
