"""A LangChain agent that may read one customer, whatever its model asks for.

agentwrit dev -- python examples/frameworks/langchain_support.py
"""

import sys
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool

from agentwrit import AgentWritApp, AgentWritError
from agentwrit.integrations.langchain import AgentWritMiddleware

CUSTOMERS = {"7291": "John Doe, Premium tier", "9999": "Jane Roe, Basic tier"}
SCOPES = {"read_customer": ["read:data:customer-{customer_id}"]}


@tool
def read_customer(customer_id: str) -> str:
    """What is known of a customer."""
    return CUSTOMERS[customer_id]


class Scripted(FakeMessagesListChatModel):
    """Stands in for your model: it asks for its own customer, and then for somebody else's."""

    def bind_tools(self, tools: Any, **options: Any) -> "Scripted":
        return self


def ask_for(customer_id: str) -> AIMessage:
    call = {"name": "read_customer", "args": {"customer_id": customer_id}, "id": customer_id, "type": "tool_call"}
    return AIMessage("", tool_calls=[call])


def work(app: AgentWritApp) -> bool:
    """Let the model ask for both. Returns whether it got its own customer, and was told why not the other."""
    model = Scripted(responses=[ask_for("7291"), ask_for("9999"), AIMessage("I may only see customer 7291.")])
    assistant = create_agent(model, [read_customer], middleware=[AgentWritMiddleware(SCOPES)])
    with app.agent_for(task_id="support-7291", scope=["read:data:customer-7291"]):
        messages = assistant.invoke({"messages": [{"role": "user", "content": "Compare 7291 and 9999."}]})["messages"]
    read = [message for message in messages if isinstance(message, ToolMessage)]
    for message in read:
        print(f"The model read: {message.content}")
    print(f"It answered: {messages[-1].content}")
    return [message.status for message in read] == ["success", "error"]


def main() -> int:
    try:
        with AgentWritApp.from_env() as app:
            return 0 if work(app) else 1
    except AgentWritError as error:
        print(f"langchain_support: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
