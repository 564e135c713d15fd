"""The paths and contents of a tiled log (C2SP tlog-tiles): tiles of hashes, and bundles of entries.

The rules:

- A path is `<level>/<number>` or `entries/<number>`. The number is written in groups of three digits, of which all but
  the last are prefixed with `x`: 1234067 is `x001/x234/067`. A path has exactly one spelling.
- The path of a partial tile or bundle ends with `.p/<width>` and stays valid: served content never changes.
- A bundle is the concatenation of its entries, each preceded by its length as a 16-bit big-endian number.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from agentwrit.domain.errors import TamperedRecord
from agentwrit.domain.merkle import TILE_WIDTH

MAX_LEVEL: Final = 7  # a log never has 256^8 leaves

_PATH = re.compile(rf"(?:(entries)|([0-{MAX_LEVEL}]))/((?:x[0-9]{{3}}/){{0,5}}[0-9]{{3}})(?:\.p/([1-9][0-9]{{0,2}}))?")


class HashTile(NamedTuple):
    """A tile of `width` hashes."""

    level: int
    number: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        return f"{self.level}/{_number(self.number)}{_suffix(self.width)}"


class EntryBundle(NamedTuple):
    """A bundle of `width` entries."""

    number: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        return f"entries/{_number(self.number)}{_suffix(self.width)}"


def parse_path(path: str) -> HashTile | EntryBundle:
    """The tile or bundle at a path below `tile/`.

    Raises:
        ValueError: the path is malformed.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise ValueError("no path of a tile")
    is_bundle, level, groups, width = match.groups()
    number = int(groups.replace("/", "").replace("x", ""))
    wide = TILE_WIDTH if width is None else int(width)
    parsed = EntryBundle(number, wide) if is_bundle else HashTile(int(level), number, wide)
    if wide > TILE_WIDTH or parsed.path != path:
        raise ValueError("no path of a tile")
    return parsed


def bundle(entries: Iterable[bytes]) -> bytes:
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def unbundle(data: bytes) -> Iterator[bytes]:
    """The entries of a bundle.

    Raises:
        TamperedRecord: `data` is not a complete bundle.
    """
    at = 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data) or at + 2 > len(data):
            raise TamperedRecord("the bundle of entries is not whole")
        yield data[at + 2 : end]
        at = end


def _number(number: int) -> str:
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.insert(0, f"x{number % 1000:03d}")
    return "/".join(groups)


def _suffix(width: int) -> str:
    return "" if width == TILE_WIDTH else f".p/{width}"
