"""Rows that say nearly the same as another row of their batch: data.near_duplicate.

Only the batch is compared, since a processor is pure: it may not remember what it saw before. Equal
texts of different batches stay in the table; a split by hash keeps them on one side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from autoglm.contracts.change_event import ChangeEvent
from autoglm.plugins.kinds import Processed
from autoglm.streaming.batches import Problem, values_of, without
from autoglm.streaming.config import DataConfig

SHINGLE_WORDS = 3
NUM_BANDS, ROWS_PER_BAND = 16, 4
_WORD = re.compile(r"\w+")
_PRIME = (1 << 61) - 1


class NearDuplicates:
    """Of two rows of different keys whose texts share `threshold` of their runs of three words,
    the later one becomes a dead letter. Candidates by MinHash in bands, then the true share.

    Source: Broder, "On the resemblance and containment of documents", 1997.
    """

    def __init__(self, data: DataConfig, *, threshold: float = 0.8) -> None:
        if not 0.5 <= threshold <= 1:
            raise ValueError(f"threshold: {threshold} is not between 0.5 and 1")
        self._column, self._threshold = data.input_column, threshold
        self._factors = [
            (_hash(f"a{i}") % (_PRIME - 1) + 1, _hash(f"b{i}") % _PRIME)
            for i in range(NUM_BANDS * ROWS_PER_BAND)
        ]

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        keys = [event.key for event in batch]
        kept: list[tuple[str, frozenset[int]]] = []
        by_text: dict[bytes, str] = {}
        by_band: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        problems: list[Problem] = []
        for key, text in zip(keys, values_of(batch, self._column), strict=True):
            twin = None
            if isinstance(text, str):
                words = _WORD.findall(text.lower())
                content = hashlib.blake2b(" ".join(words).encode("utf-8", "replace")).digest()
                twin = by_text.get(content)
                if twin is None or twin == key:
                    twin = self._near(key, words, kept, by_band)
                    by_text.setdefault(content, key)
            is_twin = twin is not None and twin != key
            cause = f"says nearly the same as row {twin}"
            problems.append(("data.near_duplicate", cause) if is_twin else None)
        return without(batch, problems)

    def _near(
        self,
        key: str,
        words: Sequence[str],
        kept: list[tuple[str, frozenset[int]]],
        by_band: dict[tuple[int, tuple[int, ...]], list[int]],
    ) -> str | None:
        """The key of a kept row that is near; without one, this row is kept."""
        shingles = _shingles(words)
        bands = self._bands(shingles)
        places = {place for band in bands for place in by_band.get(band, ())}
        for place in sorted(places):
            other, theirs = kept[place]
            shared = len(shingles & theirs) / len(shingles | theirs)
            if other != key and shared >= self._threshold:
                return other
        kept.append((key, shingles))
        for band in bands:
            by_band.setdefault(band, []).append(len(kept) - 1)
        return None

    def _bands(self, shingles: frozenset[int]) -> list[tuple[int, tuple[int, ...]]]:
        import numpy as np

        hashes = np.fromiter((s & 0x7FFFFFFF for s in shingles), np.uint64, len(shingles))
        factors = np.array([(a & 0x7FFFFFFF, b & 0x7FFFFFFF) for a, b in self._factors], np.uint64)
        # 31-bit factors of 31-bit hashes stay within 64 bits.
        mixed = (factors[:, :1] * hashes + factors[:, 1:]) % np.uint64((1 << 31) - 1)
        lowest = [int(value) for value in mixed.min(axis=1)]
        return [
            (band, tuple(lowest[band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]))
            for band in range(NUM_BANDS)
        ]


def _shingles(words: Sequence[str]) -> frozenset[int]:
    runs = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return frozenset(_hash(" ".join(words[i : i + SHINGLE_WORDS])) for i in runs)


def _hash(text: str) -> int:
    # Python's own hash of a text differs from process to process; a processor must not.
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest())
