"""The Merkle tree: as RFC 9162 defines it, by published vectors, and by laws."""

import base64
import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentwrit.domain import merkle
from agentwrit.domain.errors import TamperedRecord

VECTORS = json.loads((Path(__file__).parent / "vectors" / "merkle.json").read_text())
INCLUSION = VECTORS["inclusion"]
CONSISTENCY = VECTORS["consistency"]

# The leaves of the published vectors, which those of RFC 6962's implementations are too.
PUBLISHED_ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]

SIZE = 700  # two full tiles, and one that is not
LEAVES = [merkle.leaf_hash(f"entry {number}".encode()) for number in range(SIZE)]


def by_definition(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162 §2.1.1, word by word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\1" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


class Tree:
    """A tree that was appended to leaf by leaf, and its tiles."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.edge = merkle.Edge()
        self._tiles: dict[tuple[int, int], bytes] = {}
        for leaf in leaves:
            self.edge, kept = self.edge.append(leaf)
            self._tiles.update({(tile.level, tile.number): tile.hashes for tile in kept})

    def read(self, level: int, number: int) -> bytes:
        is_unfinished = level == 0 and number == self.edge.size // merkle.TILE_WIDTH
        return self.edge.tiles[0] if is_unfinished else self._tiles.get((level, number), b"")


TREE = Tree(LEAVES)
ROOTS = [by_definition(LEAVES[:size]) for size in range(SIZE + 1)]


def decoded(vector: dict[str, Any]) -> dict[str, Any]:
    """A vector with its hashes as bytes."""

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [base64.b64decode(item) for item in value]
        return base64.b64decode(value) if isinstance(value, str) else value

    return {name: decode(value) for name, value in vector.items()}


def broken_proofs(proof: list[bytes], root: bytes) -> Iterator[list[bytes]]:
    """What the published vectors do to a proof: bits flipped, hashes missing, or too many of them."""
    for at, value in enumerate(proof):
        yield [*proof[:at], bytes([value[0] ^ 16]) + value[1:], *proof[at + 1 :]]
        yield [*proof[:at], *proof[at + 1 :]]
        yield [*proof[:at], value, *proof[at:]]
    for extra in (root, b"", b"garbage", bytes(32)):
        yield [*proof, extra]
        yield [extra, *proof]


@pytest.mark.parametrize("vector", INCLUSION, ids=lambda vector: f"{vector['leafIdx']} of {vector['treeSize']}")
def test_published_inclusion_proofs_hold_and_nothing_like_them_does(vector: dict[str, Any]) -> None:
    given_ = decoded(vector)
    leaf, index, size, proof, root = (given_[name] for name in ("leafHash", "leafIdx", "treeSize", "proof", "root"))
    assert leaf == merkle.leaf_hash(PUBLISHED_ENTRIES[index])
    merkle.check_inclusion(leaf, index, size, proof, root)
    assert merkle.inclusion_proof(index, size, Tree(list(map(merkle.leaf_hash, PUBLISHED_ENTRIES))).read) == proof
    wrong = [(leaf, index, size, broken, root) for broken in broken_proofs(proof, root)]
    wrong += [(leaf, other, size, proof, root) for other in (index - 1, index + 1, index ^ 2)]
    wrong += [(leaf, index, other, proof, root) for other in (size * 2, size // 2)]
    wrong += [(leaf, index, size, proof, other) for other in (b"", bytes(32), merkle.EMPTY_ROOT)]
    wrong += [(b"WrongLeaf", index, size, proof, root), (bytes(32), index, size, proof, root)]
    for arguments in wrong:
        with pytest.raises(TamperedRecord):
            merkle.check_inclusion(*arguments)


@pytest.mark.parametrize("vector", CONSISTENCY, ids=lambda vector: f"{vector['size1']} to {vector['size2']}")
def test_published_consistency_proofs_hold_and_nothing_like_them_does(vector: dict[str, Any]) -> None:
    given_ = decoded(vector)
    old, new, proof, old_root, new_root = (given_[name] for name in ("size1", "size2", "proof", "root1", "root2"))
    merkle.check_consistency(old, new, proof, old_root, new_root)
    assert merkle.consistency_proof(old, new, Tree(list(map(merkle.leaf_hash, PUBLISHED_ENTRIES))).read) == proof
    wrong = [(old, new, broken, old_root, new_root) for broken in broken_proofs(proof, new_root)]
    wrong += [(other, new, proof, old_root, new_root) for other in (old - 1, old + 1, old ^ 2)]
    wrong += [(old, other, proof, old_root, new_root) for other in (new * 2, new // 2)]
    wrong += [(old, new, proof, new_root, old_root), (old, new, [], old_root, new_root)]
    wrong += [(old, new, proof, bytes(32), new_root), (old, new, proof, old_root, b"WrongRoot")]
    for arguments in wrong:
        with pytest.raises(TamperedRecord):
            merkle.check_consistency(*arguments)


def test_a_tree_that_grows_has_the_root_of_the_definition_at_every_size() -> None:
    edge = merkle.Edge()
    for size in range(SIZE):
        assert edge.root() == ROOTS[size]
        edge, _ = edge.append(LEAVES[size])
    assert edge == TREE.edge
    assert edge.root() == ROOTS[SIZE]


@given(st.integers(0, SIZE))
def test_the_edge_of_any_earlier_size_follows_from_the_tiles(size: int) -> None:
    edge = merkle.edge_at(size, TREE.read)
    assert edge.root() == ROOTS[size]
    for leaf in LEAVES[size:]:
        edge, _ = edge.append(leaf)
    assert edge.root() == ROOTS[SIZE]


@given(st.data())
@settings(max_examples=200)
def test_every_leaf_is_proven_in_every_tree_that_has_it_and_no_other_is(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, SIZE))
    index, other = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, SIZE - 1))
    proof = merkle.inclusion_proof(index, size, TREE.read)
    merkle.check_inclusion(LEAVES[index], index, size, proof, ROOTS[size])
    if other != index:
        for leaf, at in ((LEAVES[other], index), (LEAVES[index], other)):
            with pytest.raises(TamperedRecord):
                merkle.check_inclusion(leaf, at, size, proof, ROOTS[size])


@given(st.integers(0, SIZE), st.integers(0, SIZE), st.integers(0, SIZE))
@settings(max_examples=200)
def test_every_tree_continues_every_smaller_one_and_no_other(first: int, second: int, third: int) -> None:
    old, new = sorted((first, second))
    proof = merkle.consistency_proof(old, new, TREE.read)
    merkle.check_consistency(old, new, proof, ROOTS[old], ROOTS[new])
    if third not in (old, new) and old:
        with pytest.raises(TamperedRecord):
            merkle.check_consistency(old, new, proof, ROOTS[third], ROOTS[new])
        with pytest.raises(TamperedRecord):
            merkle.check_consistency(old, new, proof, ROOTS[old], ROOTS[third])


def test_a_tree_of_many_tiles_keeps_each_of_them_once_it_is_whole() -> None:
    # 65,536 leaves fill the first tile of level 1: 256 tiles below it, and a level above.
    edge, kept = merkle.Edge(), {}
    for number in range(65_536 + 257):
        edge, tiles = edge.append(merkle.leaf_hash(number.to_bytes(4, "big")))
        kept.update({(tile.level, tile.number): len(tile.hashes) // 32 for tile in tiles})
    assert {place: width for place, width in kept.items() if place[0]} == {(1, 0): 256, (1, 1): 1, (2, 0): 1}
    assert all(kept[0, number] == 256 for number in range(257))
    assert [len(hashes) // 32 for hashes in edge.tiles] == [1, 1, 1]


def test_tiles_are_as_wide_as_the_standard_says() -> None:
    # The example of C2SP tlog-tiles: a tree of 70,000 leaves.
    assert [merkle.width(0, number, 70_000) for number in (0, 272, 273, 274)] == [256, 256, 112, 0]
    assert [merkle.width(1, number, 70_000) for number in (0, 1, 2)] == [256, 17, 0]
    assert [merkle.width(2, number, 70_000) for number in (0, 1)] == [1, 0]


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_no_proof_is_made_of_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="leaves"):
        merkle.inclusion_proof(index, size, TREE.read)


def test_a_tile_that_is_too_short_makes_no_proof() -> None:
    with pytest.raises(TamperedRecord, match="tile"):
        merkle.inclusion_proof(3, 20, lambda level, number: TREE.read(level, number)[: 10 * 32])
