"""Norms and clipping of the gradients: nothing waits for a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Norms:
    """Norms before clipping, as tensors of one number: reading one waits for the device.

    `is_clipped` is 1 where a value or the norm was too large, else 0. Of a `may_skip` step norms
    that are not finite mean that it was skipped (`precision.Scaler`).
    """

    per_group: tuple[Tensor, ...]
    total: Tensor
    is_clipped: Tensor
    may_skip: bool = False


def is_told(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step divides by a scale and leaves out what is not finite, both as told."""
    # torch's fused kernel for mps takes both numbers and reads neither.
    on_mps = any(
        p.device.type == "mps" for group in optimizer.param_groups for p in group["params"]
    )
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False)) and not on_mps


def clip(
    optimizer: torch.optim.Optimizer, *, norm: float, value: float, may_skip: bool = False
) -> Norms:
    """Clip by value, then by the norm over all groups; 0 switches either off. A group may hold no
    gradient, where all of its layers have stopped to learn.

    An optimizer of torch that can be told a scale multiplies by it as it reads the gradients, and
    takes no step with one that is not finite. One with `gradient_norms` is given them; all are NaN
    where one gradient is not finite.
    """
    groups = optimizer.param_groups
    gradients = [[p.grad for p in group["params"] if p.grad is not None] for group in groups]
    overflow: Tensor | float = 0.0
    is_cut: Tensor | bool = False
    if value:
        largest = torch.nn.utils.get_total_norm([g for part in gradients for g in part], math.inf)
        is_cut = largest > value
        if may_skip:
            # Clipped by value, an infinity is a number like others.
            overflow = 0 * torch.nn.utils.get_total_norm([g for part in gradients for g in part])
        for group, part in zip(groups, gradients, strict=True):
            if part:
                torch.nn.utils.clip_grad_value_(group["params"], value)
    per_group = tuple(
        torch.nn.utils.get_total_norm(part) if part else group["params"][0].new_zeros(())
        for group, part in zip(groups, gradients, strict=True)
    )
    total = torch.linalg.vector_norm(torch.stack(per_group)) + overflow
    # As torch.nn.utils.clip_grad_norm_ does it, so that both train alike.
    divisor = ((total + 1e-6) / norm).clamp(min=1.0) if norm else torch.ones_like(total)
    if hasattr(optimizer, "gradient_norms"):
        optimizer.gradient_norms = tuple(each + 0 * total for each in per_group)
    if is_told(optimizer):
        optimizer.found_inf = (~torch.isfinite(total)).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = divisor if norm else None  # type: ignore[attr-defined]
    elif norm:
        for part in filter(None, gradients):
            torch._foreach_div_(part, divisor)
    return Norms(per_group, total, ((divisor > 1) | is_cut).float(), may_skip)
