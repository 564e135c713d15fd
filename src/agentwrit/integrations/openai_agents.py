"""Runs of the OpenAI Agents SDK: each of its agents acts as one of ours, and its tools are held to that one's scope.

    @function_tool(tool_input_guardrails=[requires_scope("read:data:customer-{customer_id}")])
    def read_customer(customer_id: str) -> str: ...

    triage = Agent(name="triage", tools=[read_customer], handoffs=[refunds])
    scopes = {"triage": ["read:data:customer-7291", "write:data:*"], "refunds": ["write:data:refund-7291"]}
    async with AgentWritHooks(app, task_id="ticket-31", scopes=scopes) as hooks:
        await Runner.run(triage, "…", hooks=hooks)

The rules:

- The agent that a run starts with gets its scope from the app. One that it hands off to gets its own from the agent
  before it, by delegation: so never more than that one has, and its tokens say on whose behalf it acts.
- A call that the scope does not cover is rejected before the tool begins. The model reads why, and the run goes on.
- Checked are the arguments that the tool gets: after the function's own types and validators have read them. A tool
  that is no function, such as an MCP server's, gets what the model wrote.
- Inside a guarded tool `current_agent()` is the agent whose model called it.
- Tokens are renewed ahead of their end whenever a model is asked or has answered: let them live (`max_ttl`) for four
  times as long as the slowest step of a run.
- At the end of the `async with` all of them are released, however the run ended.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from agents import (
    AgentHookContext,
    FunctionTool,
    ModelBehaviorError,
    RunContextWrapper,
    RunHooks,
    ToolInputGuardrail,
)
from agents import ToolGuardrailFunctionOutput as Output
from agents import ToolInputGuardrailData as Call
from agents.function_schema import function_schema

from agentwrit.client.async_agent import AsyncAgent
from agentwrit.client.async_app import AsyncAgentWritApp
from agentwrit.client.current import AnyAgent, act_as, current_agent
from agentwrit.client.life import RENEW_AT
from agentwrit.client.requirement import Requirement
from agentwrit.errors import AgentWritError, ScopeDenied, TransportError
from agentwrit.integrations.tool_scopes import with_defaults

FUNCTIONS_REMEMBERED: Final = 1024

_READ: Final = "agentwrit_arguments"  # where a call's context has what a guardrail before this one has read


class _Acting(NamedTuple):
    """As whom an agent of the framework acts: itself, or itself on what `source`, by its name, delegated to it."""

    identity: AsyncAgent
    source: str = ""
    delegated: AsyncAgent | None = None
    seconds: float = 0.0  # that the delegated token had in all


class AgentWritHooks(RunHooks[Any]):
    """The hooks of one run, and the agents that act in it, released at the end of an `async with`."""

    def __init__(
        self,
        app: AsyncAgentWritApp,
        *,
        task_id: str,
        scopes: Mapping[str, Iterable[str]],
        orch_id: str | None = None,
        max_ttl: int = 300,
        audience: str | Sequence[str] | None = None,
    ) -> None:
        """`scopes`: what each agent may do, by its name in the framework; one that is not named may call no guarded
        tool. `orch_id`: the app's client_id if not given. All else is as for `AsyncAgentWritApp.create_agent`.

        Raises:
            TypeError: a bare string was given where a list belongs.
        """
        if bare := [name for name, scope in scopes.items() if isinstance(scope, str)]:
            raise TypeError(f"the scope of {bare[0]} is given as a list of strings, not as one string")
        self._app = app
        self._task_id = task_id
        self._orch_id = app.client_id if orch_id is None else orch_id
        self._scopes = {name: list(scope) for name, scope in scopes.items()}
        self._max_ttl = max_ttl
        self._audience = audience
        self._identities = contextlib.AsyncExitStack()
        self._acting: dict[str, _Acting] = {}
        self._is_open = False
        self._outer: AgentWritHooks | None = None

    async def __aenter__(self) -> Self:
        self._outer = _run.get()
        _run.set(self)
        self._is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _run.set(self._outer)
        self._is_open = False
        self._acting.clear()
        # What was delegated ends with the agent that it came from.
        await self._identities.__aexit__(kind, error, trace)

    async def on_agent_start(self, context: AgentHookContext[Any], agent: Any) -> None:
        """Register the agent that a run starts with.

        Raises:
            AgentWritError: the hooks are used outside their `async with`, or the app cannot have this agent.
        """
        self._check_open()
        if agent.name in self._scopes and agent.name not in self._acting:
            self._acting[agent.name] = _Acting(await self._register(agent.name))

    async def on_handoff(self, context: RunContextWrapper[Any], from_agent: Any, to_agent: Any) -> None:
        """Delegate to the agent that goes on. One that has acted in this run goes on with what it had.

        Raises:
            AuthorizationError: its scope exceeds that of the agent before it.
            AgentWritError: the agent before it has no scope to hand on.
        """
        self._check_open()
        if to_agent.name not in self._scopes or to_agent.name in self._acting:
            return
        if from_agent.name not in self._acting:
            raise AgentWritError(f"{from_agent.name} has no scope of which {to_agent.name} could get any: name one")
        await self._delegate(from_agent.name, await self._register(to_agent.name), to_agent.name)

    async def on_llm_start(self, context: RunContextWrapper[Any], agent: Any, *_: Any) -> None:
        """Renew what is due: the model may take its time."""
        await self._renew_all()

    async def on_llm_end(self, context: RunContextWrapper[Any], agent: Any, response: Any) -> None:
        """Renew what is due: a tool may take its time."""
        await self._renew_all()

    async def agent_of(self, name: str) -> AsyncAgent | None:
        """Who an agent of the framework acts as, by its name; None if it has no scope.

        Raises:
            AgentWritError: the agent that it came from has ended.
            TransportError: the broker was not reached.
        """
        return await self._current(name) if name in self._acting else None

    async def _current(self, name: str) -> AsyncAgent:
        acting = self._acting[name]
        if acting.identity.is_due:
            with contextlib.suppress(TransportError):  # until its end, the token in use is good
                await acting.identity.renew()
        if acting.delegated is None:
            return acting.identity
        # What is delegated does not outlive the token that it came from: a run that does is given the next one.
        if acting.delegated.seconds_left >= (1 - RENEW_AT) * acting.seconds:
            return acting.delegated
        return await self._delegate(acting.source, acting.identity, name)

    async def _renew_all(self) -> None:
        for name in list(self._acting):
            with contextlib.suppress(AgentWritError):  # whoever acts as this one will be told
                await self._current(name)

    async def _register(self, name: str) -> AsyncAgent:
        agent = await self._app.create_agent(
            self._orch_id,
            self._task_id,
            self._scopes[name],
            max_ttl=self._max_ttl,
            label=name,
            audience=self._audience,
        )
        return await self._identities.enter_async_context(agent)

    async def _delegate(self, source: str, identity: AsyncAgent, name: str) -> AsyncAgent:
        holder = await self._current(source)
        delegated = await holder.delegate(identity.agent_id, self._scopes[name], ttl=self._max_ttl)
        agent = identity.accept(delegated)
        self._acting[name] = _Acting(identity, source, agent, delegated.expires_in)
        return agent

    def _check_open(self) -> None:
        if not self._is_open:
            raise AgentWritError("the hooks belong to one run: begin it inside `async with AgentWritHooks(…) as hooks`")


_run: ContextVar[AgentWritHooks | None] = ContextVar("agentwrit_openai_agents_run", default=None)


def requires_scope(*scopes: str) -> ToolInputGuardrail[Any]:
    """A guardrail for a tool: `@function_tool(tool_input_guardrails=[requires_scope(…)])`.

    `scopes`: all that a call needs, as templates that its arguments fill. Checked is the agent whose model calls, as
    the run's `AgentWritHooks` say, else the current agent.

    Raises:
        ValueError: one is no template of a scope, or there is none.
    """
    requirement = Requirement(scopes)

    async def scope_guardrail(call: Call) -> Output:
        agent = await _at_work(call)
        if agent is None:
            return Output.reject_content(f"refused: no scope is set for the agent {call.agent.name}")
        agent.check()
        try:
            requirement.check(_arguments(call, guardrail), agent.scope)
        except ScopeDenied as denied:
            return Output.reject_content(f"refused: {denied}")
        except ModelBehaviorError as error:  # before a tool that would have failed with this
            return Output.reject_content(f"refused: {error}")
        act_as(agent)  # the framework runs each call of a tool in a task of its own, and this is where it begins
        return Output.allow()

    guardrail: ToolInputGuardrail[Any] = ToolInputGuardrail(scope_guardrail, name="agentwrit")
    return guardrail


async def _at_work(call: Call) -> AnyAgent | None:
    run = _run.get()
    return current_agent() if run is None else await run.agent_of(call.agent.name)


def _arguments(call: Call, guardrail: ToolInputGuardrail[Any]) -> Mapping[str, object]:
    """The arguments of a call, as the tool gets them.

    Raises:
        ModelBehaviorError: they are not what it takes.
    """
    tool = _tool(call, guardrail)
    text = call.context.tool_arguments
    if tool is not None:
        read = getattr(tool.on_invoke_tool, "prepare_arguments", None)
        reading = None if read is None else read(text, call.context.tool_name)
        if reading is not None:
            # The SDK reads them ahead of the call where it asks for approval, and leaves it at that for types of the
            # application's. What is read here is what the call is made with.
            known = vars(call.context)
            prepared = known.get(_READ) or reading.owner(text, call.context.tool_name)
            known[_READ] = call.context._function_tool_arguments = prepared
            return _by_name(tool.on_invoke_tool, prepared.args, prepared.kwargs)
    try:
        given = json.loads(text or "{}")
    except ValueError:
        return {}
    described = {} if tool is None else tool.params_json_schema.get("properties", {})
    return with_defaults(given, described) if isinstance(given, dict) else {}


def _by_name(invoker: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, object]:
    function = invoker._get_wrapped_callable()
    names = _parameters(function)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@lru_cache(FUNCTIONS_REMEMBERED)
def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of a tool's parameters that are given by place, without the run's context."""
    schema = function_schema(function, use_docstring_info=False, strict_json_schema=False)
    names = [
        name
        for name, parameter in schema.signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return names[1:] if schema.takes_context else names


def _tool(call: Call, guardrail: ToolInputGuardrail[Any]) -> FunctionTool | None:
    """The tool that is called, unless it is a server's."""
    name = call.context.tool_name
    named = [tool for tool in call.agent.tools if isinstance(tool, FunctionTool) and tool.name == name]
    guarded = [tool for tool in named if guardrail in (tool.tool_input_guardrails or ())]
    return next(iter(guarded + named), None)
