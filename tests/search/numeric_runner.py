"""A runner that computes instead of training, one stage per epoch, and keeps its stages in files as
the real one does: the seam is the port, not the trainer.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoglm.contracts.record import digest
from autoglm.contracts.stage_chain import Cost, Progress, Stage, StageChain

KEYS = ["training.lr", "training.dropout", "training.epochs", "training.optimizer"]
STEPS = 3


class NumericRunner:
    """`step` is called at every optimizer step; `log` gets a line per stored stage."""

    def __init__(
        self,
        folder: Path,
        *,
        epochs: int = 9,
        step: Callable[[], None] = lambda: None,
        stops_at: int = 0,
        price: float = 1.0,
    ) -> None:
        self.folder, self.epochs, self.step, self.stops_at = folder, epochs, step, stops_at
        self.price = price
        self.advanced: list[tuple[float, int]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def plan(self, params: Mapping[str, Any]) -> StageChain:
        stages, parent = [], "start"
        for _ in range(int(params.get("training.epochs", self.epochs))):
            key = digest(parent, params)
            stages.append(
                Stage(
                    key=key, parent=parent, settings=params, num_steps=STEPS, seed=0, data_order=""
                )
            )
            parent = key
        return StageChain(project="p", params=params, stages=tuple(stages))

    def cost(self, chain: StageChain) -> Cost:
        left = [s for s in chain.stages if not (self.folder / s.key).exists()]
        steps, price = sum(s.num_steps for s in left), self._price(chain.params)
        return Cost(
            cpu_seconds=steps * price, disk_bytes=0, num_steps=steps, whole=chain.num_steps * price
        )

    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress:
        assert to_step in chain.boundaries
        num = chain.boundaries.index(to_step) + 1
        self.advanced.append((chain.params["training.lr"], num))
        last = min(num, self.stops_at or num)
        known = sum((self.folder / stage.key).exists() for stage in chain.stages[:last])
        for number, stage in enumerate(chain.stages[:num], start=1):
            path = self.folder / stage.key
            if path.exists() or (self.stops_at and number > self.stops_at):
                continue
            for _ in range(stage.num_steps):
                self.step()
            staging = path.with_suffix(".part")
            staging.write_text(json.dumps({"value": value_of(chain.params, number)}))
            staging.rename(path)
            # Behind it: where the other worker's thread kills us in between, a line before it would
            # stand there twice, of a stage that was stored once.
            with (self.folder / "stored.log").open("a") as log:
                log.write(stage.key + "\n")
        values = [
            json.loads((self.folder / s.key).read_text())["value"] for s in chain.stages[:last]
        ]
        return Progress(
            key=chain.stages[num - 1].key,
            step=to_step,
            num_steps=chain.num_steps,
            metrics={"accuracy": max(values), "loss": 1 - max(values)},
            cpu_seconds=last * STEPS * self._price(chain.params),
            reused_steps=0,
            folder="",
            saved={"stage_tree": known * STEPS * self._price(chain.params), "cache": 1.0},
            is_stopped=bool(self.stops_at) and num >= self.stops_at,
        )

    def _price(self, params: Mapping[str, Any]) -> float:
        return self.price * (1.0 + params.get("training.dropout", 0.0))


def value_of(params: Mapping[str, Any], epoch: int) -> float:
    quality = 1 - (params["training.lr"] - 0.3) ** 2 - 0.1 * params.get("training.dropout", 0.0)
    return quality * (1 - math.exp(-epoch))
