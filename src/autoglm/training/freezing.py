"""Layers that stop to learn as training goes on, the lowest first (`training.freezing`).

In each epoch half of the layers learn that learnt in the one before, at least the top one. What the
others say of each row is encoded once; neither their forward nor their backward pass is paid again.
Which layers stop depends on the epoch alone: what a trial will cost is known before it starts, and
its first epoch is a stage that it shares with the trial that freezes nothing.
Source: Liu et al., "AutoFreeze: Automatically Freezing Model Blocks to Accelerate Fine-tuning",
2021, arXiv:2102.01386; there the norms of gradients say when.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoglm.modeling.auto_model import layers_of
from autoglm.modeling.backbones.own_models import is_own
from autoglm.modeling.body import can_cut

PROGRESSIVE = "progressive"
# They keep two sets of weights, one to learn and one to be scored.
SWAPS = frozenset({"schedule_free_adamw"})


def why_not_freezing(
    backbone: Any, training: Mapping[str, Any], *, has_adapters: bool, are_images: bool
) -> str:
    """Why all layers that learn do so to the end, though `training` asks for less; empty when some
    stop.
    """
    if is_own(backbone):
        return "the backbone began at random"
    if are_images or not can_cut(backbone):
        return "its layers cannot be cut apart"
    if has_adapters:
        return "adapters learn in every layer"
    if training["ema"] or training["algorithms"]:
        return "training.ema and training.algorithms may read or write what has stopped to learn"
    if training["optimizer"] in SWAPS:
        return f"{training['optimizer']} scores with other weights than it learns"
    return ""


def frozen_by_epoch(
    backbone: Any, training: Mapping[str, Any], *, has_adapters: bool, are_images: bool
) -> list[int]:
    """How many of the lowest layers do not learn, epoch by epoch; empty where all that learn do so
    to the end.
    """
    asked = {"has_adapters": has_adapters, "are_images": are_images}
    if training["freezing"] != PROGRESSIVE or why_not_freezing(backbone, training, **asked):
        return []
    num = len(layers_of(backbone))
    learning = min(num, int(training["trainable_layers"]))
    halves = (-(-learning // 2**epoch) for epoch in range(int(training["epochs"])))
    return [num - each for each in halves] if learning > 1 else []
