"""AdamW whose rate bends to the gradients: less where they are larger than they were of late."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoglm.training.vocabulary import decays_idle_rows

Rule = Callable[[Tensor, Tensor], Tensor]
# How much of the average of norms is kept from one step to the next.
MEMORY = 0.9


def average_over_norm(norm: Tensor, average: Tensor) -> Tensor:
    """clip(EMA(|g|) / |g|, 0.5, 2): a gradient twice as large as usual halves the rate."""
    return (average / norm.clamp(min=1e-12)).clamp(0.5, 2.0)


class AdaptiveAdam(torch.optim.AdamW):
    """Both moments, bias correction, decoupled decay; per group rate = lr · rule(|g|, EMA(|g|)).

    The norms come from the pass that clips (`gradient_norms`, set by the trainer), so that the
    gradients are read once more only by the fused kernel. `rule(norm, average)` gives the factor
    as a tensor of one number; nothing here waits for one.
    """

    gradient_norms: Sequence[Tensor] = ()

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], *, lr: float, rule: Rule = average_over_norm
    ) -> None:
        super().__init__([dict(group) for group in groups], lr=lr, fused=True)
        self._rule = rule
        for group in self.param_groups:
            group["norm_average"] = torch.full((), -1.0)

    def forget_norms(self) -> None:
        """Others learn from here on: what was usual of the norms is so no more."""
        for group in self.param_groups:
            group["norm_average"] = torch.full_like(group["norm_average"], -1.0)

    def step(self, closure: Any = None) -> Any:
        """Raises: ValueError when nobody has set `gradient_norms`."""
        if len(self.gradient_norms) != len(self.param_groups):
            raise ValueError("gradient_norms must hold the norm of each group")
        rates = [group["lr"] for group in self.param_groups]
        for group, norm in zip(self.param_groups, self.gradient_norms, strict=True):
            before = group["norm_average"] = group["norm_average"].to(norm.device)
            average = torch.where(before < 0, norm, MEMORY * before + (1 - MEMORY) * norm)
            # One step with a gradient that is not finite must not spoil all later averages.
            group["norm_average"] = torch.where(torch.isfinite(norm), average, before)
            group["lr"] = torch.as_tensor(group["lr"]) * self._rule(norm, average)
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


@decays_idle_rows
def adaptive_adam(
    groups: Sequence[Mapping[str, Any]], *, lr: float, rule: Rule = average_over_norm
) -> torch.optim.Optimizer:
    """`partial(adaptive_adam, rule=mine)` is an optimizer of one's own."""
    return AdaptiveAdam(groups, lr=lr, rule=rule)
