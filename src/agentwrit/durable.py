"""What is on disk to stay."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file that is there durable; or, of a directory, the names in it.

    Raises:
        OSError: it cannot be.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
