"""Builds SentencePiece's `precompiled_charsmap`, which tokenizers' `Precompiled` normaliser reads.

Layout (little endian): size of the trie in bytes, u32 · a double array of u32 units · the
replacements, each ended by a zero byte. A unit is `offset << 10 | has_leaf << 8 | label`; from
unit `i` with offset `o`, byte `c` leads to `i ^ o ^ c` if that unit's label is `c`, and a key's
end to `i ^ o`, whose unit is `1 << 31 | position of the replacement`.
Source: S. Yata, darts-clone, include/darts.h; T. Kudo, sentencepiece, src/normalizer.cc.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, groupby

IS_LEAF = 1 << 31
HAS_LEAF = 1 << 8
BLOCK = 256


def precompiled_charsmap(replacements: Mapping[str, str]) -> bytes:
    """The map as bytes, the same for the same replacements. Keys are not empty and hold no zero."""
    pool, keys = bytearray(), []
    for text in sorted(replacements, key=str.encode):
        keys.append((text.encode(), len(pool)))
        pool += replacements[text].encode() + b"\0"
    trie = b"".join(unit.to_bytes(4, "little") for unit in _Trie(keys).units)
    return len(trie).to_bytes(4, "little") + trie + bytes(pool)


class _Trie:
    """A double array over sorted (key, value) pairs, laid out depth first by next fit: looking for
    every hole again would be denser and take a hundred times as long.
    """

    def __init__(self, keys: list[tuple[bytes, int]]) -> None:
        self._taken, self._bases, self._next = {0}, set[int](), 1
        self._units: dict[int, int] = {}
        self._place(0, 0, keys, depth=0)

    @property
    def units(self) -> list[int]:
        # Whole blocks: a reader looks at `base ^ byte` for any byte before it checks the label.
        size = (max(self._taken) // BLOCK + 1) * BLOCK
        return [self._units.get(i, 0) for i in range(size)]

    def _place(self, unit: int, label: int, keys: list[tuple[bytes, int]], *, depth: int) -> None:
        """Write `unit` and all below it; `keys` agree in their first `depth` bytes."""
        children = [
            (byte, list(group)) for byte, group in groupby(keys, key=lambda k: (*k[0], 0)[depth])
        ]
        base = self._base([byte for byte, _ in children])
        has_leaf = HAS_LEAF if children[0][0] == 0 else 0
        self._units[unit] = (unit ^ base) << 10 | has_leaf | label
        for byte, group in children:
            if byte == 0:
                self._units[base] = IS_LEAF | group[0][1]
            else:
                self._place(base ^ byte, byte, group, depth=depth + 1)

    def _base(self, labels: list[int]) -> int:
        """The next place where all labels fit. No two units share one: labels would mix."""
        for place in count(self._next):
            base = place ^ labels[0]
            places = {base ^ label for label in labels}
            if base not in self._bases and not places & self._taken:
                self._bases.add(base)
                self._taken |= places
                self._next = place
                return base
        raise AssertionError("count() does not end")
