"""Layers that stop to learn as training goes on, the lowest first (`training.freezing`).

In each epoch half of the layers learn that learnt in the one before, at least the top one. What the
others say of each row is encoded once; neither their forward nor their backward pass is paid again.
Which layers stop depends on the epoch alone: what a trial will cost is known before it starts, and
its first epoch is a stage that it shares with the trial that freezes nothing.
Source: Liu et al., "AutoFreeze: Automatically Freezing Model Blocks to Accelerate Fine-tuning",
2021, arXiv:2102.01386; there the norms of gradients say when.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoglm.modeling.auto_model import layers_of
from autoglm.modeling.backbones.own_models import is_own
from autoglm.modeling.body import Body, can_cut

PROGRESSIVE = "progressive"
# They leave a tensor without a gradient alone, and learn with the weights that are scored.
OPTIMIZERS = frozenset({"adamw", "adaptive_adam", "muon"})
# States of what has stopped are of use to one trial only, so they stay in memory.
STATES_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Freezing:
    """Of a trial on `backbone` with the settings `training`. `why_whole` tells why the backbone
    cannot be cut in two (empty when it can); it is asked last.
    """

    backbone: Any
    training: Mapping[str, Any]
    has_adapters: bool
    are_images: bool
    why_whole: Callable[[], str]

    @property
    def is_asked(self) -> bool:
        return bool(self.training["freezing"] == PROGRESSIVE)

    def why_not(self) -> str:
        """Why all layers that learn do so to the end, asked or not; empty when some stop."""
        if is_own(self.backbone):
            return "the backbone began at random"
        if self.are_images:
            return "images are not kept"
        if self.has_adapters:
            return "adapters learn in every layer"
        if self.training["ema"] or self.training["algorithms"]:
            return "training.ema and training.algorithms may use what has stopped to learn"
        if self.training["memory_budget"]:
            return "training.memory_budget has no room for kept states"
        if (name := self.training["optimizer"]) not in OPTIMIZERS:
            return f"{name} may want every gradient, or score with other weights"
        return self.why_whole()

    def by_epoch(self) -> list[int]:
        """How many of the lowest layers do not learn, epoch by epoch; empty where all that learn
        do so to the end.
        """
        if not self.is_asked or self.why_not():
            return []
        num = len(layers_of(self.backbone))
        learning = min(num, int(self.training["trainable_layers"]))
        halves = (-(-learning // 2**epoch) for epoch in range(int(self.training["epochs"])))
        return [num - each for each in halves] if learning > 1 else []


def why_uncut(backbone: Any) -> str:
    """Why no layers can be taken off below; empty when they can. Costs a copy and a few passes."""
    if not can_cut(backbone):
        return "its layers cannot be cut apart"
    pad_id = int(getattr(backbone.config, "pad_token_id", 0) or 0)
    return Body(copy.deepcopy(backbone), pad_id=pad_id).why_whole
