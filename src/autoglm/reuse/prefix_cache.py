"""Hidden states that leave the frozen part, kept unpadded in memory: one encode for many trials."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH_ROWS = 64
Encode = Callable[[Sequence[Sequence[int]]], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStates:
    """`flat` (tokens of all rows, hidden); row i is flat[offsets[i]:offsets[i + 1]]."""

    flat: Tensor
    offsets: tuple[int, ...]

    def of(self, rows: Sequence[int]) -> Tensor:
        """(tokens, hidden) of these rows, one behind the other."""
        return torch.cat([self.flat[self.offsets[i] : self.offsets[i + 1]] for i in rows])


class PrefixCache:
    """Keyed by what the states depend on; the least recently used go when `max_bytes` is passed."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._states: OrderedDict[str, TokenStates] = OrderedDict()

    def fits(self, num_tokens: int, hidden_size: int) -> bool:
        return 4 * num_tokens * hidden_size <= self._max_bytes

    def get(self, key: str) -> TokenStates | None:
        if key in self._states:
            self._states.move_to_end(key)
        return self._states.get(key)

    def put(self, key: str, states: TokenStates) -> None:
        self._states[key] = states
        while sum(s.flat.nbytes for s in self._states.values()) > self._max_bytes:
            if len(self._states) == 1:
                return
            self._states.popitem(last=False)


def encode_rows(ids: Sequence[Sequence[int]], hidden_size: int, encode: Encode) -> TokenStates:
    """Run `encode` over all rows in batches of like length, longest row first: (tokens, hidden)."""
    offsets = [0]
    for tokens in ids:
        offsets.append(offsets[-1] + len(tokens))
    flat = torch.empty(offsets[-1], hidden_size)
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    for start in range(0, len(order), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        hidden = encode([ids[i] for i in rows])
        for i, part in zip(rows, torch.split(hidden, [len(ids[i]) for i in rows]), strict=True):
            flat[offsets[i] : offsets[i + 1]] = part
    return TokenStates(flat=flat, offsets=tuple(offsets))


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids (batch, length) and their mask."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
