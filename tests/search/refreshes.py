"""Circumstances of a refresh that are said, and runners whose trials differ by a known amount."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autoglm.contracts.stage_chain import Progress, StageChain
from autoglm.search.refresh import FREEZING, REHEARSAL, Refresh, refresh_of
from autoglm.search.space import read_space
from autoglm.state.event_log import EventLog
from search.numeric_runner import KEYS, NumericRunner

SPACE = {"lr": {"uniform": [0.0, 1.0]}, "epochs": {"choice": [1, 3, 9]}}
PROGRESSIVE, QUARTER = {FREEZING: "progressive"}, {REHEARSAL: 0.25}
LAYERED = {**SPACE, "trainable_layers": {"choice": [0, 2, 6]}}


@dataclass(frozen=True, kw_only=True)
class Given:
    """Circumstances that are said; of `only` one study, where it is named."""

    starts_from_stable: bool = False
    changed: float | None = 0.01
    knows: bool = True
    beside: Mapping[str, Any] = field(default_factory=dict)
    accepts: Callable[[Mapping[str, Any]], bool] = lambda _params: True
    only: str = ""
    refused: Mapping[str, bool] = field(default_factory=dict)
    price: Callable[[Mapping[str, Any]], float] = lambda _params: 1.0

    def changed_since(self, study: str) -> float | None:
        return None if self.only and study != self.only else self.changed

    def stable_knows(self, _study: str) -> bool:
        return self.knows

    def was_refused(self, study: str) -> bool | None:
        return self.refused.get(study)

    def allows(self, params: Mapping[str, Any]) -> bool:
        return self.accepts(params)

    def cost(self, params: Mapping[str, Any]) -> float:
        return self.price(params)

    def cheaper(self, _start: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return {} if self.beside.keys() <= params.keys() else self.beside


def runner(folder: Path) -> NumericRunner:
    return NumericRunner(folder / "stages")


def asked_again(log: EventLog, *, stable: bool = False, **more: Any) -> Refresh:
    found = maybe(log, stable=stable, **more)
    assert found is not None
    return found


def maybe(
    log: EventLog,
    *,
    stable: bool = False,
    knows: bool = True,
    space: Any = SPACE,
    changed: float | None = 0.01,
    metric: str = "accuracy",
    beside: Mapping[str, Any] | None = None,
    allows: Callable[[Mapping[str, Any]], bool] = lambda _params: True,
    num_rows: int = 220,
    margin: float = 0.01,
    **more: Any,
) -> Refresh | None:
    given = Given(
        starts_from_stable=stable, changed=changed, knows=knows, beside=beside or {}, accepts=allows,
        **more,
    )  # fmt: skip
    dimensions = read_space(space, [*KEYS, "training.trainable_layers", FREEZING])
    return refresh_of(
        log, "run-2", dimensions, given, metric=metric, num_rows=num_rows, margin=margin
    )


class Level(NumericRunner):
    """Each point is as good as any, or better by so much per epoch."""

    slope = 0.0

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        progress = super().advance(chain, to_step, cancel=cancel)
        value = 0.8 + self.slope * int(chain.params["training.epochs"])
        return replace(progress, metrics={"accuracy": value, "loss": 1 - value})


class Rising(Level):
    """Nine epochs are the margin of 0.01 better than one, but not than three; never a standard error
    of 220 rows (0.026).
    """

    slope = 0.0015


class Unlike(NumericRunner):
    """Measured in what is no share of rows."""

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        progress = super().advance(chain, to_step, cancel=cancel)
        error = 0.05 * (1 + chain.params["training.lr"]) / int(chain.params["training.epochs"])
        metrics = {"negative_mae": -error, "r2": 1 - error, "loss": error}
        return replace(progress, metrics=metrics)


def price_of(params: Mapping[str, Any]) -> float:
    return 6.0 * params["training.epochs"]
