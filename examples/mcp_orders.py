"""An MCP server whose tools take agents' tokens, and an agent that calls them over streamable HTTP.

agentwrit dev -- python examples/mcp_orders.py --customer 7291
"""

import argparse
import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from mcp import MCPError
from mcp.server import MCPServer

from agentwrit import AgentWritError, AsyncAgentWritApp, AsyncVerifier
from agentwrit.integrations.mcp import AgentWrit, connect

CUSTOMERS = {"7291": "John Doe, Premium tier", "9999": "Jane Roe, Basic tier"}


@contextlib.asynccontextmanager
async def order_server(broker_url: str) -> AsyncIterator[str]:
    """The URL of a server that is up."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    # With an audience of its own the app would be registered with it, and the broker's URL be enough here.
    async with AsyncVerifier(broker_url) as verifier:
        guard = AgentWrit(verifier, resource=url)
        server = MCPServer("orders", auth=guard.settings(), token_verifier=guard, log_level="WARNING")

        @server.tool()
        @guard.requires("read:data:customer-{customer}")
        async def read_customer(customer: str) -> str:
            """What is known of a customer."""
            return CUSTOMERS.get(customer, "nobody")

        app = guard.middleware(server.streamable_http_app())
        http = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        running = asyncio.create_task(http.serve([listener]))
        try:
            yield url
        finally:
            http.should_exit = True
            await running


async def work(app: AsyncAgentWritApp, url: str, customer: str) -> bool:
    """Ask for every customer. Returns whether the agent could read that one and no other, and is dead in the end."""
    read = []
    async with (
        app.agent_for(task_id=f"support-{customer}", scope=[f"read:data:customer-{customer}"]) as agent,
        connect(url, agent) as client,
    ):
        print(f"Tools: {', '.join(tool.name for tool in (await client.list_tools()).tools)}")
        for each in CUSTOMERS:
            try:
                answer = await client.call_tool("read_customer", {"customer": each})
            except MCPError as refused:
                print(f"Customer {each}: refused ({refused})")
            else:
                print(f"Customer {each}: {answer.content[0].model_dump()['text']}")
                read.append(each)
    print("Agent released.")
    return read == [customer] and not (await app.validate(agent.access_token)).valid


async def main() -> int:
    parser = argparse.ArgumentParser(description="An MCP server with guarded tools, and an agent that calls them.")
    parser.add_argument("--customer", default="7291", choices=sorted(CUSTOMERS), help="whom the agent may read")
    arguments = parser.parse_args()
    try:
        async with AsyncAgentWritApp.from_env() as app, order_server(app.broker_url) as url:
            return 0 if await work(app, url, arguments.customer) else 1
    except AgentWritError as error:
        print(f"mcp_orders: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
