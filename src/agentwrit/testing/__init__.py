"""A broker for your own tests: a real broker, in this process and in memory, with a clock that a test can move.

With pytest there is nothing to set up. The plugin is part of the package, needs `agentwrit[testing]`, and has fixtures:

    def test_an_expired_agent_reads_nothing(broker, agent, service):
        broker.advance(agent.expires_in)
        assert service.get("/customers/7", headers=agent.bearer_header).status_code == 401

- `broker`: a `LocalBroker` for this test alone
- `app`, `async_app`: an app registered at that broker
- `agent`: an agent of `app`, which is also the current agent

The fixtures `agentwrit_ceiling` (the app's ceiling) and `agentwrit_scope` (the agent's scope) return lists of scopes.
Override them for your project. A fixture of yours with one of these names replaces the plugin's.
"""

from agentwrit.testing.local_broker import LocalBroker

__all__ = ["LocalBroker"]
