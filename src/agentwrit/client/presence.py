"""What the blocking and the asynchronous agent have in common: their properties, and how they show their token."""

from typing import TYPE_CHECKING, Any, Literal

from agentwrit.client.keys import AgentKey
from agentwrit.client.life import AgentLife
from agentwrit.domain.scope import scope_is_subset
from agentwrit.errors import AgentWritError, ScopeDenied

if TYPE_CHECKING:
    import httpx2

    from agentwrit.client.auth import Tokens

Library = Literal["httpx2", "httpx", "requests", "aiohttp"]


class Presence:
    """An agent's public properties."""

    _life: AgentLife

    @property
    def agent_id(self) -> str:
        """Its SPIFFE ID."""
        return self._life.agent_id

    @property
    def scope(self) -> list[str]:
        """The agent's scope: a list of `action:resource:identifier`."""
        return self._life.scope

    @property
    def orch_id(self) -> str:
        """The `orch_id` that the agent was created with."""
        return self._life.orch_id

    @property
    def task_id(self) -> str:
        """The task that the agent was created for."""
        return self._life.task_id

    @property
    def access_token(self) -> str:
        """The current token. After `release` it is still available, but dead."""
        return self._life.token.access_token.reveal()

    @property
    def expires_in(self) -> int:
        """The lifetime of the current token when it was issued, in seconds."""
        return self._life.token.expires_in

    @property
    def seconds_left(self) -> float:
        """The seconds before the current token may expire."""
        return self._life.seconds_left

    @property
    def is_due(self) -> bool:
        """Whether 75 % of the token's lifetime has passed, so that `auth` would renew it before showing it."""
        return self._life.is_due

    @property
    def bearer_header(self) -> dict[str, str]:
        """The header that shows the token to a service (RFC 6750 §2.1).

        Raises:
            AgentWritError: the token is bound, so services require a proof: use `headers`.
        """
        if self._life.is_bound:
            raise AgentWritError("the token is bound to the agent's key: use headers(method, url) for each request")
        return {"Authorization": f"Bearer {self.access_token}"}

    def check(self, *needed: str) -> None:
        """Check that the agent is not released, and that its scope covers all of `needed`. Makes no call.

        Raises:
            ScopeDenied: the scope does not cover what is needed.
            AgentWritError: the agent was released.
        """
        self._life.live_token()
        if not scope_is_subset(needed, self.scope):
            raise ScopeDenied(list(needed), self.scope)

    @property
    def is_bound(self) -> bool:
        """Whether its tokens are bound to its key (RFC 9449)."""
        return self._life.is_bound

    def proof(self, method: str, url: str) -> str:
        """A proof by the agent's key for one request to a service with the current token (RFC 9449 §4.2).

        Raises:
            AgentWritError: `url` is not absolute.
        """
        return self._life.proof(method, url, self._life.token.access_token).reveal()

    def headers(self, method: str, url: str) -> dict[str, str]:
        """The headers that show the token in one request to a service; for a bound token with a proof, usable once.

        Raises:
            AgentWritError: `url` is not absolute.
        """
        return self._life.headers(method, url, self._life.token.access_token)

    @property
    def auth(self) -> "httpx2.Auth":
        """Shows the token to services: `httpx2.AsyncClient(auth=agent.auth)`, or with an `Agent` also a Client.

        It renews the token at 75 % of its lifetime, once for all that share the agent. If a service refuses a request
        (401, or a 403 with `invalid_token`) and the token has been replaced since, the request is repeated once, unless
        its body is a stream.

        A request then also raises:
            AgentWritError: the agent was released, or belongs to the parent of this process.
            AuthenticationError: the token has expired, and cannot be renewed.
            TransportError: the token has expired, and the broker was not reached.
        """
        auth: httpx2.Auth = self.auth_for("httpx2")
        return auth

    def auth_for(self, library: Library) -> Any:
        """As `auth`, for other HTTP libraries.

        "httpx" returns an httpx.Auth, "requests" a requests.auth.AuthBase (of an `Agent`), and "aiohttp" a middleware
        for `aiohttp.ClientSession(middlewares=[…])`, which shows the token to the first origin that it is used with.

        Raises:
            ImportError: the library is not installed.
        """
        from agentwrit.client.auth import make_auth

        return make_auth(library, self._tokens())

    def _tokens(self) -> "Tokens":
        raise NotImplementedError

    @property
    def _key(self) -> AgentKey:
        return self._life.key

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.agent_id!r}, scope={self.scope!r})"

    def __reduce__(self) -> str:
        raise TypeError("an agent is not pickled: its key and its token stay in this process")


def note_failed_release(error: BaseException, failure: AgentWritError) -> None:
    """Note a failed release in an error from inside the `with`. That error matters more: the token expires anyway."""
    error.add_note(f"the agent could not be released: {failure}")
