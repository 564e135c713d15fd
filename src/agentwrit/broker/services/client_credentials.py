"""Tokens by the OAuth client credentials grant: for the app's secret (RFC 6749 §4.4) and a resource (RFC 8707).

Each token belongs to a new agent, under the rules for all agents of the app: ceiling, audiences, limits. The agent has
proven no key, so its grant ends with its one token, and no bound grant can be delegated to it.
"""

import os
from collections.abc import Sequence
from typing import Final

from agentwrit.broker.services.context import Caller
from agentwrit.broker.services.denials import Denial, DenialLog
from agentwrit.broker.services.issuing import IssuedToken, TokenIssuer
from agentwrit.broker.services.limits import LimitedApps
from agentwrit.broker.services.log_budget import LogBudget
from agentwrit.broker.services.registration import DirectApplication, RegistrationService
from agentwrit.broker.storage.base import Transaction
from agentwrit.domain import spiffe_id
from agentwrit.domain.app import App
from agentwrit.domain.errors import Unauthorized

TASK: Final = "client-credentials"  # the prefix of such agents' task IDs, followed by a random number


class ClientCredentialsService:
    """Issues tokens by the client credentials grant."""

    def __init__(
        self,
        denials: DenialLog,
        registration: RegistrationService,
        issuer: TokenIssuer,
        limited: LimitedApps,
        log_budget: LogBudget,
    ) -> None:
        self._denials = denials
        self._registration = registration
        self._issuer = issuer
        self._limited = limited
        self._log_budget = log_budget

    async def issue(self, caller: Caller, client: App, scope: Sequence[str], audience: Sequence[str]) -> IssuedToken:
        """A token for a client that has shown its secret. `scope`: empty for all that the app's agents may have.

        Raises:
            InvalidRequest: `audience` has too many names, or the token would be too large.
            Unauthorized: the app is not active.
            ScopeViolation: the scope exceeds the app's ceiling, or the app's agents must have bound tokens.
            LimitReached: the app has reached its limit of live agents or of its creation rate.
        """
        task_id = f"{TASK}-{os.urandom(spiffe_id.INSTANCE_BYTES).hex()}"
        try:
            self._log_budget.check(caller, client.client_id, app_id=client.app_id)
            self._limited.check(caller, client.app_id, orch_id=client.name, task_id=task_id)
        except Denial as denied:
            raise await self._denials.record(denied) from None

        def issue(transaction: Transaction) -> tuple[IssuedToken, App]:
            app = transaction.app(client.app_id)
            if app is None or not app.is_active:
                raise Unauthorized("the app is not active")
            application = DirectApplication(
                public_key=b"",
                orch_id=app.name,
                task_id=task_id,
                requested_scope=tuple(scope) or app.scopes,
                agent_name=f"{app.name}/{TASK}",
                max_ttl=None,
                audience=self._issuer.listed_audience(app, audience),
                is_bound=False,
                proof="",
                urls=(),
                idempotency_key=None,
            )
            terms = self._registration.terms(app.app_id, app.client_id, application)
            return self._registration.admit(transaction, caller, application, terms, app), app

        return await self._registration.write(issue, client.app_id)
