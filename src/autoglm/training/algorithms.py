"""Parts that may change training. Each is made with the section `training`, called at its moments
(see `trainer.py`), and keeps what a resume needs in `state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autoglm.training.state import TrainingState


class EarlyStopping:
    """Ends training after `early_stopping` epochs without a better score."""

    def __init__(self, training: Mapping[str, Any]) -> None:
        self._patience = int(training["early_stopping"])

    def apply(self, moment: str, state: TrainingState) -> None:
        if moment == "epoch_end" and self._patience:
            state.should_stop = state.should_stop or (
                state.epoch - max(state.improved_epoch, 0) >= self._patience
            )


class Ema:
    """An average of the weights that learn, decaying by `ema` per step; it is what is scored.

    The first steps count more: the decay at step t is at most (1 + t) / (10 + t).
    """

    def __init__(self, training: Mapping[str, Any]) -> None:
        self._decay = float(training["ema"])
        self._average: dict[str, Tensor] = {}

    @torch.no_grad()
    def apply(self, moment: str, state: TrainingState) -> None:
        if moment == "start" and not self._average:
            self._average = state.copy_weights()
        if moment == "step":
            decay = min(self._decay, (1 + state.step) / (10 + state.step))
            now = state.learning()
            torch._foreach_lerp_(
                list(self._average.values()), [now[n] for n in self._average], 1 - decay
            )

    @contextmanager
    def scored(self, state: TrainingState) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        now = state.learning()
        kept = {n: p.detach().clone() for n, p in now.items()}
        with torch.no_grad():
            for name, value in self._average.items():
                now[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    now[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self._average = dict(tensors)
