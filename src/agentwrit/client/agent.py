"""An agent: an identity, a token for one task, and an end."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from agentwrit.client import steps
from agentwrit.client.driver import Driver
from agentwrit.client.keys import AgentKey
from agentwrit.errors import AgentWritError
from agentwrit.models import RegisterResult


class Agent:
    """A registered agent, made by `AgentWritApp.create_agent`. Safe to share between threads.

    As a context manager it releases its token on the way out, whatever happened inside.
    """

    def __init__(
        self,
        driver: Driver,
        key: AgentKey,
        registered: RegisterResult,
        *,
        scope: Sequence[str],
        orch_id: str,
        task_id: str,
    ) -> None:
        self.agent_id = registered.agent_id
        self.scope = list(scope)
        self.orch_id = orch_id
        self.task_id = task_id
        self._driver = driver
        self._key = key
        self._lock = threading.Lock()
        self._access_token = registered.access_token
        self._expires_in = registered.expires_in
        self._is_released = False

    @property
    def access_token(self) -> str:
        """The current token. After `release` it is still here, and dead."""
        return self._access_token

    @property
    def expires_in(self) -> int:
        """How many seconds the current token had when it was issued."""
        return self._expires_in

    @property
    def bearer_header(self) -> dict[str, str]:
        """The header that presents the token to a service (RFC 6750 §2.1)."""
        return {"Authorization": f"Bearer {self._access_token}"}

    def renew(self) -> None:
        """Replace the token by its successor; the one before is dead then.

        Raises:
            AgentWritError: the agent was released.
            AuthenticationError: the grant has ended.
            TransportError: the broker was not reached. The token in use may have been superseded: renew again.
        """
        seen = self._access_token
        with self._lock:
            if self._is_released:
                raise AgentWritError("the agent was released: create a new one")
            if self._access_token != seen:
                return  # another thread has just done it
            successor = self._driver.run(steps.renew(self._access_token))
            self._access_token = successor.access_token
            self._expires_in = successor.expires_in

    def release(self) -> None:
        """End the grant: this token, its successors and all that was delegated from it. Again, it does nothing.

        A grant that has ended already counts as released.

        Raises:
            TransportError: the broker was not reached; it may be tried again.
        """
        with self._lock:
            if not self._is_released:
                self._driver.run(steps.release(self._access_token))
                self._is_released = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except AgentWritError as failure:
            if error is None:
                raise
            # What happened inside is what matters; the token ends by itself.
            error.add_note(f"the agent could not be released: {failure}")

    def __repr__(self) -> str:
        return f"Agent({self.agent_id!r}, scope={self.scope!r})"

    def __reduce__(self) -> str:
        raise TypeError("an agent is not pickled: its key and its token stay in this process")
