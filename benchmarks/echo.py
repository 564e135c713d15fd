"""The floor of any answer: uvicorn, and an ASGI application that reads the request and says the same bytes always."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
import uvloop


async def main(headers: dict[str, str], body: bytes) -> None:
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", False):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        echo,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])


@contextlib.contextmanager
def running(headers: Mapping[str, str], body: str) -> Iterator[str]:
    """The URL of a server of its own that answers everything with these bytes."""
    shown = {name: value for name, value in headers.items() if name != "date"}
    program = [sys.executable, "-m", "benchmarks.echo", json.dumps(shown), body]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("the echo has no output")
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1]), sys.argv[2].encode()))
