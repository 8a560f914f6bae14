from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

# A chain's parameter beside config keys: `2/5` is the second of five folds.
FOLD = "data.fold"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A piece of training whose result is named by what went in: `key` = digest of parent key,
    settings, optimizer steps, seed and data order.
    """

    key: str
    parent: str
    settings: Mapping[str, Any]
    num_steps: int
    seed: int
    data_order: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageChain:
    """One trial as stages in order; `num_steps` counts optimizer steps of the whole chain."""

    project: str
    params: Mapping[str, Any]
    stages: tuple[Stage, ...]

    @property
    def key(self) -> str:
        return self.stages[-1].key

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """The optimizer steps at which `advance` may stop: where each stage ends."""
        return tuple(accumulate(stage.num_steps for stage in self.stages))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Expected cost of what is not stored yet; `why` says what it is made of and what is reused.
    `whole` are CPU-seconds as if nothing were stored.
    """

    cpu_seconds: float
    disk_bytes: int
    num_steps: int
    whole: float
    why: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a chain stands after `advance`. `metrics` are of the validation rows and the kept epoch
    so far; `cpu_seconds` is what all its steps cost, whoever made them. `saved` is what this call
    did not pay, by lever: `stage_tree` is a part of `cpu_seconds`, steps that had been made before;
    the others (`cache`, `packing`, `early_stop`) come on top. `is_stopped`: training ended itself,
    what would follow costs nothing. `folds`: of a cross-validated trial, the metrics of each fold.
    `peak`: the most memory that training took, bytes by kind (`training.devices.peak`).
    """

    key: str
    step: int
    num_steps: int
    metrics: Mapping[str, float]
    cpu_seconds: float
    reused_steps: int
    folder: str
    saved: Mapping[str, float] = field(default_factory=dict)
    is_stopped: bool = False
    folds: tuple[Mapping[str, float], ...] = ()
    peak: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return self.step >= self.num_steps
