"""The head that needs no training: ridge regression on features, solved exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
LEAST_SPREAD = 1e-9
SCALES = (2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)


def ridge_head(
    features: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    centre: float = 0.0,
    scales: Sequence[float] = SCALES,
) -> tuple[Tensor, Tensor]:
    """Weight (outputs, hidden) and bias (outputs) of the best ridge solution for `targets` (rows,
    outputs): what it says is scale · (fit - `centre`).

    The penalty and the scale are those with the least leave-one-out `loss`, which the hat matrix
    gives without fitting again. Cost: one eigendecomposition (hidden³).
    Source: Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 7.10.
    """
    x, y = features.double(), targets.double()
    mean, prior = x.mean(0), y.mean(0)
    x = x - mean
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    projected, target = x @ vectors, vectors.T @ (x.T @ (y - prior)) / len(x)
    # Rows that are all alike have no spread to measure a penalty by.
    unit = values.mean().clamp(min=LEAST_SPREAD * float(features.double().square().mean()) or 1.0)
    best: tuple[float, Tensor, float] | None = None
    for penalty in PENALTIES:
        shrink = 1.0 / (values.clamp(min=0) + penalty * unit)
        fitted = projected @ (shrink[:, None] * target)
        leverage = (projected.square() * shrink).sum(1) / len(x) + 1.0 / len(x)
        residual = (y - prior - fitted) / (1 - leverage.clamp(max=0.999))[:, None]
        held_out = y - residual
        for scale in scales:
            value = loss(scale * (held_out - centre)).item()
            if best is None or value < best[0]:
                best = (value, scale * (vectors @ (shrink[:, None] * target)), scale)
    assert best is not None, "there is at least one penalty"
    _, weight, scale = best
    bias = scale * (prior - centre) - mean @ weight
    return weight.T.float().contiguous(), bias.float()
