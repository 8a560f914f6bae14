"""What a trial changes is its own; what it cannot change it does not copy."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from autoglm.modeling.surgery.config import StructureConfig
from training import toy


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def shared(model: Any, start: Any) -> set[str]:
    """Names of weights that lie where the start's do."""
    places = {p.data_ptr() for p in start.parameters()}
    return {name for name, p in model.named_parameters() if p.data_ptr() in places}


@pytest.mark.parametrize("layers", [0, 1, 9])
@pytest.mark.parametrize("rank", [0, 2])
def test_training_leaves_the_start_as_it_was_and_copies_only_what_learns(
    layers: int, rank: int
) -> None:
    start = toy.model()
    before, asked = tensors(start), {name: p.requires_grad for name, p in start.named_parameters()}
    trainer = toy.trainer(
        start=start, trainable_layers=layers, structure=StructureConfig(lora_rank=rank)
    )
    learns = {name for name, p in trainer._model.named_parameters() if p.requires_grad}
    frozen = {name for name, p in trainer._model.named_parameters() if not p.requires_grad}
    assert shared(trainer._model, start) == frozen
    trained = trainer.train(threading.Event())
    assert trained.num_steps > 0
    assert learns
    after = tensors(start)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: p.requires_grad for name, p in start.named_parameters()} == asked


def test_an_algorithm_may_change_what_is_frozen_and_the_next_trial_does_not_see_it() -> None:
    class Shakes:
        def apply(self, moment: str, state: Any) -> None:
            if moment == "start":
                with torch.no_grad():
                    for parameter in state.model.parameters():
                        parameter.mul_(2)

    start = toy.model()
    before = tensors(start)
    trainer = toy.trainer(start=start, trainable_layers=0, algorithms=[Shakes()])
    assert shared(trainer._model, start) == set()
    trainer.train(threading.Event())
    assert all(torch.equal(before[name], p) for name, p in start.named_parameters())
