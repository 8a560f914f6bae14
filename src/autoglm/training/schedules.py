"""Learning rates after the warm-up: (optimizer step, their number) → factor of the peak."""

from __future__ import annotations

import math


def linear(step: int, num_steps: int) -> float:
    return 1 - step / num_steps


def cosine(step: int, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def constant(step: int, num_steps: int) -> float:
    del step, num_steps
    return 1.0
