from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autoglm.training.vocabulary import decays_idle_rows


@decays_idle_rows
def schedule_free_adamw(groups: Sequence[Mapping[str, Any]], *, lr: float) -> torch.optim.Optimizer:
    """AdamW whose average of weights is a model at any step: set `schedule: constant` with it.

    Source: Defazio et al., "The Road Less Scheduled", 2024, arXiv:2405.15682 (their package).
    """
    from schedulefree import AdamWScheduleFree

    made: torch.optim.Optimizer = AdamWScheduleFree([dict(group) for group in groups], lr=lr)
    return made
