"""Optimizers by name: what each does in a step, and that its state survives a checkpoint."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.plugins import registry
from autoglm.recovery.checkpoints import Checkpoints
from autoglm.training.optimizers.adaptive_adam import AdaptiveAdam, adaptive_adam
from training import toy

NAMES = ["adamw", "adaptive_adam", "schedule_free_adamw", "muon"]


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_the_toy_and_resumes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    said = {"optimizer": name, "epochs": 8, "layer_decay": 0.9}
    wanted = toy.train(**said)
    assert wanted.metrics["accuracy"] > 0.6
    checkpoints = Checkpoints(tmp_path, keep=9, max_bytes=2**30)
    cancel = threading.Event()

    class Stops:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "step" and state.step == 17:
                cancel.set()

    with pytest.raises(Exception, match="stopped"):
        toy.trainer(checkpoints=checkpoints, algorithms=[Stops()], **said).train(cancel)
    resumed = toy.train(checkpoints=checkpoints, **said)
    assert resumed.metrics == wanted.metrics
    assert all(torch.equal(resumed.weights[n], t) for n, t in wanted.weights.items())


def one_weight(value: float = 1.0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.full((2, 2), value))


def stepped(optimizer: Any, parameter: torch.nn.Parameter, gradient: float) -> torch.Tensor:
    before = parameter.detach().clone()
    parameter.grad = torch.full((2, 2), gradient)
    if hasattr(optimizer, "gradient_norms"):
        optimizer.gradient_norms = [parameter.grad.norm()]
    optimizer.step()
    return parameter.detach() - before


def test_adaptive_adam_is_adamw_while_gradients_keep_their_size() -> None:
    ours, theirs = one_weight(), one_weight()
    adaptive = AdaptiveAdam([{"params": [ours], "weight_decay": 0.1}], lr=0.01)
    plain = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for _ in range(5):
        assert torch.allclose(stepped(adaptive, ours, 0.3), stepped(plain, theirs, 0.3), atol=1e-7)


def test_a_gradient_that_jumps_halves_the_rate_and_no_more() -> None:
    parameter = one_weight(0.0)
    optimizer = AdaptiveAdam([{"params": [parameter], "weight_decay": 0.0}], lr=0.01)
    seen: list[float] = []
    optimizer._rule = lambda norm, average: (
        seen.append(float(average / norm)) or (average / norm).clamp(0.5, 2)
    )  # type: ignore[func-returns-value]
    stepped(optimizer, parameter, 1.0)
    stepped(optimizer, parameter, 100.0)
    assert seen[0] == pytest.approx(1)
    assert seen[1] == pytest.approx((0.9 + 10) / 100)
    assert float(optimizer.param_groups[0]["lr"]) == 0.01


def test_a_condition_of_ones_own_takes_one_line() -> None:
    registry.register(
        "optimizer",
        "frozen",
        partial(adaptive_adam, rule=lambda norm, _average: 0 * norm),
        replace=True,
    )
    start = toy.model()
    before = {n: p.detach().clone() for n, p in start.named_parameters()}
    trained = toy.train(optimizer="frozen", start=start, weight_decay=0.0)
    assert all(
        torch.equal(before[n], t)
        for n, t in trained.weights.items()
        if not n.startswith("classifier")
    )


def test_muon_takes_the_matrices_between_the_ends_only() -> None:
    trainer = toy.trainer(optimizer="muon")
    optimizer: Any = trainer._begin().optimizer
    hidden = {n for g in optimizer.param_groups if g["is_hidden"] for n in g["names"]}
    assert hidden
    assert all(".layer." in name and name.endswith("weight") for name in hidden)
    everything = [n for g in optimizer.param_groups for n in g["names"]]
    assert len(everything) == len(set(everything)) == len(trainer._begin().learning())
