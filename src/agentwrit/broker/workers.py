"""Several workers of one broker: processes that accept connections from the same socket, and a supervisor.

Each worker is a complete broker over the shared database. The supervisor serves nothing.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from agentwrit.broker import counts
from agentwrit.broker.config import PREFIX, Config
from agentwrit.domain.errors import ConfigurationError

RESTART_SECONDS: Final = 1  # before a worker that ended is restarted
STOP_SECONDS: Final = 30

log = structlog.get_logger("agentwrit.workers")


class Workers:
    """The workers. `listeners`: the sockets from which they accept connections; `file`: the settings file, if any."""

    def __init__(self, config: Config, file: Path | None, listeners: Sequence[socket.socket]) -> None:
        self._config = config
        self._file = file
        self._listeners = listeners
        # Only this process has the write end: when it is gone for any reason, the workers read the end and stop.
        self._stop_read, self._stop_write = os.pipe()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        # If metrics are served on the shared port, the worker that is asked has to know the counts of all.
        self._counts = [counts.new_file() for _ in range(config.workers)] if config.metrics_port is None else []

    async def start(self) -> None:
        """Start all workers, and wait until they serve.

        Raises:
            ConfigurationError: a worker did not start, and has reported why.
        """
        await asyncio.gather(*(self._start(number) for number in range(self._config.workers)))

    async def keep(self) -> None:
        """Restart workers that end, until cancelled."""
        await asyncio.gather(*(self._keep(number) for number in range(self._config.workers)))

    def drain(self) -> None:
        """Tell all workers that they will be stopped: each continues to serve, and reports that it is not ready."""
        self._tell(signal.SIGTERM)

    async def stop(self) -> None:
        """Tell all workers to stop now, and wait until they have."""
        self._tell(signal.SIGINT)
        os.close(self._stop_write)  # for workers that do not handle signals yet
        for process in self._processes.values():
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        for descriptor in (self._stop_read, *self._counts):
            os.close(descriptor)

    def _tell(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    async def _keep(self, number: int) -> None:
        while True:
            code = await self._processes[number].wait()
            log.error("a worker ended, and will be restarted", worker=number, exit_code=code)
            await asyncio.sleep(RESTART_SECONDS)
            try:
                await self._start(number)
            except ConfigurationError:
                pass  # it has reported why, and is retried
            except Exception as error:  # any refusal by the system: the other workers and this process continue
                log.error("a worker cannot be started, and this will be retried", worker=number, exc_info=error)

    async def _start(self, number: int) -> None:
        ready_read, ready_write = os.pipe()
        listening = [listener.fileno() for listener in self._listeners]
        file = [] if self._file is None else ["--config", str(self._file)]
        own_first = [*self._counts[number:], *self._counts[:number]]
        try:
            self._processes[number] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agentwrit.broker", "serve", *file,
                "--ready-fd", str(ready_write), "--stop-on-eof", str(self._stop_read),
                *[text for each in listening for text in ("--listen-fd", str(each))],
                *(["--counts-fds", ",".join(map(str, own_first))] if own_first else []),
                env={**os.environ, **self._own_settings(number)},
                pass_fds=[ready_write, self._stop_read, *listening, *own_first],
                start_new_session=True,  # Ctrl-C is handled here, and passed on
            )  # fmt: skip
        finally:
            os.close(ready_write)
        with os.fdopen(ready_read) as ready:
            line = await asyncio.get_running_loop().run_in_executor(None, ready.readline)
        if not line:
            raise ConfigurationError("a worker did not start: see what it said")
        log.info("a worker serves", worker=number, pid=json.loads(line)["pid"])

    def _own_settings(self, number: int) -> dict[str, str]:
        """Each worker counts for itself, so each serves its metrics on its own port."""
        if self._config.metrics_port is None:
            return {}
        return {f"{PREFIX}METRICS_PORT": str(self._config.metrics_port + number)}
