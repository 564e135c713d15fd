"""The Merkle tree over the audit log (RFC 9162 §2.1), stored and served as tiles (C2SP tlog-tiles).

The rules:

- A leaf's hash is SHA-256(0x00 ‖ entry), a node's is SHA-256(0x01 ‖ left ‖ right), so a leaf cannot pass for a node.
- Tile `number` of `level` has the hashes of up to 256 consecutive subtrees of 256^level leaves each. It contains only
  complete subtrees, so a tile grows to 256 hashes and then never changes again.
- The right edge, which is the unfinished tile of each level, suffices for appending and for computing the root.
- An inclusion proof shows that a leaf is in the tree with a given root (§2.1.3). A consistency proof shows that one
  tree continues another (§2.1.4). Checks raise an error; they never return a result.

Leaves and tiles are counted from 0.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from agentwrit.domain.errors import TamperedRecord

HASH_BYTES: Final = 32
TILE_WIDTH: Final = 256
FULL_TILE_BYTES: Final = TILE_WIDTH * HASH_BYTES
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

TileReader = Callable[[int, int], bytes]
"""Returns the hashes of the tile at (level, number), as many as there are."""

_sha256 = hashlib.sha256


def leaf_hash(entry: bytes) -> bytes:
    return _sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return _sha256(b"\1" + left + right).digest()


def root_of(hashes: bytes) -> bytes:
    """The root over nodes of one height. `hashes`: their hashes, concatenated; at least one."""
    row = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
    while len(row) > 1:
        # The last node of an odd row moves up unchanged. This equals RFC 9162's split at a power of 2.
        paired = [node_hash(row[at], row[at + 1]) for at in range(0, len(row) - 1, 2)]
        row = paired + row[len(paired) * 2 :]
    return row[0]


class Tile(NamedTuple):
    """A tile, full or partial."""

    level: int
    number: int
    hashes: bytes


class Edge(NamedTuple):
    """The right edge of a tree of `size` leaves: the hashes of the unfinished tile of each level."""

    size: int = 0
    tiles: tuple[bytes, ...] = (b"",)

    def append(self, leaf: bytes) -> tuple["Edge", Sequence[Tile]]:
        """Append the leaf with this hash. Returns the new edge, and the tiles to be stored.

        These are the tiles that became full, and above each of them the tile that has grown by its root.
        """
        hashes = self.tiles[0] + leaf
        if len(hashes) < FULL_TILE_BYTES:
            return Edge(self.size + 1, (hashes, *self.tiles[1:])), ()
        return self._closed(hashes)

    def _closed(self, hashes: bytes) -> tuple["Edge", Sequence[Tile]]:
        """The edge after `hashes` filled the tile of level 0, and the tiles to be stored."""
        last = self.size - self.size % TILE_WIDTH + TILE_WIDTH - 1
        tiles, kept = [hashes, *self.tiles[1:]], []
        for level in range(len(tiles)):
            kept.append(Tile(level, last >> (8 * (level + 1)), tiles[level]))
            if len(tiles[level]) < FULL_TILE_BYTES:
                break
            root, tiles[level] = root_of(tiles[level]), b""
            if level + 1 == len(tiles):
                tiles.append(root)
                kept.append(Tile(level + 1, 0, root))
                break
            tiles[level + 1] += root
        return Edge(last + 1, tuple(tiles)), kept

    def root(self) -> bytes:
        """The root of the tree."""
        below = b""
        for hashes in self.tiles:
            if hashes or below:
                below = root_of(hashes + below)
        return below or EMPTY_ROOT


class Growth:
    """A tree that grows leaf by leaf. Like `Edge`, but in place and faster."""

    def __init__(self, edge: Edge = Edge()) -> None:  # noqa: B008  # an immutable value
        self._edge = edge
        hashes = edge.tiles[0]
        self._row = [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]

    def append(self, leaf: bytes) -> Sequence[Tile]:
        """Append a leaf. Returns the tiles to be stored, as `Edge.append` does."""
        self._row.append(leaf)
        if len(self._row) < TILE_WIDTH:
            return ()
        self._edge, kept = self._edge._closed(b"".join(self._row))
        self._row.clear()
        return kept

    @property
    def edge(self) -> Edge:
        size = self._edge.size - self._edge.size % TILE_WIDTH + len(self._row)
        return Edge(size, (b"".join(self._row), *self._edge.tiles[1:]))


def width(level: int, number: int, size: int) -> int:
    """The number of hashes in the tile at (level, number) of a tree of `size` leaves; 0 if there is no such tile."""
    return max(0, min(TILE_WIDTH, (size >> (8 * level)) - number * TILE_WIDTH))


def edge_at(size: int, read: TileReader) -> Edge:
    """The right edge of a tree when it had `size` leaves."""
    tiles, level = [], 0
    while level == 0 or size >> (8 * level):
        number = size >> (8 * (level + 1))
        count = width(level, number, size)
        tiles.append(_hashes(read, level, number, count) if count else b"")
        level += 1
    return Edge(size, tuple(tiles))


def inclusion_proof(index: int, size: int, read: TileReader) -> list[bytes]:
    """The inclusion proof for the leaf `index` in the tree of `size` leaves (§2.1.3.1)."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has none with the index {index}")
    proof: list[bytes] = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            proof.append(_range_root(middle, end, read))
            end = middle
        else:
            proof.append(_range_root(first, middle, read))
            first = middle
    return proof[::-1]


