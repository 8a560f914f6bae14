"""What training is at a moment: what algorithms may change and what a checkpoint keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.training.gradients import Norms


@dataclass(kw_only=True)
class TrainingState:
    """Handed to algorithms. `step` counts optimizer steps done, `batch` those of this epoch;
    `rows` are the batch at hand, computed in `parts`, of which there are twice as many once memory
    `has_halved` them. `metrics` are of the last evaluation, `best_metrics`, `best_epoch` and
    `best_weights` of the epoch that is kept (`training.keep`), which need not be the one with the
    `best_score`.
    """

    model: AutoGLMForSequenceClassification
    optimizer: torch.optim.Optimizer
    num_steps: int
    step: int = 0
    epoch: int = 1
    batch: int = 0
    rows: Sequence[int] = ()
    parts: int = 1
    has_halved: bool = False
    loss: Tensor | None = None
    norms: Norms | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_epoch: int = -1
    best_score: float = -math.inf
    improved_epoch: int = -1  # whose score that is
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    should_stop: bool = False
    names: frozenset[str] = field(init=False)  # of the tensors that learn at the start

    def __post_init__(self) -> None:
        self.names = frozenset(n for n, p in self.model.named_parameters() if p.requires_grad)

    def learning(self) -> dict[str, Tensor]:
        """The tensors that learn, or did before they were frozen, by name."""
        named = self.model.named_parameters()
        return {n: p for n, p in named if p.requires_grad or n in self.names}

    def copy_weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone().contiguous() for n, p in self.learning().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Any]:
    """An optimizer's state as tensors by name and the rest as a JSON document."""
    document = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in document["state"].items():
        plain[str(index)] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            elif _is_plain(value):
                plain[str(index)][name] = value
            else:
                raise TypeError(f"its state {name!r} is neither a tensor nor a plain value")
    groups = [
        {k: v for k, v in group.items() if not isinstance(v, Tensor)}
        for group in document["param_groups"]
    ]
    for number, group in enumerate(document["param_groups"]):
        for name, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group{number}/{name}"] = value
    return tensors, {"state": plain, "param_groups": groups}


def _is_plain(value: Any) -> bool:
    """Whether JSON gives it back."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], document: Any
) -> None:
    """The inverse of `optimizer_tensors`."""
    state = {int(index): dict(values) for index, values in document["state"].items()}
    groups = [dict(group) for group in document["param_groups"]]
    for key, tensor in tensors.items():
        place, _, name = key.partition("/")
        if place.startswith("group"):
            groups[int(place.removeprefix("group"))][name] = tensor
        else:
            state.setdefault(int(place), {})[name] = tensor
    for group, own in zip(groups, optimizer.param_groups, strict=True):
        # JSON has no tuples; torch compares and unpacks its own.
        for name, value in group.items():
            if isinstance(own.get(name), tuple) and isinstance(value, list):
                group[name] = tuple(value)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # Torch gives floating state the parameter's format: what was stored in another keeps it.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        for name, value in values.items():
            held = optimizer.state[parameters[index]]
            if isinstance(value, Tensor) and held[name].dtype != value.dtype:
                held[name] = value.to(held[name].device)
