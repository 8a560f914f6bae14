"""What a trial changes is its own; what it cannot change it does not copy."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.modeling.surgery.config import StructureConfig
from autoglm.training import cost
from autoglm.training import trainer as trainer_module
from autoglm.training.decisions import Decisions
from training import toy


def tensors(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def shared(model: Any, start: Any) -> set[str]:
    """Names of weights that lie where the start's do."""
    places = {p.data_ptr() for p in start.parameters()}
    return {name for name, p in model.named_parameters() if p.data_ptr() in places}


@pytest.mark.parametrize("layers", [0, 1, 9])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("said", [{}, {"ema": 0.9, "early_stopping": 1}])
def test_training_leaves_the_start_as_it_was_and_copies_only_what_learns(
    layers: int, rank: int, said: dict[str, Any]
) -> None:
    start = toy.model()
    before, asked = tensors(start), {name: p.requires_grad for name, p in start.named_parameters()}
    trainer = toy.trainer(
        start=start, trainable_layers=layers, structure=StructureConfig(lora_rank=rank), **said
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


def test_an_attention_of_ones_own_may_change_what_is_frozen_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = toy.model()
    monkeypatch.setattr(trainer_module, "own_parts", lambda _config: "attention:mine")
    assert shared(toy.trainer(start=start, trainable_layers=0)._model, start) == set()


def test_runs_of_a_project_price_trials_by_one_measurement_whatever_their_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return left @ right

    torch.set_num_threads(2)
    monkeypatch.setattr(torch, "mm", mm)

    def priced(run: str) -> float:
        path = tmp_path / run / "decisions.json"
        path.parent.mkdir()
        return cost.seconds_per_flop(Decisions(path, machine=tmp_path / "machine.json"))

    first, num = priced("a"), len(threads)
    assert priced("b") == first > 0
    assert (len(threads), set(threads), torch.get_num_threads()) == (num, {1}, 2)
    assert json.loads((tmp_path / "b" / "decisions.json").read_text()) == {
        "seconds_per_flop": first
    }
