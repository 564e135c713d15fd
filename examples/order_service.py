"""An order service, and the order worker that works with it: a real table of customers and orders behind real routes.

The service asks nobody for each request. It follows the broker's revocations, so a token that was released is refused
here within moments, without a call.

    agentwrit dev -- python examples/order_service.py --customer 7291 --order 4823
"""

import argparse
import contextlib
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from typing import Annotated

import httpx2
import uvicorn
from fastapi import FastAPI, HTTPException, Security
from pydantic import BaseModel

from agentwrit import AgentClaims, AgentWritApp, AgentWritError
from agentwrit.integrations.fastapi import AgentWrit


class Customer(BaseModel):
    name: str
    tier: str


class Order(BaseModel):
    customer: str
    item: str


def create_service(broker_url: str, database: sqlite3.Connection) -> FastAPI:
    """The service over a database. Each route says which scope it needs, with what the path is about filled in."""
    auth = AgentWrit(broker_url)
    app = FastAPI(title="Orders", lifespan=auth.lifespan)

    @app.get("/customers/{customer}")
    async def read_customer(
        customer: str,
        agent: Annotated[AgentClaims, Security(auth, scopes=["read:data:customer-{customer}"])],
    ) -> Customer:
        row = database.execute("SELECT name, tier FROM customers WHERE id = ?", (customer,)).fetchone()
        if row is None:
            raise HTTPException(404, "no such customer")
        return Customer(name=row[0], tier=row[1])

    @app.put("/orders/{order}")
    async def write_order(
        order: str,
        content: Order,
        agent: Annotated[AgentClaims, Security(auth, scopes=["write:data:order-{order}"])],
    ) -> Order:
        with database:
            # Who wrote it is not what the caller says, but what its token proves.
            row = (order, content.customer, content.item, agent.sub)
            database.execute("INSERT OR REPLACE INTO orders VALUES (?, ?, ?, ?)", row)
        return content

    return app


def open_database() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE customers (id TEXT PRIMARY KEY, name TEXT, tier TEXT)")
    database.execute("CREATE TABLE orders (id TEXT PRIMARY KEY, customer TEXT, item TEXT, written_by TEXT)")
    database.executemany(
        "INSERT INTO customers VALUES (?, ?, ?)", [("7291", "John Doe", "premium"), ("9999", "Jane Roe", "basic")]
    )
    return database


@contextlib.contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The service's URL, for as long as it runs on a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise AgentWritError("the service did not start")
        time.sleep(0.01)
    [listener] = server.servers[0].sockets
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def work(app: AgentWritApp, service: httpx2.Client, customer: str, order: str) -> bool:
    """Process one order. Returns whether the worker could do that, and nothing else."""
    scope = [f"read:data:customer-{customer}", f"write:data:order-{order}"]
    with app.create_agent("order-worker", f"process-{order}", scope) as agent:
        print(f"Agent: {agent.agent_id}")
        content = {"customer": customer, "item": "a blue bicycle"}
        statuses = [
            report(service.get(f"/customers/{customer}", headers=agent.bearer_header)),
            report(service.put(f"/orders/{order}", headers=agent.bearer_header, json=content)),
            report(service.get("/customers/9999", headers=agent.bearer_header)),
            report(service.put("/orders/0000", headers=agent.bearer_header, json=content)),
        ]
    print("Agent released.")
    deadline = time.monotonic() + 2
    answer = service.get(f"/customers/{customer}", headers=agent.bearer_header)
    while answer.status_code == 200 and time.monotonic() < deadline:
        answer = service.get(f"/customers/{customer}", headers=agent.bearer_header)
    return [*statuses, report(answer)] == [200, 200, 403, 403, 401]


def report(answer: httpx2.Response) -> int:
    """Print what was asked, and what the service said."""
    said = answer.json() if answer.status_code == 200 else answer.headers["www-authenticate"]
    print(f"[{answer.status_code}] {answer.request.method} {answer.request.url.path}: {said}")
    return answer.status_code


def main() -> int:
    parser = argparse.ArgumentParser(description="Process one order at a service of its own.")
    parser.add_argument("--customer", required=True, help="whose order it is, for example 7291")
    parser.add_argument("--order", required=True, help="which order, for example 4823")
    arguments = parser.parse_args()
    try:
        with AgentWritApp.from_env() as app, contextlib.closing(open_database()) as database:
            with (
                serving(create_service(app.broker_url, database)) as url,
                httpx2.Client(base_url=url, trust_env=False) as service,
            ):
                held = work(app, service, arguments.customer, arguments.order)
            print()
            for row in database.execute("SELECT id, customer, item, written_by FROM orders"):
                print("In the table:", *row, sep="\n  ")
        return 0 if held else 1
    except AgentWritError as error:
        print(f"order_service: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