def consistency_proof(old: int, new: int, read: TileReader) -> list[bytes]:
    """The consistency proof between the trees of `old` and `new` leaves (§2.1.4.1)."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} leaves continues none of {old}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    first, end = 0, new
    while end != old:
        middle = first + _split(end - first)
        if old <= middle:
            proof.append(_range_root(middle, end, read))
            end = middle
        else:
            proof.append(_range_root(first, middle, read))
            first = middle
    if first:  # otherwise the old tree is a subtree of the new one, and its root is known
        proof.append(_range_root(first, end, read))
    return proof[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Check that the tree with `size` leaves and this root has the leaf hash `leaf` at `index` (§2.1.3.2).

    Raises:
        TamperedRecord: the proof does not prove it.
    """
    if not 0 <= index < size or not _are_hashes([leaf, root, *proof]):
        raise TamperedRecord("the inclusion proof is not of this tree")
    found = leaf
    for sibling, is_left in _climb(index, size - 1, proof):
        found = node_hash(sibling, found) if is_left else node_hash(found, sibling)
    if found != root:
        raise TamperedRecord("the inclusion proof does not lead to the root")


def check_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Check that the tree of `new` leaves continues the tree of `old` leaves (§2.1.4.2).

    Raises:
        TamperedRecord: the proof does not prove it.
    """
    if not 0 <= old <= new or not _are_hashes([old_root, new_root, *proof]):
        raise TamperedRecord("the consistency proof is not of these trees")
    if old in (0, new):
        is_right = old_root == new_root if old == new else old_root == EMPTY_ROOT
        if proof or not is_right:
            raise TamperedRecord("the trees are not consistent")
        return
    path = [*([] if old & (old - 1) else [old_root]), *proof]
    if not path:
        raise TamperedRecord("the proof is too short")
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    found_old = found_new = path[0]
    for sibling, is_left in _climb(position, last, path[1:]):
        if is_left:
            found_old = node_hash(sibling, found_old)
        found_new = node_hash(sibling, found_new) if is_left else node_hash(found_new, sibling)
    if found_old != old_root or found_new != new_root:
        raise TamperedRecord("the trees are not consistent")


def _climb(position: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The siblings on the path from the node `position` to the root, each with whether it is on the left.

    `last`: the index of the last node in the row of `position`.

    Raises:
        TamperedRecord: the proof ends before the root or beyond it.
    """
    for sibling in proof:
        if last == 0:
            raise TamperedRecord("the proof is too long")
        is_left = bool(position & 1) or position == last
        yield sibling, is_left
        while is_left and position and not position & 1:
            position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    if last != 0:
        raise TamperedRecord("the proof is too short")


def _split(count: int) -> int:
    """The largest power of two below `count` (§2.1.1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _range_root(first: int, end: int, read: TileReader) -> bytes:
    """The root over the leaves from `first` to before `end`, one of the ranges into which §2.1.1 splits a tree."""
    count = end - first
    if count & (count - 1):
        middle = first + _split(count)
        return node_hash(_range_root(first, middle, read), _range_root(middle, end, read))
    height = count.bit_length() - 1
    level, nodes = height // 8, 1 << (height % 8)
    number, at = divmod(first >> (8 * level), TILE_WIDTH)
    hashes = _hashes(read, level, number, at + nodes)
    return root_of(hashes[at * HASH_BYTES :])


def _hashes(read: TileReader, level: int, number: int, count: int) -> bytes:
    hashes = read(level, number)[: count * HASH_BYTES]
    if len(hashes) != count * HASH_BYTES:
        raise TamperedRecord(f"tile {number} of level {level} is not whole")
    return hashes


def _are_hashes(values: Sequence[bytes]) -> bool:
    return all(len(value) == HASH_BYTES for value in values)
