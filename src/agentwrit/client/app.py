"""An app, which creates agents."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from agentwrit.client import steps, tls
from agentwrit.client.agent import Agent
from agentwrit.client.clock import SYSTEM_CLOCK, Clock
from agentwrit.client.current import acting_as
from agentwrit.client.driver import Connected, Driver
from agentwrit.client.keys import Ed25519PrivateKey
from agentwrit.client.life import AgentLife
from agentwrit.client.policy import CALL_SECONDS, Login
from agentwrit.client.secrecy import Secret, discreet
from agentwrit.errors import AgentWritError
from agentwrit.models import HealthStatus, ValidateResult

if TYPE_CHECKING:
    import httpx2

_VARIABLES = ("AGENTWRIT_BROKER_URL", "AGENTWRIT_CLIENT_ID", "AGENTWRIT_CLIENT_SECRET")


class Identity:
    """What the blocking and the asynchronous app have in common: their repr, and their creation from variables."""

    broker_url: Any
    client_id: str

    @classmethod
    def from_env(cls) -> Self:
        """The app described by AGENTWRIT_BROKER_URL, AGENTWRIT_CLIENT_ID and AGENTWRIT_CLIENT_SECRET.

        If the broker requires a client certificate (AGENTWRIT_TLS_CLIENT_CA), the app shows the one in the PEM file
        AGENTWRIT_CLIENT_CERT. Its key is in the same file, or in AGENTWRIT_CLIENT_KEY.

        Raises:
            AgentWritError: a variable is not set; the message names it.
        """
        missing = [name for name in _VARIABLES if not os.environ.get(name)]
        if missing:
            raise AgentWritError(f"set {' and '.join(missing)}: `agentwrit app register` shows the values")
        make: Callable[..., Self] = cls
        return make(*(os.environ[name] for name in _VARIABLES), cert=tls.from_environment())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.broker_url!r}, client_id={self.client_id!r})"

    def __reduce__(self) -> str:
        raise TypeError("an app is not pickled: its secret stays in this process; make it anew with from_env()")


class AgentWritApp(Identity, Connected):
    """An app at a broker. It makes no call before it needs to. Safe to share between threads.

        with AgentWritApp("https://broker.example", client_id, client_secret) as app:
            with app.create_agent("orders", "order-4823", ["read:data:customer-7291"]) as agent:
                ...  # call services with auth=agent.auth

    It keeps the client secret for logins, and shows it nowhere.
    """

    @discreet
    def __init__(
        self,
        broker_url: str,
        client_id: str,
        client_secret: str,
        *,
        timeout: float = CALL_SECONDS,
        user_agent: str | None = None,
        http_client: "httpx2.Client | None" = None,
        verify: Any = None,
        cert: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Set up an app, without making a call.

        - `timeout`: seconds for a whole call, retries included.
        - `http_client`: an httpx2.Client to use. Its creator closes it, in the process that created it. `verify` and
          `cert` then have no effect.
        - `verify`: as for httpx2.
        - `cert`: the client certificate for a broker that requires one: a PEM file that also holds the key, a tuple of
          the two files, or a tuple of these and the key's passphrase.
        - `clock`: the clock for agents; tests may replace it.

        Raises:
            AgentWritError: `broker_url` is not a valid URL.
        """
        secret = Secret(client_secret)
        self.client_id = client_id
        self._clock = clock
        self._driver = Driver(
            broker_url,
            timeout=timeout,
            user_agent=user_agent,
            login=Login(lambda: steps.app_login(client_id, secret)),
            http_client=http_client,
            verify=verify,
            cert=cert,
        )
        self._ceremony = steps.Ceremony(self._driver.broker_url)

    def create_agent(
        self,
        orch_id: str,
        task_id: str,
        requested_scope: Iterable[str],
        *,
        private_key: Ed25519PrivateKey | None = None,
        max_ttl: int = 300,
        label: str | None = None,
        audience: str | Sequence[str] | None = None,
        bound: bool = False,
    ) -> Agent:
        """Register an agent for one task.

        - `orch_id`, `task_id`: parts of its SPIFFE ID.
        - `requested_scope`: a list of scopes of the form `action:resource:identifier`, within the app's ceiling.
        - `private_key`: its Ed25519 key; a new one by default.
        - `max_ttl`: the lifetime of its tokens in seconds.
        - `label`: its name in the audit log.
        - `audience`: the services that its tokens are for.
        - `bound`: whether to bind its tokens to its key (RFC 9449), so that a stolen token is useless. Show bound
          tokens to services with `Agent.headers` or `Agent.auth`.

        Raises:
            AuthenticationError: the broker rejected the app's credentials.
            AuthorizationError: the scope exceeds the app's ceiling, or the app's agents must be `bound`.
            AgentWritError: the broker does not bind tokens.
            ProblemResponseError: an argument is invalid.
            CryptoError: `private_key` cannot be used.
            TransportError: the broker was not reached.
        """
        life = self._driver.run(
            AgentLife.begin(
                self._ceremony,
                orch_id=orch_id,
                task_id=task_id,
                requested_scope=requested_scope,
                private_key=private_key,
                max_ttl=max_ttl,
                label=label,
                audience=audience,
                bound=bound,
                clock=self._clock,
            )
        )
        return Agent(self._driver, life)

    @contextlib.contextmanager
    def agent_for(
        self,
        *,
        task_id: str,
        scope: Iterable[str],
        orch_id: str | None = None,
        max_ttl: int = 300,
        label: str | None = None,
        audience: str | Sequence[str] | None = None,
        bound: bool = False,
    ) -> Iterator[Agent]:
        """An agent for one task: the current agent (`current_agent`) inside the `with`, and released at its end.

            with app.agent_for(task_id="order-4823", scope=["read:data:customer-7291"]):
                read_customer("7291")

        `scope`: scopes of the form `action:resource:identifier`. `orch_id`: the app's client ID by default. All other
        arguments, and the errors, are those of `create_agent`.
        """
        agent = self.create_agent(
            self.client_id if orch_id is None else orch_id,
            task_id,
            scope,
            max_ttl=max_ttl,
            label=label,
            audience=audience,
            bound=bound,
        )
        with agent, acting_as(agent):
            yield agent

    @discreet
    def take_over(self, token: str) -> Agent:
        """An agent that acts on a token from elsewhere, such as a job in a queue, without the original agent's key.

        It becomes the token's holder: it renews the token and releases it. `Agent.delegate` makes such tokens. Makes no
        call, so it does not tell whether the token is valid; `validate` does.

        Raises:
            AgentWritError: it is not an agent's token, or it is bound to a key.
        """
        return Agent(self._driver, AgentLife.take_over(Secret(token), clock=self._clock))

    @discreet
    def validate(
        self, token: str, *, proof: str | None = None, htm: str | None = None, htu: str | None = None
    ) -> ValidateResult:
        """Ask the broker whether `token` is valid, and what it says. An invalid token is a result, not an error.

        A bound token is valid only with its `proof`: the DPoP header of the request whose method is `htm` and whose URL
        is `htu` (RFC 9449 §4.3). Each proof can be used once.

        Raises:
            TransportError: the broker was not reached.
        """
        return self._driver.run(steps.validate(Secret(token), steps.ShownProof(proof, htm, htu)))

    def health(self) -> HealthStatus:
        """The broker's health.

        Raises:
            TransportError: the broker was not reached.
        """
        return self._driver.run(steps.health())
