"""Which number format training computes in: measured, then chosen or refused with the figure."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from autoglm.errors import TrainingError
from autoglm.training import devices, gradients
from autoglm.training.decisions import Decisions

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Rows, inputs and outputs as in the feed-forward part of a small encoder.
SHAPE, SECONDS = (256, 384, 768), 0.1
# Below this a half format is not worth its rounding.
WORTH = 1.2


def speeds(device: str, decisions: Decisions | None) -> dict[str, float]:
    """What `measure` found on this device: of a machine once, of a run ever after."""
    if decisions is None:
        return measure(device)
    found: dict[str, float] = decisions.decided(
        devices.name_on(device, "precision"),
        lambda: measure(device),
        of_machine=f"precision {devices.identity(device)}",
    )
    return found


def measure(device: str) -> dict[str, float]:
    """Speed of a linear layer, forward and backward with weights kept in fp32, in each format over
    fp32's. Takes about 0.1 s per format; longer only where one pass does.
    """
    base = _seconds(device, "fp32")
    # Three digits that count: of a format that is a thousand times slower 0.000 would say nothing.
    return {name: float(f"{base / _seconds(device, name):.3g}") for name in FORMATS}


def _seconds(device: str, name: str) -> float:
    """Of the quickest pass: what else runs on the machine only makes one slower."""
    rows, inner, outer = SHAPE
    states, weight = (
        torch.randn(shape, device=device, requires_grad=True)
        for shape in ((rows, inner), (outer, inner))
    )
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        before = time.perf_counter()
        with computing_in(name, device):
            loss = torch.nn.functional.linear(states, weight).sum()
        gradient, _ = torch.autograd.grad(loss, (states, weight))
        gradient[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - before)
    return best


def choose(said: str, speeds: dict[str, float], device: str) -> str:
    """`fp32`, `bf16` or `fp16`. `auto` takes bf16 where it is worth it, never fp16.

    Raises: TrainingError training.precision for a format that is slower than fp32 here.
    """
    if said == "fp32" or (said == "auto" and speeds["bf16"] < WORTH):
        return "fp32"
    if said == "auto":
        return "bf16"
    if speeds[said] < 1:
        raise TrainingError(
            f"training.precision = {said}: on this machine's {device} a linear layer in {said} is"
            f" {1 / speeds[said]:.1f} times slower than in fp32.",
            code="training.precision",
            next_step="Set training.precision: auto.",
        )
    return said


class Scaler:
    """Gradients of fp16 are computed of a loss so large that few of them vanish, and divided
    again before anybody sees them. A step with one that overflowed is skipped and the next scale is
    half; after 2,000 good ones it is doubled (`torch.amp.GradScaler`). Off in other formats.
    """

    def __init__(self, name: str, device: str) -> None:
        self.is_on = name == "fp16"
        self._scaler = torch.amp.GradScaler(device, enabled=self.is_on)

    def backward(self, loss: Tensor) -> None:
        scaled: Tensor = self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        if self.is_on:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """The optimizer's step, unless the gradients' `norm` overflowed. Waits for the norm only
        where the optimizer cannot be told.
        """
        if not self.is_on or gradients.is_told(optimizer) or bool(torch.isfinite(norm)):
            optimizer.step()
        if self.is_on:
            self._scaler.update()

    def state(self) -> dict[str, Any]:
        return dict(self._scaler.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        if self.is_on:
            self._scaler.load_state_dict(state)


def computing_in(name: str, device: str) -> AbstractContextManager[Any]:
    if name == "fp32":
        return nullcontext()
    return torch.autocast(device, dtype=FORMATS[name])
