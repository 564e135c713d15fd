#!/usr/bin/env bash
# A model asks for two tools at once, and one of them raises: what becomes of the other (langgraph 1.2.24, pydantic-ai-slim
# 2.68.0, openai-agents 0.24.0)?
#
# Guess: the framework waits for the other call, or cancels it, as `asyncio.gather` is often said to do; when the run is
# over, so are its tools.
# Seen: Pydantic AI cancels it, and so does the Agents SDK when told to raise (its default reports the error to the model and
# waits). LangGraph's ToolNode raises at once and lets the other call run on by itself: it acts after its run has failed,
# nobody awaits it, and a caller who tries the run again has it acting twice. With `handle_tool_errors=True` it waits.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" --disable-pip-version-check install --quiet --no-compile \
  langgraph==1.2.24 langgraph-prebuilt==1.1.3 langchain-core==1.8.3 pydantic-ai-slim==2.68.0 openai-agents==0.24.0
cat >"$dir/run.py" <<'PY'
import asyncio
from agents import Agent as OpenAIAgent, Model, ModelResponse as OpenAIResponse, Runner, Usage, function_tool, set_tracing_disabled
from langchain_core.messages import AIMessage
from langchain_core.tools import StructuredTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel

set_tracing_disabled(True)

class Tools:
    """`bad` raises once `slow` has begun; `slow` acts when the run is over, or after two seconds of being awaited."""

    def __init__(self):
        self.begun, self.over, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.fate = "never ends"

    async def slow(self) -> str:
        """Act slowly."""
        self.begun.set()
        try:
            await asyncio.wait_for(self.over.wait(), 2)
            self.fate = "acts after the run"
        except TimeoutError:
            self.fate = "acts, and the run waits"
        except asyncio.CancelledError:
            self.fate = "is cancelled"
            raise
        finally:
            self.done.set()
        return "done"

    async def bad(self) -> str:
        """Raise."""
        await self.begun.wait()
        raise ValueError("boom")

def langgraph(tools, **options):
    calls = [{"name": name, "args": {}, "id": name} for name in ("slow", "bad")]
    made = [StructuredTool.from_function(coroutine=getattr(tools, call["name"]), name=call["name"]) for call in calls]
    graph = StateGraph(MessagesState).add_node("tools", ToolNode(made, **options)).add_edge(START, "tools").compile()
    return graph.ainvoke({"messages": [AIMessage("", tool_calls=calls)]})

def pydantic_ai(tools):
    def model(messages, info):
        calls = [ToolCallPart("slow", {}), ToolCallPart("bad", {})]
        return ModelResponse(parts=calls if len(messages) == 1 else [TextPart("end")])
    return Agent(FunctionModel(model), tools=[tools.slow, tools.bad]).run("go")

class OpenAIModel(Model):
    asked = False

    async def get_response(self, *_, **__):
        output = [ResponseFunctionToolCall(name=name, call_id=name, arguments="{}", type="function_call") for name in ("slow", "bad")]
        if self.asked:
            text = ResponseOutputText(text="end", type="output_text", annotations=[])
            output = [ResponseOutputMessage(id="1", role="assistant", status="completed", type="message", content=[text])]
        self.asked = True
        return OpenAIResponse(output=output, usage=Usage(), response_id=None)

    def stream_response(self, *_, **__):
        raise NotImplementedError

def openai_agents(tools, **options):
    made = [function_tool(tool, **options) for tool in (tools.slow, tools.bad)]
    return Runner.run(OpenAIAgent("agent", tools=made, model=OpenAIModel()), "go")

async def watch(name, start, **options):
    tools = Tools()
    try:
        await start(tools, **options)
        end = "goes on"
    except Exception as error:
        end = f"ends with {type(error).__name__}"
    tools.over.set()
    await asyncio.wait_for(tools.done.wait(), 20)
    print(f"{name}: the run {end}, the other tool {tools.fate}", flush=True)

async def main():
    await watch("LangGraph", langgraph)
    await watch("LangGraph, handle_tool_errors=True", langgraph, handle_tool_errors=True)
    await watch("Pydantic AI", pydantic_ai)
    await watch("OpenAI Agents", openai_agents)
    await watch("OpenAI Agents, failure_error_function=None", openai_agents, failure_error_function=None)

asyncio.run(main())
PY
timeout 90 "$dir/venv/bin/python" -W ignore "$dir/run.py" 2>"$dir/log" | tee "$dir/seen"
diff -u - "$dir/seen" <<'EXPECTED'
LangGraph: the run ends with ValueError, the other tool acts after the run
LangGraph, handle_tool_errors=True: the run goes on, the other tool acts, and the run waits
Pydantic AI: the run ends with ValueError, the other tool is cancelled
OpenAI Agents: the run goes on, the other tool acts, and the run waits
OpenAI Agents, failure_error_function=None: the run ends with UserError, the other tool is cancelled
EXPECTED
