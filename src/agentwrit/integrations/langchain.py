"""The tools of LangChain's agents, held to the scope of the agent that is at work.

    graph = create_agent(
        model,
        tools=[read_customer, look_up_word],
        middleware=[
            AgentWritMiddleware({"read_customer": ["read:data:customer-{customer_id}"], "look_up_word": []})
        ],
    )
    with app.agent_for(task_id="support-7291", scope=["read:data:customer-7291"]):
        graph.invoke({"messages": [...]})

Each call is checked before its tool begins. What is refused becomes a ToolMessage that says what was needed and what is
held: the model reads it, and the run goes on. Inside a tool `current_agent()` is the agent it was checked for.

The rules:

- Checked are the arguments that the tool gets: after its schema has read them, with what is injected (`InjectedState`),
  and with what a middleware behind this one made of them. A tool that such a middleware puts in the place of another
  is its own affair: let this one be the last.
- A tool with a `run` or an `invoke` of its own may read its arguments as it likes. It is checked with the model's
  arguments besides, and both have to be covered.
- A tool that is not among the agent's, as another middleware may bring it later, is refused.

A graph of one's own has `AgentWritMiddleware(SCOPES).tool_node(tools)` in place of `ToolNode(tools)`.
"""

import inspect
from collections import ChainMap
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Final

from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ToolCallRequest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, Tool
from langgraph.prebuilt import ToolNode
from langgraph.types import Command

from agentwrit.client.current import AnyAgent, acting_as, current_agent
from agentwrit.integrations.tool_scopes import ToolScopes, unnamed

Answer = ToolMessage | Command[Any]

KINDS_REMEMBERED: Final = 256


class AgentWritMiddleware(AgentMiddleware[Any, Any, Any]):
    """Checks each call of a tool, on threads and on an event loop."""

    def __init__(self, scopes: Mapping[str, Sequence[str]], *, agent: AnyAgent | None = None) -> None:
        """`scopes`: what each tool needs, by its name, as templates that its arguments fill.

        A tool that needs nothing has an empty list; one that is not named is refused. `agent`: who is at work, the
        current agent if not given.

        Raises:
            ValueError: one is no template of a scope.
            TypeError: a bare string was given where a list belongs.
        """
        super().__init__()
        self._scopes = ToolScopes(scopes)
        self._agent = agent

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Answer]) -> Answer:
        """Check a call, and let the tool begin.

        Raises:
            NoCurrentAgent: nobody is at work.
            AgentWritError: the agent was released.
        """
        call = _Call(self._scopes, self._agent or current_agent(), request)
        answer: Answer | None = None
        if call.refusal is None:
            with call.checked() as changed:
                answer = handler(changed)
        return answer if answer is not None and call.refusal is None else call.refused()

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Answer]]
    ) -> Answer:
        """As `wrap_tool_call`."""
        call = _Call(self._scopes, self._agent or current_agent(), request)
        answer: Answer | None = None
        if call.refusal is None:
            with call.checked() as changed:
                answer = await handler(changed)
        return answer if answer is not None and call.refusal is None else call.refused()

    def tool_node(self, tools: Sequence[BaseTool | Callable[..., Any]], **options: Any) -> ToolNode:
        """A node for a graph of one's own, whose calls are checked. `options`: the others of LangGraph's `ToolNode`."""
        return ToolNode(tools, wrap_tool_call=self.wrap_tool_call, awrap_tool_call=self.awrap_tool_call, **options)


class _Refused(Exception):
    """Ends a tool before its body."""


class _Call:
    """One call of a tool. `refusal`: why it is refused, as soon as that is known."""

    def __init__(self, scopes: ToolScopes, agent: AnyAgent, request: ToolCallRequest) -> None:
        self._scopes = scopes
        self._agent = agent
        self._request = request
        self._tool = request.tool
        self._name: str = request.tool_call["name"] if self._tool is None else self._tool.name
        self.refusal: str | None = None
        agent.check()
        if not scopes.is_named(self._name):
            self.refusal = unnamed(self._name)
        elif self._tool is None:
            self.refusal = (
                f"refused: there is no tool {self._name} here (where a middleware brings it, AgentWritMiddleware comes"
                " after that one)"
            )
        elif not _reads_as_others_do(type(self._tool)):
            self.refusal = self._why(request.tool_call["args"])

    @contextmanager
    def checked(self) -> Iterator[ToolCallRequest]:
        """The request with a tool that begins only if the arguments that it gets are covered."""
        with acting_as(self._agent), suppress(_Refused):
            yield (
                self._request if self._tool is None else self._request.override(tool=_checking(self._tool, self._check))
            )

    def refused(self) -> ToolMessage:
        call = self._request.tool_call
        return ToolMessage(self.refusal or "refused", name=call["name"], tool_call_id=call["id"], status="error")

    def _check(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See that the tool may begin with these.

        Raises:
            _Refused: it may not.
        """
        arguments = {**self._by_place(args), **kwargs} if args else kwargs
        self.refusal = self._why(arguments)
        if self.refusal is not None:
            raise _Refused(self.refusal)

    def _by_place(self, args: Sequence[Any]) -> Mapping[str, Any]:
        """A tool with a single parameter gets it by place, and models may name it otherwise than its schema does."""
        known = {} if self._tool is None else self._tool.args
        named = (dict(zip(names, args, strict=False)) for names in (known, self._request.tool_call["args"]))
        return dict(ChainMap(*named))

    def _why(self, arguments: Mapping[str, object]) -> str | None:
        # What a tool says of its parameters is worked out anew each time.
        is_open = self._scopes.leaves_open(self._name, arguments)
        described = self._tool.args if is_open and self._tool is not None else {}
        return self._scopes.refusal(self._agent, self._name, arguments, described)


class _Checking:
    """What becomes of a tool's class: it has its arguments checked as soon as they are read."""

    __slots__ = ()

    def _to_args_and_kwargs(self, tool_input: Any, tool_call_id: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super()._to_args_and_kwargs(tool_input, tool_call_id)  # type: ignore[misc] # a BaseTool's
        self.__dict__[_CHECK](args, kwargs)
        return args, kwargs


def _checking(tool: BaseTool, check: Callable[[Sequence[Any], Mapping[str, Any]], None]) -> BaseTool:
    """A tool like another one, whose body is that one's, and that is checked before."""
    checking = tool.__copy__()
    checking.__class__ = _checking_class(type(tool))
    # What a body keeps in its tool, it keeps in the one that the application made.
    checking.__dict__.update(_run=tool._run, _arun=tool._arun, **{_CHECK: check})
    return checking


@lru_cache(KINDS_REMEMBERED)
def _checking_class(kind: type[BaseTool]) -> type[BaseTool]:
    return type(kind.__name__, (_Checking, kind), {"__module__": kind.__module__})


@lru_cache(KINDS_REMEMBERED)
def _reads_as_others_do(kind: type[BaseTool]) -> bool:
    """Whether a tool's arguments are read where ours are checked."""
    return all(inspect.getattr_static(kind, name) in _READING for name in _ENTRIES)


_CHECK: Final = "agentwrit_check"
_ENTRIES: Final = ("run", "arun", "invoke", "ainvoke")
_READING: Final = [vars(kind).get(name) for kind in (BaseTool, StructuredTool, Tool) for name in _ENTRIES]
