from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autoglm.training.vocabulary import decays_idle_rows


@decays_idle_rows
def adamw(groups: Sequence[Mapping[str, Any]], *, lr: float) -> torch.optim.Optimizer:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, arXiv:1711.05101."""
    return torch.optim.AdamW([dict(group) for group in groups], lr=lr, fused=True)
