"""Rows as the trainer takes them, and the order in which it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from autoglm.modeling.images import Pixels


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Rows as token ids, or `Pixels` of images; train rows come first, `num_train` of them,
    validation rows behind.

    `targets` is what the task wants: (rows) of label numbers or values, (rows, labels) of 0 and 1,
    or one tensor per row with a label number per token (-100 where there is none).
    """

    ids: Sequence[Any]
    targets: Tensor | Sequence[Tensor]
    num_train: int
    label_names: tuple[str, ...]

    def batch(self, rows: Sequence[int]) -> Mapping[str, Tensor]:
        """What a task's loss is handed for these rows."""
        if isinstance(self.targets, Tensor):
            return {"labels": self.targets[list(rows)]}
        return {"labels": torch.cat([self.targets[i] for i in rows])}

    @property
    def are_images(self) -> bool:
        return isinstance(self.ids, Pixels)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row; an image is as long as every other."""
        return [1] * len(self.ids) if self.are_images else [len(row) for row in self.ids]

    @property
    def train(self) -> range:
        return range(self.num_train)

    @property
    def validation(self) -> range:
        return range(self.num_train, len(self.ids))


def batches(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Batches of row numbers in the order of this epoch, each longest row first.

    A function of seed and epoch alone: a resumed run asks again and skips what it has seen.
    """
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    return [
        sorted(order[start : start + size], key=lambda i: -lengths[i])
        for start in range(0, len(order), size)
    ]


def pieces(rows: Sequence[int], num_pieces: int) -> list[list[int]]:
    """`rows` in at most `num_pieces` parts of like size and like lengths."""
    parts = [list(rows[start::num_pieces]) for start in range(num_pieces)]
    return [part for part in parts if part]
