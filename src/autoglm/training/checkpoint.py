"""What a checkpoint of a trial holds: all that the next optimizer step depends on.

Tensors: weights that learn, the best ones so far, the optimizer's moments, what algorithms keep,
the state of torch's generator. Facts: where in the data, scores, the optimizer's other values, the
steps since the record's last line. Frozen weights are the start's, which the trial's key names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoglm.errors import CheckpointCorruptError
from autoglm.recovery.checkpoints import Checkpoint, Checkpoints
from autoglm.training import devices
from autoglm.training.parts import speaking_for
from autoglm.training.precision import Scaler
from autoglm.training.record import Record
from autoglm.training.state import TrainingState, load_optimizer, optimizer_tensors

# Saving may take this share of training's time.
MAX_SHARE = 0.02


class Due:
    """When the next checkpoint is due: by steps, or by time and by what the last one cost."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._steps = int(settings["checkpoint_steps"])
        every = settings["checkpoint_every"]
        self._every = every.total_seconds() if isinstance(every, timedelta) else float(every)
        self._last, self._cost = time.monotonic(), 0.0

    def is_due(self, step: int) -> bool:
        if self._steps:
            return step % self._steps == 0
        return time.monotonic() - self._last >= max(self._every, self._cost / MAX_SHARE)

    @contextmanager
    def measured(self) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._last = time.monotonic()
        self._cost = self._last - started


def save(
    checkpoints: Checkpoints,
    state: TrainingState,
    record: Record,
    algorithms: Sequence[Any],
    scaler: Scaler,
) -> None:
    with speaking_for(f"optimizer:{type(state.optimizer).__name__}"):
        moments, plain = optimizer_tensors(state.optimizer)
    tensors = {f"weights/{n}": p.detach() for n, p in state.learning().items()}
    tensors |= {f"best/{n}": t for n, t in state.best_weights.items()}
    tensors |= {f"optimizer/{n}": t for n, t in moments.items()}
    for number, algorithm in enumerate(algorithms):
        if hasattr(algorithm, "state_dict"):
            with speaking_for(f"algorithm:{type(algorithm).__name__}"):
                kept = algorithm.state_dict()
                if wrong := [n for n, t in kept.items() if not isinstance(t, Tensor)]:
                    raise TypeError(f"its state {wrong[0]!r} is no tensor")
            tensors |= {f"algorithm{number}/{n}": t for n, t in kept.items()}
    states = devices.random_state(state.model.device)
    tensors |= {f"generator/{kind}": value for kind, value in states.items()}
    facts = {
        "step": state.step,
        "epoch": state.epoch,
        "batch": state.batch,
        "parts": state.parts,
        "has_halved": state.has_halved,
        "metrics": state.metrics,
        "best_metrics": state.best_metrics,
        "best_epoch": state.best_epoch,
        "best_score": state.best_score,
        "improved_epoch": state.improved_epoch,
        "optimizer": plain,
        "record": record.steps,
        "skipped": record.skipped,
        "scaler": scaler.state(),
    }
    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    checkpoints.save(state.step, lambda path: save_file(whole, path), facts)


def load(
    found: Checkpoint,
    state: TrainingState,
    record: Record,
    algorithms: Sequence[Any],
    scaler: Scaler,
) -> None:
    """Put `state` where it was. Raises: CheckpointCorruptError when it is of another shape."""
    tensors, facts = load_file(found.content), found.facts
    learning = state.learning()
    weights = _part(tensors, "weights")
    is_another = {n: t.shape for n, t in weights.items()} != {
        n: p.shape for n, p in learning.items()
    }
    if is_another or not {"scaler", "skipped", "parts", "best_score"} <= facts.keys():
        raise CheckpointCorruptError(
            f"{found.content.parent} is of another model or version.",
            next_step="Nothing: training goes on from what is before it.",
        )
    with torch.no_grad():
        for name, value in weights.items():
            learning[name].copy_(value)
    state.best_weights = _part(tensors, "best")
    load_optimizer(state.optimizer, _part(tensors, "optimizer"), facts["optimizer"])
    for number, algorithm in enumerate(algorithms):
        if hasattr(algorithm, "load_state_dict"):
            kept = _part(tensors, f"algorithm{number}")
            algorithm.load_state_dict({n: t.to(state.model.device) for n, t in kept.items()})
    state.step, state.epoch, state.batch = facts["step"], facts["epoch"], facts["batch"]
    state.parts, state.has_halved = facts["parts"], facts["has_halved"]
    state.metrics, state.best_metrics = dict(facts["metrics"]), dict(facts["best_metrics"])
    state.best_epoch = facts["best_epoch"]
    state.best_score, state.improved_epoch = facts["best_score"], facts["improved_epoch"]
    scaler.load(facts["scaler"])
    record.steps = [list(step) for step in facts["record"]]
    record.skipped = facts["skipped"]
    devices.set_random_state(_part(tensors, "generator"))


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}/"
    return {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
