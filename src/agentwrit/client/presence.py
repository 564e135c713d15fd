"""What the blocking and the asynchronous agent have in common: how they show themselves."""

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
    """An agent as others see it."""

    _life: AgentLife

    @property
    def agent_id(self) -> str:
        """Its SPIFFE id."""
        return self._life.agent_id

    @property
    def scope(self) -> list[str]:
        """What it may do: `action:resource:identifier` each."""
        return self._life.scope

    @property
    def orch_id(self) -> str:
        return self._life.orch_id

    @property
    def task_id(self) -> str:
        return self._life.task_id

    @property
    def access_token(self) -> str:
        """The current token. After `release` it is still here, and dead."""
        return self._life.token.access_token.reveal()

    @property
    def expires_in(self) -> int:
        """How many seconds the current token had when it was issued."""
        return self._life.token.expires_in

    @property
    def seconds_left(self) -> float:
        """How long the current token is good for certain."""
        return self._life.seconds_left

    @property
    def is_due(self) -> bool:
        """Whether 75 % of the token's life is over: before it is shown to a service, `auth` would renew it."""
        return self._life.is_due

    @property
    def bearer_header(self) -> dict[str, str]:
        """The header that presents the token to a service (RFC 6750 §2.1).

        Raises:
            AgentWritError: the token is bound, and no service takes it like this: `headers` presents it.
        """
        if self._life.is_bound:
            raise AgentWritError("the token is bound to the agent's key: use headers(method, url) for each request")
        return {"Authorization": f"Bearer {self.access_token}"}

    def check(self, *needed: str) -> None:
        """See that it is not released, and that its scope covers these. Makes no call.

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
        """The headers that present the token in one request to a service: a bound one with a proof, good once.

        Raises:
            AgentWritError: `url` is not absolute.
        """
        return self._life.headers(method, url, self._life.token.access_token)

    @property
    def auth(self) -> "httpx2.Auth":
        """Shows the token to services: `httpx2.AsyncClient(auth=agent.auth)`, or with an `Agent` also a Client.

        It renews the token at 75 % of its life, once for all who share the agent, and repeats a request once that a
        service refused (401, or a 403 that says `invalid_token`) with a token that has been replaced since, unless
        the body of the request is a stream.

        A request then also raises:
            AgentWritError: the agent was released, or was made by the process that this one was forked from.
            AuthenticationError: the token is over, and is not renewed.
            TransportError: the token is over, and the broker was not reached.
        """
        auth: httpx2.Auth = self.auth_for("httpx2")
        return auth

    def auth_for(self, library: Library) -> Any:
        """The same for other HTTP libraries.

        "httpx" gives an httpx.Auth, "requests" a requests.auth.AuthBase (of an `Agent`), and "aiohttp" a middleware
        for `aiohttp.ClientSession(middlewares=[…])`, which shows the token to the origin that it is first used with.

        Raises:
            ImportError: the library is not there.
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
    """Say so without hiding what happened inside a `with`: that is what matters, and the token ends by itself."""
    error.add_note(f"the agent could not be released: {failure}")
