"""Where a loss that is not finite came from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.errors import TrainingError
from autoglm.training.data import Encoded
from autoglm.training.forward import Forward
from autoglm.training.state import TrainingState

SHOWN_ROWS = 32


def diverged(
    state: TrainingState, forward: Forward, task: Any, data: Encoded, bad: tuple[int, list[int]]
) -> TrainingError:
    """The error for a step (and its rows) whose loss or gradient norm is not finite."""
    step, rows = bad
    where = first_bad_weight(state) or _first_bad_layer(state, forward, task, data, rows)
    names = [str(i) if data.keys is None else data.keys[i] for i in sorted(rows)]
    shown = ", ".join(names[:SHOWN_ROWS]) + (", …" if len(rows) > SHOWN_ROWS else "")
    return TrainingError(
        f"loss or gradient is not finite at optimizer step {step} (epoch {state.epoch}, training"
        f" rows {shown}): {where}.",
        code="training.diverged",
        next_step="Lower training.lr or training.clip_norm; the last checkpoint is kept.",
    )


def first_bad_weight(state: TrainingState) -> str:
    """Said of the first weight with a value that is not finite; empty where all are."""
    for name, parameter in state.model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            return f"the weight {name} is not finite"
    return ""


def _first_bad_layer(
    state: TrainingState, forward: Forward, task: Any, data: Encoded, rows: list[int]
) -> str:
    with _watched(state.model) as found:
        loss = task.loss(forward.outputs(rows), data.batch(rows))
    if found:
        return f"the first to give such a value is {found[0]}"
    if not math.isfinite(float(loss.detach())):
        return "the loss of finite outputs"
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for name, parameter in state.model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of {name}"
    return "not seen again with the weights as they are now"


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Names of modules whose output is not finite, in the order of their calls."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(first, Tensor) and not bool(torch.isfinite(first).all()):
                found.append(name)

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if n]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
