"""An app: what creates agents."""

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
    """What a blocking and an asynchronous app have in common: how they show themselves, and where they come from."""

    broker_url: Any
    client_id: str

    @classmethod
    def from_env(cls) -> Self:
        """The app that AGENTWRIT_BROKER_URL, AGENTWRIT_CLIENT_ID and AGENTWRIT_CLIENT_SECRET describe.

        Where the broker asks for a certificate (AGENTWRIT_TLS_CLIENT_CA) the app shows the one in the PEM file
        AGENTWRIT_CLIENT_CERT, whose key is there too, or in AGENTWRIT_CLIENT_KEY.

        Raises:
            AgentWritError: one of them is not set; names it.
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
    """An app at a broker. Makes no call before it has to. Safe to share between threads.

    The secret is kept to log in with, and shown nowhere.
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
        """`timeout`: seconds for a whole call, retries included. `http_client`: an httpx2.Client to use, and to close
        by whoever made it, in the process that made it. Else `verify` is what httpx2 takes by this name, and `cert` is
        the certificate to show to a broker that asks for one: a PEM file that has its key too, or a tuple of the two
        files, or of these and the key's passphrase. `clock`: what time it is for agents; tests may move it.

        Raises:
            AgentWritError: `broker_url` is no URL.
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

        `orch_id` and `task_id` become part of its SPIFFE id. `requested_scope`: `action:resource:identifier` each,
        within the app's ceiling. `private_key`: its Ed25519 key, else a fresh one. `max_ttl`: seconds that its tokens
        live. `label`: its name in the audit log. `audience`: whom its tokens are for. `bound`: its tokens are bound to
        its key (RFC 9449), so that they are of no use to who steals them; services are shown `Agent.headers`.

        Raises:
            AuthenticationError: the app's credentials were not accepted.
            AuthorizationError: the scope exceeds the app's ceiling, or the app's agents have to be `bound`.
            AgentWritError: the broker binds no tokens.
            ProblemResponseError: an argument is not what it should be.
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
        """An agent for one task, and the current one (`current_agent`) inside the `with`, which releases it at its end.

        `scope`: `action:resource:identifier` each. `orch_id`: the app's client_id if not given. All else, errors
        included, is as for `create_agent`.
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
        """An agent that acts on a token that it was handed, such as a job in a queue, without the agent's key.

        It is the token's holder from now on: it renews it and releases it. `Agent.delegate` makes such tokens. Makes no
        call: whether the token holds, `validate` tells.

        Raises:
            AgentWritError: it is not an agent's token, or is bound to a key.
        """
        return Agent(self._driver, AgentLife.take_over(Secret(token), clock=self._clock))

    @discreet
    def validate(
        self, token: str, *, proof: str | None = None, htm: str | None = None, htu: str | None = None
    ) -> ValidateResult:
        """Whether `token` holds, and what it says. A bad token is an answer, not an error.

        A bound token holds with its `proof` alone: what came in the DPoP header of the request whose method is `htm`
        and whose URL is `htu`. A proof is good once.

        Raises:
            TransportError: the broker was not reached.
        """
        return self._driver.run(steps.validate(Secret(token), steps.ShownProof(proof, htm, htu)))

    def health(self) -> HealthStatus:
        """How the broker is.

        Raises:
            TransportError: it was not reached.
        """
        return self._driver.run(steps.health())
