"""The floor of any answer: uvicorn, and an ASGI application that reads the request and says the same bytes always.

Where it is given a public key, it checks the signature of the token in each request's body first, and nothing else.
"""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import uvicorn
import uvloop
from nacl.bindings import crypto_sign_open

from agentwrit.domain import base64url


async def main(headers: dict[str, str], body: bytes, public_key: bytes) -> None:
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def check(receive: Any) -> None:
        asked, is_more = b"", True
        while is_more:
            message = await receive()
            asked += message.get("body", b"")
            is_more = message.get("more_body", False)
        signing_input, _, signature = msgspec.json.decode(asked)["token"].rpartition(".")
        crypto_sign_open(base64url.decode(signature) + signing_input.encode(), public_key)

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        if public_key:
            await check(receive)
        else:
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
def running(headers: Mapping[str, str], body: str, *, public_key: bytes = b"") -> Iterator[str]:
    """The URL of a server of its own that answers everything with these bytes."""
    shown = {name: value for name, value in headers.items() if name != "date"}
    program = [sys.executable, "-m", "benchmarks.echo", json.dumps(shown), body, public_key.hex()]
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
    uvloop.run(main(json.loads(sys.argv[1]), sys.argv[2].encode(), bytes.fromhex(sys.argv[3])))
