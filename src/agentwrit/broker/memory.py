"""Memory that the process does not need any more, given back to the system."""

import ctypes
from typing import Final


class _Nothing:
    def malloc_trim(self, _: int) -> None:
        """Where the C library has no such call, it gives back by itself, or not at all."""


def _c_library() -> ctypes.CDLL | _Nothing:
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim  # noqa: B018  # looked up when it is named
    except (OSError, TypeError, AttributeError):
        return _Nothing()
    return library


_LIBRARY: Final = _c_library()


def give_back() -> None:
    """Hand freed pages to the system. Takes milliseconds, without the GIL.

    By itself glibc gives back what lies above the last page in use, and keeps what lies between.
    """
    _LIBRARY.malloc_trim(0)
