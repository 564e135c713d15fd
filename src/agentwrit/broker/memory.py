"""Memory that the process does not need any more, given back to the system."""

import ctypes
from typing import Final

LARGE_BYTES: Final = 1024 * 1024
_M_MMAP_THRESHOLD: Final = -3  # of glibc's malloc.h


class _Nothing:
    """Where the C library has no such calls, it gives back by itself, or not at all."""

    def malloc_trim(self, _: int) -> None: ...

    def mallopt(self, _: int, __: int) -> None: ...


def _c_library() -> ctypes.CDLL | _Nothing:
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim, library.mallopt  # noqa: B018  # looked up when they are named
    except (OSError, TypeError, AttributeError):
        return _Nothing()
    return library


_LIBRARY: Final = _c_library()


def give_back_large_blocks() -> None:
    """Have every block of a mebibyte or more given back to the system as soon as it is freed. To be called once.

    By itself glibc learns from what is freed: after the first check of a password, for which argon2 takes 19 MiB, it
    would keep as much for the next one, in a heap of that thread that nothing else ever uses.
    """
    _LIBRARY.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Hand freed pages to the system. Takes milliseconds, without the GIL.

    By itself glibc gives back what lies above the last page in use, and keeps what lies between.
    """
    _LIBRARY.malloc_trim(0)
