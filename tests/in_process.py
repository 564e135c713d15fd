"""A broker that is asked in process: httpx2 over its application, without a socket."""

import asyncio

import httpx2

from agentwrit.broker.http.edge import Edge
from agentwrit.broker.http.exchange import Pieces
from agentwrit.broker.http.http1 import Scope


class InProcess(httpx2.AsyncBaseTransport):
    """Takes requests to an application. `client`: the address that they come from."""

    def __init__(self, app: Edge, client: str = "192.0.2.1") -> None:
        self._app = app
        self._client = client

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        scope = Scope(
            http_version="1.1",
            method=request.method,
            scheme=request.url.scheme,
            path=request.url.path,
            query_string=request.url.query,
            headers=[(name.lower(), value) for name, value in request.headers.raw],
            client=(self._client, 1),
            server=(request.url.host, request.url.port or 80),
        )
        body = await request.aread()
        reply = _Reply()
        refusal = self._app.objection(scope)
        if refusal is not None:
            self._app.refuse(refusal, scope, reply)
        else:
            task = self._app.start(scope, body, reply, asyncio.get_running_loop())
            if task is not None:
                await task
        assert reply.response is not None, "it was not answered"
        return reply.response


class _Reply:
    """Keeps an answer."""

    def __init__(self) -> None:
        self.response: httpx2.Response | None = None

    def send(self, status: int, head: bytes, body: bytes, *, is_last: bool) -> None:
        lines = [line.split(b": ", 1) for line in head.split(b"\r\n") if line]
        self.response = httpx2.Response(status, headers=[(name, value) for name, value in lines], content=body)

    async def stream(self, status: int, head: bytes, first: bytes, rest: Pieces) -> None:
        pieces = [first]
        try:
            pieces += [piece async for piece in rest]
        finally:
            await rest.aclose()
        self.send(status, head, b"".join(pieces), is_last=True)
