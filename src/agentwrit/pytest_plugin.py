"""The pytest plugin. pytest loads it wherever the package is installed, so fixtures import what they use."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agentwrit import Agent, AgentWritApp, AsyncAgentWritApp
    from agentwrit.testing.local_broker import LocalBroker


@pytest.fixture
def broker() -> Iterator["LocalBroker"]:
    """A broker for this test alone, in this process: `url`, `clock`, `advance(seconds)`, `app(…)`, `revoke(…)`."""
    try:
        from agentwrit.testing.local_broker import LocalBroker
    except ImportError as error:
        pytest.fail(f"install agentwrit[testing]: there is no {error.name}", pytrace=False)
    with LocalBroker() as broker:
        yield broker


@pytest.fixture
def agentwrit_ceiling() -> list[str]:
    """The ceiling of `app` and `async_app`. Override it for a project's own scopes."""
    return ["read:data:*", "write:data:*"]


@pytest.fixture
def agentwrit_scope() -> list[str]:
    """The scope of `agent`. Override it for a project's own scopes."""
    return ["read:data:1"]


@pytest.fixture
def app(broker: "LocalBroker", agentwrit_ceiling: list[str]) -> "AgentWritApp":
    """An app registered at `broker`."""
    return broker.app(*agentwrit_ceiling)


@pytest.fixture
def async_app(broker: "LocalBroker", agentwrit_ceiling: list[str]) -> "AsyncAgentWritApp":
    """An app registered at `broker`, for tests on an event loop."""
    return broker.async_app(*agentwrit_ceiling)


@pytest.fixture
def agent(app: "AgentWritApp", agentwrit_scope: list[str]) -> Iterator["Agent"]:
    """An agent of `app`, which is also the current agent (`current_agent`). It is released after the test."""
    with app.agent_for(task_id="test", scope=agentwrit_scope) as agent:
        yield agent
