"""How much memory a step takes, and how to stay below a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoglm.errors import TrainingError

# What one step needs beside what autograd keeps: gradients in flight, buffers of kernels.
SLACK = 1.3
MIB = 2**20
Activations = Callable[[Sequence[int], bool], int]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """How a batch is computed; `expected_bytes` is the resident memory that this should take."""

    accumulation: int
    gradient_checkpointing: bool
    expected_bytes: int


class KeptForBackward:
    """Counts the bytes that autograd keeps between forward and backward; weights do not count."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._seen = {weight.untyped_storage().data_ptr() for weight in weights}
        self.num_bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.num_bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> KeptForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


def plan(
    budget: int,
    *,
    fixed: int,
    largest: Sequence[int],
    activations: Activations,
    is_checkpointed: bool,
) -> MemoryPlan:
    """The fewest parts, without checkpointing before with it, that stay below `budget` bytes.

    `fixed`: what is resident whatever a batch takes. `activations(rows, checkpointing)` measures
    one forward of rows; `largest` are the rows of the largest batch, longest first. Only the first
    is measured, and counted for each: measuring a batch would take what it is to avoid.
    Raises: TrainingError training.budget_too_small with the least that would do.
    """
    least = 0
    for checkpointing in (True,) if is_checkpointed else (False, True):
        parts, per_row = 1, SLACK * activations(largest[:1], checkpointing)
        while True:
            num_rows = -(-len(largest) // parts)
            expected = fixed + int(num_rows * per_row)
            least = expected if not least else min(least, expected)
            if expected <= budget:
                return MemoryPlan(
                    accumulation=parts,
                    gradient_checkpointing=checkpointing,
                    expected_bytes=expected,
                )
            if num_rows == 1:
                break
            parts *= 2
    raise TrainingError(
        f"training.memory_budget = {budget / MIB:,.0f} MiB: the longest row alone takes"
        f" {least / MIB:,.0f} MiB.",
        code="training.budget_too_small",
        next_step=f"Set it to {-(-least // MIB)}MiB or more, or lower data.max_length.",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """An allocation that failed, on whichever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in words or "can't allocate memory" in words
    )


@contextmanager
def told_of(num_rows: int) -> Iterator[None]:
    """Raises: TrainingError training.out_of_memory in place of what an allocation raised."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(num_rows, error) from error


def out_of_memory(num_rows: int, error: BaseException) -> TrainingError:
    return TrainingError(
        f"there is not enough memory for {num_rows} rows at a time: {error}.",
        code="training.out_of_memory",
        next_step="Lower training.batch_size or data.max_length, or set training.memory_budget.",
    )
