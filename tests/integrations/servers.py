"""Applications behind a real server and real sockets."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def serving(make: Callable[[str], Any], **options: Any) -> Iterator[str]:
    """The URL at which uvicorn serves the application that `make` makes of it. `options`: those of `uvicorn.Config`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(make(url), log_config=None, timeout_graceful_shutdown=1, **options))
        ready = threading.Event()
        startup = server.startup

        async def started(*arguments: Any, **keywords: Any) -> None:
            await startup(*arguments, **keywords)
            ready.set()

        server.startup = started  # type: ignore[method-assign]  # it tells nobody that it listens
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(20)
            yield url
        finally:
            server.should_exit = True
            thread.join()
