"""Dropout whose random numbers cost an eighth: 16 random bits decide about a value, not a draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 2**16


class FastDropout(nn.Module):
    """Like `nn.Dropout`, from torch's own generator; the rate is rounded to 1/65,536.

    torch draws one number per value, one after the other: a sixth of a training step of a small
    encoder on a CPU.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.p)
        dropped: Tensor = _Drop.apply(x, round(self.p * LEVELS))  # type: ignore[no-untyped-call]
        return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, level: int) -> Tensor:
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        ctx.save_for_backward(bits)
        ctx.level = level
        return _factors(bits, x, level).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (bits,) = ctx.saved_tensors
        return _factors(bits, gradients[0], ctx.level).mul_(gradients[0]), None


def _factors(bits: Tensor, x: Tensor, level: int) -> Tensor:
    """0 or the scale of what is kept, like `x`. Made twice: the bits are half as large."""
    drawn = bits.view(torch.int16)[: x.numel()].view(x.shape)
    # A comparison into numbers, not into booleans: those would be converted one by one.
    kept = torch.ge(
        drawn, level - LEVELS // 2, out=torch.empty_like(x, memory_format=torch.contiguous_format)
    )
    return kept.mul_(LEVELS / (LEVELS - level))


def quicken(module: nn.Module, rate: float) -> int:
    """Put `FastDropout(rate)` where an `nn.Dropout` with a rate stands; returns how many."""
    count = 0
    for name, child in module.named_children():
        if isinstance(child, (nn.Dropout, FastDropout)):
            if child.p > 0:
                setattr(module, name, FastDropout(rate).train(child.training))
                count += 1
        else:
            count += quicken(child, rate)
    return count
