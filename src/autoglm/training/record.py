"""The record of a trial: a line every `log_steps` optimizer steps, from numbers kept as tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor

from autoglm.training.state import TrainingState

# On a terminal progress is shown at least this often.
REPORT_SECONDS = 0.5
# Steps in a row whose gradients overflow: no scale is small enough for them.
MOST_SKIPPED = 24


class Record:
    """Collects per step; `gather` is the only call that waits for the numbers."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        state: TrainingState,
        tell: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._log_steps, self._tell = int(settings["log_steps"]), tell
        self._process = psutil.Process()
        self._pending: list[tuple[int, list[int], bool, Tensor, Tensor, Tensor]] = []
        # (loss, gradient norm, was clipped, rows) of each step since the last line.
        self.steps: list[list[float]] = []
        self._started = self._told = time.monotonic()
        # Steps that were skipped since the last one that was not.
        self.skipped = self._rows_since = 0

    def begin(self) -> None:
        """Scoring between epochs is no time of training."""
        if not self._rows_since:
            self._told = time.monotonic()

    def add(self, state: TrainingState) -> None:
        assert state.loss is not None
        assert state.norms is not None
        norms = state.norms
        numbers = (state.loss, norms.total, norms.is_clipped)
        self._pending.append((state.step, list(state.rows), norms.may_skip, *numbers))
        self._rows_since += len(state.rows)

    def is_due(self, state: TrainingState) -> bool:
        return state.step % self._log_steps == 0 or time.monotonic() - self._told > REPORT_SECONDS

    def gather(self) -> tuple[int, list[int]] | None:
        """Read what is pending; the first step (and its rows) that is not finite, if any."""
        if not self._pending:
            return None
        numbers = torch.stack([torch.stack([x.float() for x in p[3:]]) for p in self._pending])
        pending, self._pending = self._pending, []
        for (step, rows, may_skip, *_), (loss, norm, is_clipped) in zip(
            pending, numbers.tolist(), strict=True
        ):
            is_skipped = may_skip and not math.isfinite(norm)
            self.skipped = self.skipped + 1 if is_skipped else 0
            is_good = math.isfinite(loss) and (is_skipped or math.isfinite(norm))
            if not is_good or self.skipped > MOST_SKIPPED:
                return step, rows
            if not is_skipped:
                self.steps.append([loss, norm, float(is_clipped)])
        return None

    def tell(self, state: TrainingState) -> None:
        """Say the means since the last line of the record, and progress in between."""
        if not self.steps:
            return
        now = time.monotonic()
        losses, norms, clipped = (list(column) for column in zip(*self.steps, strict=True))
        is_line = state.step % self._log_steps == 0
        self._tell(
            {
                "kind": "training" if is_line else "progress",
                "step": state.step,
                "num_steps": state.num_steps,
                "epoch": state.epoch,
                "train_loss": sum(losses) / len(losses),
                "learning_rate": [group["lr"] for group in state.optimizer.param_groups],
                "grad_norm": sum(norms) / len(norms),
                "clipped_share": sum(clipped) / len(clipped),
                "samples_per_second": self._rows_since / max(now - self._told, 1e-9),
                "memory_bytes": self._process.memory_info().rss,
            }
        )
        self._told, self._rows_since = now, 0
        if is_line:
            self.steps = []
