"""Hidden states of rows that one process has seen, whichever data set they stood in."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

from autoglm.reuse.prefix_cache import PrefixCache, TokenStates


class StateStore:
    """States by key and row; the least recently used go when `max_bytes` is passed. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self._num_bytes, self._lock = max_bytes, 0, Lock()
        self._states: OrderedDict[tuple[str, bytes], Tensor] = OrderedDict()

    def get(self, keys: Sequence[tuple[str, bytes]]) -> list[Tensor] | None:
        """Of all, or None when one is missing."""
        with self._lock:
            if not all(key in self._states for key in keys):
                return None
            for key in keys:
                self._states.move_to_end(key)
            return [self._states[key] for key in keys]

    def put(self, key: tuple[str, bytes], states: Tensor) -> None:
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
                return
            self._states[key] = states
            self._num_bytes += states.nbytes
            while self._num_bytes > self.max_bytes:
                _, oldest = self._states.popitem(last=False)
                self._num_bytes -= oldest.nbytes


class SharedStates(PrefixCache):
    """What a trainer of the rows `ids` takes for its prefix cache: folds of one data set, and who
    predicts the rows that were left out, find what another has encoded.
    """

    def __init__(self, store: StateStore, ids: Sequence[Sequence[int]]) -> None:
        super().__init__(store.max_bytes)
        self._store, self._rows = store, [_digest(row) for row in ids]

    def get(self, key: str) -> TokenStates | None:
        found = self._store.get([(key, row) for row in self._rows])
        if not found:
            return None
        offsets = [0]
        for states in found:
            offsets.append(offsets[-1] + len(states))
        return TokenStates(flat=torch.cat(found), offsets=tuple(offsets))

    def put(self, key: str, states: TokenStates) -> None:
        ends = zip(self._rows, states.offsets, states.offsets[1:], strict=False)
        for row, start, end in ends:
            # A copy: a slice would keep the states of all rows alive.
            self._store.put((key, row), states.flat[start:end].clone())


def _digest(row: Sequence[int]) -> bytes:
    return hashlib.blake2b(str(list(row)).encode(), digest_size=16).digest()
