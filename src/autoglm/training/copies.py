"""The model that a trial trains: on the CPU a copy of what learns, and what the start has besides.

model = copy_of(start, device, …)   every parameter its own, every tensor the start's
own_what_learns(model, …)           before the first of them is changed

A trial over kept features learns a head of a few thousand numbers; to copy the frozen millions for
it took a tenth of a second, and their memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from autoglm.training import devices


def copy_of(start: Any, device: torch.device, *, is_shared: bool) -> Any:
    """All of it is the copy's own on another device than the CPU, and without `is_shared`: code
    that is not ours may change anything.
    """
    if device.type != "cpu" or not is_shared:
        devices.free_copies(sum(p.nbytes for p in start.parameters()))
        return copy.deepcopy(start).to(device)
    known: dict[int, Any] = {
        id(p): type(p)(p.data, requires_grad=p.requires_grad) for p in start.parameters()
    }
    return copy.deepcopy(start, known)


def own_what_learns(model: nn.Module, *, is_shared: bool) -> None:
    """After it is known what learns, and how much of it."""
    learning = [p for p in model.parameters() if p.is_cpu and p.requires_grad and is_shared]
    devices.free_copies(sum(p.nbytes for p in learning))
    for parameter in learning:
        parameter.data = parameter.data.clone()
