"""What the tools of a framework's agent need, by the names of the tools. Loads no framework.

The rules:

- A tool that is not named is refused: what nobody has thought about is not called.
- A tool whose list is empty needs nothing but an agent that lives.
- An argument that the model leaves out counts with the default that the tool's schema has for it.
"""

from collections.abc import Mapping, Sequence

from agentwrit.client.current import AnyAgent
from agentwrit.client.requirement import Requirement
from agentwrit.errors import ScopeDenied


class ToolScopes:
    """Scopes as templates, by the names of tools."""

    def __init__(self, scopes: Mapping[str, Sequence[str]]) -> None:
        """Read the templates.

        Raises:
            ValueError: one is no template of a scope.
            TypeError: a bare string was given where a list belongs.
        """
        self._needed = {name: Requirement(needed) if len(needed) else None for name, needed in scopes.items()}

    def refusal(
        self, agent: AnyAgent, name: str, arguments: Mapping[str, object], described: Mapping[str, Mapping[str, object]]
    ) -> str | None:
        """Why an agent may not make this call, for the model to read; None if it may.

        `described`: the JSON schemas of the tool's parameters, by name.

        Raises:
            AgentWritError: the agent was released.
        """
        agent.check()
        if name not in self._needed:
            return unnamed(name)
        requirement = self._needed[name]
        if requirement is None:
            return None
        try:
            requirement.check(with_defaults(arguments, described), agent.scope)
        except ScopeDenied as denied:
            return f"refused: {denied}"
        return None

    def is_named(self, name: str) -> bool:
        """Whether it is said what this tool needs."""
        return name in self._needed

    def leaves_open(self, name: str, arguments: Mapping[str, object]) -> bool:
        """Whether a call has no argument for a hole, so that a default counts."""
        requirement = self._needed.get(name)
        return requirement is not None and not requirement.holes <= arguments.keys()

    def is_within_reach(self, agent: AnyAgent, name: str) -> bool:
        """Whether there are arguments for which an agent may call this tool."""
        requirement = self._needed.get(name)
        return name in self._needed and (requirement is None or requirement.is_within_reach(agent.scope))


def with_defaults(
    arguments: Mapping[str, object], described: Mapping[str, Mapping[str, object]]
) -> Mapping[str, object]:
    """The arguments of a call, and for those that the model left out the defaults of the tool's schema.

    `described`: the JSON schemas of the tool's parameters, by name.
    """
    return {**{name: schema["default"] for name, schema in described.items() if "default" in schema}, **arguments}


def unnamed(name: str) -> str:
    """Why a tool is refused of which nobody said what it needs."""
    return f"refused: no scope is set for the tool {name}: it is not to be called"
