"""Norms and clipping of the gradients: each is read once, and nothing waits for a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Norms:
    """Norms before clipping, as tensors of one number: reading one waits for the device.

    `scale` is what the gradients were multiplied by: 1 where the norm was small enough.
    """

    per_group: tuple[Tensor, ...]
    total: Tensor
    scale: Tensor


def clip(groups: Sequence[Mapping[str, Any]], *, norm: float, value: float) -> Norms:
    """Clip by value, then by the norm over all groups; 0 switches either off."""
    if value:
        for group in groups:
            torch.nn.utils.clip_grad_value_(group["params"], value)
    gradients = [[p.grad for p in group["params"] if p.grad is not None] for group in groups]
    per_group = tuple(torch.nn.utils.get_total_norm(part) for part in gradients)
    total = torch.linalg.vector_norm(torch.stack(per_group))
    if not norm:
        return Norms(per_group, total, torch.ones_like(total))
    # As torch.nn.utils.clip_grad_norm_ does it, so that both train alike.
    scale = (norm / (total + 1e-6)).clamp(max=1.0)
    for part in gradients:
        if part:
            torch._foreach_mul_(part, scale)
    return Norms(per_group, total, scale)


def hand_over(optimizer: torch.optim.Optimizer, norms: Norms) -> None:
    """Give an optimizer what was measured: the norms, to one with `gradient_norms`; and that a
    step with a gradient that is not finite is none, to those of torch that can be told so.
    """
    if hasattr(optimizer, "gradient_norms"):
        optimizer.gradient_norms = norms.per_group
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~torch.isfinite(norms.total)).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
