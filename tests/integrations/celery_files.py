"""A queue of files for Celery, each of which is whole as soon as it is there.

The one that comes with Celery writes a message into a file that the worker may read before it is written. Then the
message is lost, and the worker ends.
"""

import os
from pathlib import Path
from typing import Any

from kombu.transport import filesystem


class Channel(filesystem.Channel):
    """Messages are written beside the queue, and then moved into it."""

    def _put(self, queue: str, payload: Any, **kwargs: Any) -> None:  # type: ignore[override]  # as there
        folder = Path(self.data_folder_out)
        beside = folder / f"beside-{os.getpid()}-{os.urandom(8).hex()}"
        beside.mkdir()
        self.data_folder_out = beside
        try:
            super()._put(queue, payload, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            self.data_folder_out = folder
        for message in beside.iterdir():
            message.rename(folder / message.name)
        beside.rmdir()


class Transport(filesystem.Transport):
    Channel = Channel
