"""Learning rates after the warm-up: (optimizer step, their number) → factor of the peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

# The share of the steps in which warm-up-stable-decay goes down.
DECAY_SHARE = 0.2


def linear(step: int, num_steps: int) -> float:
    return 1 - step / num_steps


def cosine(step: int, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def constant(step: int, num_steps: int) -> float:
    del step, num_steps
    return 1.0


def warmup_stable_decay(step: int, num_steps: int) -> float:
    """The peak until a fifth of the steps is left, then straight down.

    Source: Hu et al., "MiniCPM", 2024, arXiv:2404.06395.
    """
    left = (num_steps - step) / num_steps
    return min(1.0, left / DECAY_SHARE)


def inverse_sqrt(step: int, num_steps: int) -> float:
    """Falls as 1/sqrt of the steps, counted as if the warm-up had taken a tenth of them.

    Source: Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.
    """
    warm = max(1.0, num_steps / 9)
    return math.sqrt(warm / (warm + step))


def rate_at(
    step: int,
    num_steps: int,
    settings: Mapping[str, Any],
    schedule: Callable[[int, int], float],
) -> float:
    """The learning rate of one optimizer step (counted from 0) under the section `training`."""
    return rates(settings, schedule)(step, num_steps)


def rates(
    settings: Mapping[str, Any], schedule: Callable[[int, int], float]
) -> Callable[[int, int], float]:
    """`rate_at` of a step and their number; the settings are read once."""
    peak, share = float(settings["lr"]), float(settings["warmup"])
    warmup_steps = int(settings.get("warmup_steps") or 0)

    def rate(step: int, num_steps: int) -> float:
        warm = max(1, warmup_steps or round(share * num_steps))
        if step < warm:
            return peak * (step + 1) / warm
        return peak * float(schedule(step - warm, max(1, num_steps - warm)))

    return rate
