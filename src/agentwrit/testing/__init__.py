"""A broker for your own tests: a real one, in this process and in memory, on a clock that a test moves.

With pytest there is nothing to set up. The plugin comes with the package, needs `agentwrit[testing]`, and has fixtures:

    def test_an_expired_agent_reads_nothing(broker, agent, service):
        broker.advance(agent.expires_in)
        assert service.get("/customers/7", headers=agent.bearer_header).status_code == 401

- `broker`: a `LocalBroker` of the test's own
- `app`, `async_app`: an app that is registered there
- `agent`: an agent of `app`, and the current one

What the app may do is `agentwrit_ceiling`, and what the agent holds `agentwrit_scope`: fixtures that give lists of
scopes, for a project to override. A fixture of yours by one of these names takes the place of ours.
"""

from agentwrit.testing.local_broker import LocalBroker

__all__ = ["LocalBroker"]
