"""Rows as the trainer takes them, and the order in which it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from autoglm.modeling.encoding import first_tokens
from autoglm.modeling.images import Pixels

# The target of a token that nobody answers for.
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Rows as token ids, or `Pixels` of images; train rows come first, `num_train` of them,
    validation rows behind.

    `targets` is what the task wants: (rows) of label numbers or values, (rows, labels) of 0 and 1,
    or one tensor per row with a label number per token (-100 where there is none). With `firsts`
    the head is asked at a row's tokens from that place on and nowhere else, and its target has a
    number for each of these. `keys` are the rows' names for people; without them, numbers. For
    these rows a frozen part may compute in `half` precision (`frozen_part.lanes`): those that are
    learnt from, all of a fold, which other folds learn from, or none.
    """

    ids: Sequence[Any]
    targets: Tensor | Sequence[Tensor]
    num_train: int
    label_names: tuple[str, ...]
    firsts: Sequence[int] | None = None
    keys: Sequence[str] | None = None
    half: Literal["train", "all", "none"] = "train"

    def batch(self, rows: Sequence[int]) -> Mapping[str, Tensor]:
        """What a task's loss is handed for these rows."""
        if isinstance(self.targets, Tensor):
            return {"labels": self.targets[list(rows)]}
        return {"labels": torch.cat([self.targets[i] for i in rows])}

    @cached_property
    def num_answers(self) -> list[int]:
        """Of each row: 1, or its tokens that are answered for."""
        if isinstance(self.targets, Tensor):
            return [1] * len(self.targets)
        return [int((target != IGNORED).sum()) for target in self.targets]

    def on(self, device: torch.device) -> Encoded:
        """With targets where the outputs will be."""
        if device.type == "cpu":
            return self
        moved: Tensor | list[Tensor]
        if isinstance(self.targets, Tensor):
            # Not every device has double precision.
            kind = torch.float32 if self.targets.is_floating_point() else self.targets.dtype
            moved = self.targets.to(device, kind)
        else:
            moved = [target.to(device) for target in self.targets]
        return replace(self, targets=moved)

    def chosen(self, rows: Sequence[int], *, num_train: int) -> Encoded:
        """These rows in this order; the first `num_train` are learnt from."""
        ids, targets, firsts = self.ids, self.targets, self.firsts
        return replace(
            self,
            ids=ids.chosen(rows) if isinstance(ids, Pixels) else [ids[i] for i in rows],
            targets=targets[list(rows)]
            if isinstance(targets, Tensor)
            else [targets[i] for i in rows],
            num_train=num_train,
            firsts=None if firsts is None else [firsts[i] for i in rows],
            keys=None if self.keys is None else [self.keys[i] for i in rows],
        )

    @property
    def unit(self) -> tuple[float, float]:
        """Mean and deviation of the training rows' numbers."""
        assert isinstance(self.targets, Tensor), "a number per row"
        numbers = self.targets[: self.num_train].double()
        return float(numbers.mean()), deviation_of(numbers)

    @property
    def are_images(self) -> bool:
        return isinstance(self.ids, Pixels)

    @cached_property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row; an image is as long as every other."""
        return [1] * len(self.ids) if self.are_images else [len(row) for row in self.ids]

    @property
    def num_half(self) -> int:
        """So many rows, the first, are `half`."""
        return {"train": self.num_train, "all": len(self.ids), "none": 0}[self.half]

    @property
    def train(self) -> range:
        return range(self.num_train)

    @property
    def validation(self) -> range:
        return range(self.num_train, len(self.ids))


def targets_of(
    answers: Sequence[Any], encodings: Sequence[Any], labels: Sequence[str]
) -> Tensor | list[Tensor]:
    """What the trainer learns for answers (contracts.task): see `Encoded.targets`. `encodings` are
    the tokenizer's, of the same rows.
    """
    index = {label: number for number, label in enumerate(labels)}
    if isinstance(answers[0], float):
        return torch.tensor(answers)
    if isinstance(answers[0], frozenset):
        table = torch.zeros(len(answers), len(labels))
        for row, names in enumerate(answers):
            table[row, [index[name] for name in names]] = 1.0
        return table
    if isinstance(answers[0], tuple):
        return [_per_token(e, tags, index) for e, tags in zip(encodings, answers, strict=True)]
    return torch.tensor([index[label] for label in answers])


def _per_token(encoding: Any, tags: Sequence[str], index: Mapping[str, int]) -> Tensor:
    target = torch.full((len(encoding.ids),), IGNORED)
    for place, word in first_tokens(encoding):
        target[place] = index[tags[word]]
    return target


def deviation_of(numbers: Tensor) -> float:
    """1 where all are equal: it divides."""
    return float(numbers.cpu().double().std(correction=0)) or 1.0


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


def share(part: Sequence[int], rows: Sequence[int], weights: Sequence[float]) -> float:
    """What the mean loss of `part` weighs in that of `rows`, where each row weighs `weights`."""
    whole = sum(weights[i] for i in rows)
    return sum(weights[i] for i in part) / whole if whole else 0.0


def pieces(rows: Sequence[int], num_pieces: int) -> list[list[int]]:
    """`rows` in at most `num_pieces` parts of like size and like lengths."""
    parts = [list(rows[start::num_pieces]) for start in range(num_pieces)]
    return [part for part in parts if part]
