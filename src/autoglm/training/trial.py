"""How far a trial is to be trained, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from autoglm.recovery.checkpoints import Checkpoints


@dataclass(frozen=True, kw_only=True)
class Trained:
    """`weights` are the tensors that differ from the start; `metrics` of the validation rows;
    `peak` the most memory that it took (`devices.peak`).
    """

    weights: dict[str, Tensor]
    metrics: dict[str, float]
    best_epoch: int
    num_steps: int
    is_stopped: bool = False
    saved: Mapping[str, float] = field(default_factory=dict)
    peak: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Train to the end of `epoch`, going on from the newest state in `starts` (deepest first);
    what training is at that moment goes to `keep`, so that it can go on from there.
    """

    epoch: int
    starts: Sequence[Checkpoints] = ()
    keep: Checkpoints | None = None
