"""Training elsewhere than on the CPU, on a device that refuses what CUDA would refuse."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.errors import TrainingError
from autoglm.training import devices
from training import device_cases


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Case → what came out there and on the CPU."""
    script = Path(__file__).with_name("other_device.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = map(json.loads, done.stdout.splitlines())
    return {name: (there, here) for name, there, here in lines}


@pytest.mark.parametrize("case", device_cases.CASES)
def test_another_device_learns_what_the_cpu_learns(told: Any, case: str) -> None:
    there, here = told[case]
    assert there == pytest.approx(here, rel=1e-3, nan_ok=True)


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(TrainingError) as caught:
        devices.choose("cuda")
    assert caught.value.code == "training.device"
    assert devices.choose("auto") == torch.device("cpu") or torch.backends.mps.is_available()


def test_the_peak_of_a_trial_is_its_own_and_no_longer_the_one_before() -> None:
    cpu = torch.device("cpu")
    large = torch.ones(2**26)  # 256 MiB
    devices.forget_peak(cpu)
    with_it = devices.peak(cpu)["peak_resident_bytes"]
    del large
    devices.forget_peak(cpu)
    without = devices.peak(cpu)["peak_resident_bytes"]
    assert with_it - without > 2**27


@pytest.mark.parametrize("num", [1, 4])
def test_what_trials_left_in_cycles_is_freed_once_it_may_be_much(num: int) -> None:
    class Copy:
        itself: Any

    copy = Copy()
    copy.itself = copy
    left = weakref.ref(copy)
    gc.disable()
    try:
        del copy
        assert left() is not None
        for _ in range(num):
            devices.free_copies(devices.COPIES_BYTES // num)
        assert left() is None
    finally:
        gc.enable()
