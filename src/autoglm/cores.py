"""How many cores a process may use: not how many the machine has."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

# What the container's runtime allows (cgroup v2): microseconds of each period, or `max`.
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """At least 1: of the machine's cores those that the process may run on, no more than the
    container's CPU limit pays for. Threads beyond that would wait for each other.
    """
    # Not on macOS.
    allowed = getattr(os, "sched_getaffinity", None)
    num = len(allowed(0)) if allowed is not None else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int(number) for number in QUOTA.read_text(encoding="ascii").split())
        num = min(num, math.ceil(quota / period))
    return max(1, num)
