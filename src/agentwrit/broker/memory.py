"""Returning unused memory to the operating system."""

import ctypes
from typing import Final

LARGE_BYTES: Final = 1024 * 1024
_M_MMAP_THRESHOLD: Final = -3  # from glibc's malloc.h


class _Nothing:
    """For C libraries without these calls, which return memory by themselves, or not at all."""

    def malloc_trim(self, _: int) -> None: ...

    def mallopt(self, _: int, __: int) -> None: ...


def _c_library() -> ctypes.CDLL | _Nothing:
    try:
        library = ctypes.CDLL(None)
        library.malloc_trim, library.mallopt  # noqa: B018  # names are looked up on access
    except (OSError, TypeError, AttributeError):
        return _Nothing()
    return library


_LIBRARY: Final = _c_library()


def give_back_large_blocks() -> None:
    """Return every block of a mebibyte or more to the system as soon as it is freed. Call this once.

    By default, glibc adapts to what is freed: after the first password check, for which argon2 takes 19 MiB, it would
    keep that much for the next one, in a heap of that thread that nothing else ever uses.
    """
    _LIBRARY.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> None:
    """Return freed pages to the system. Takes milliseconds, without the GIL.

    By default, glibc returns what lies above the last page in use, and keeps free pages below it.
    """
    _LIBRARY.malloc_trim(0)
