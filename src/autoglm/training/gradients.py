"""Norms and clipping of the gradients: nothing waits for a number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Norms:
    """Norms before clipping, as tensors of one number: reading one waits for the device.

    `scale` is what the gradients were multiplied by: 1 where the norm was small enough. Of a
    `may_skip` step norms that are not finite mean that it was skipped (`precision.Scaler`).
    """

    per_group: tuple[Tensor, ...]
    total: Tensor
    scale: Tensor
    may_skip: bool = False


def clip(optimizer: torch.optim.Optimizer, *, norm: float, value: float) -> Norms:
    """Clip by value, then by the norm over all groups; 0 switches either off.

    An optimizer of torch that can be told a scale multiplies by it as it reads the gradients, and
    takes no step with one that is not finite. One with `gradient_norms` is given them.
    """
    groups = optimizer.param_groups
    if value:
        for group in groups:
            torch.nn.utils.clip_grad_value_(group["params"], value)
    gradients = [[p.grad for p in group["params"] if p.grad is not None] for group in groups]
    per_group = tuple(torch.nn.utils.get_total_norm(part) for part in gradients)
    total = torch.linalg.vector_norm(torch.stack(per_group))
    # As torch.nn.utils.clip_grad_norm_ does it, so that both train alike.
    divisor = ((total + 1e-6) / norm).clamp(min=1.0) if norm else torch.ones_like(total)
    if hasattr(optimizer, "gradient_norms"):
        optimizer.gradient_norms = per_group
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~torch.isfinite(total)).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = divisor if norm else None  # type: ignore[attr-defined]
    elif norm:
        for part in gradients:
            torch._foreach_div_(part, divisor)
    return Norms(per_group, total, 1 / divisor)
