"""The model that a trial trains: on the CPU a copy of what learns, and what the start has besides.

model = copy_of(start, device)   every parameter its own, every tensor the start's
own_what_learns(model)           before the first of them is changed

A trial over kept features learns a head of a few thousand numbers; to copy the frozen millions for
it took a tenth of a second, and their memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from autoglm.training import devices


def copy_of(start: Any, device: torch.device) -> Any:
    """On another device than the CPU all of it is the copy's own."""
    if device.type != "cpu":
        devices.free_copies(sum(p.nbytes for p in start.parameters()))
    known: dict[int, Any] = {
        id(p): type(p)(p.data, requires_grad=p.requires_grad) for p in start.parameters()
    }
    return copy.deepcopy(start, known).to(device)


def own_what_learns(model: nn.Module, *, frozen_too: bool) -> None:
    """`frozen_too`: where code that is not ours gets the model, it may change anything."""
    mine = [p for p in model.parameters() if p.is_cpu and (p.requires_grad or frozen_too)]
    devices.free_copies(sum(p.nbytes for p in mine))
    for parameter in mine:
        parameter.data = parameter.data.clone()
