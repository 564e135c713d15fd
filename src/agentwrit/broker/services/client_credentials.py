"""Tokens for services, asked for as OAuth clients do: by the app's secret (RFC 6749 §4.4), for a resource (RFC 8707).

Such a token is that of an agent of its own, under the rules for all agents of the app: its ceiling, its audiences, its
limits. The agent has proven no key, so its grant ends with its one token, and nothing that is bound can come to it.
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

TASK: Final = "client-credentials"  # what the tasks of such agents are called, with a number behind it


class ClientCredentialsService:
    """Issues such tokens."""

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
            InvalidRequest: there are too many names in `audience`, or the token would be too large.
            Unauthorized: the app is not active.
            ScopeViolation: more is asked for than the app may give, or its agents have to be bound to keys.
            LimitReached: the app has all the agents that it may have, or has them made too fast.
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
