"""Where training runs, and what a device is asked beside computing: dice, memory."""

from __future__ import annotations

import gc
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from torch import Tensor

from autoglm.errors import TrainingError

# In the order in which `auto` takes them.
ACCELERATORS = ("cuda", "mps")
CLEAR_PEAK = "5"
COPIES_BYTES = 2**26
_copied_bytes = 0


def choose(said: str) -> torch.device:
    """`said` is a device's name; `auto` is the first accelerator there is, else the CPU.

    Raises: TrainingError training.device for one that is not there.
    """
    if said == "auto":
        return torch.device(next(filter(_is_there, ACCELERATORS), "cpu"))
    if said != "cpu" and not _is_there(said):
        raise TrainingError(
            f"training.device = {said}: torch {torch.__version__} sees no such device here.",
            code="training.device",
            next_step="Set training.device: auto, or install a torch that is built for it.",
        )
    return torch.device(said)


def _is_there(name: str) -> bool:
    module = getattr(torch, name, None)
    return module is not None and bool(module.is_available())


def name_on(kind: str, name: str) -> str:
    """Under which is kept what was measured, or made, on this kind of device."""
    return name if kind == "cpu" else f"{name} {kind}"


def identity(kind: str) -> str:
    """What a measurement on this kind of device holds for: the device's own name, what it can
    compute with, and the libraries.
    """
    if kind == "cpu":
        device = f"{_processor()} {torch.backends.cpu.get_cpu_capability()}"
    elif kind == "cuda":
        device = torch.cuda.get_device_name()
    else:
        device = f"{kind} {platform.machine()}"
    return f"{device}, torch {torch.__version__}, open-autoglm {version('open-autoglm')}"


def _processor() -> str:
    """Its name, and which half formats it multiplies: a virtual machine may hide them."""
    try:
        said = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = re.findall(r"^model name\s*:\s*(.+)$", said, re.MULTILINE)
    formats = sorted({*re.findall(r"\b\w*(?:bf16|fp16)\w*\b", said)})
    return " ".join([names[0].strip() if names else platform.machine(), *formats])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The generators that training draws from, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    for kind, state in states.items():
        if kind == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(kind).set_rng_state(state)


def used_bytes(device: torch.device) -> int:
    """Resident, or on CUDA what is allocated there."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def free_copies(num_bytes: int) -> None:
    """Before another copy of a model, of so many bytes: free those of the trials before, once they
    may come to COPIES_BYTES. Cycles hold them, and there are too few objects in them for Python to
    look soon. To look costs half a second where much is loaded: more than a small model's fit.
    """
    global _copied_bytes
    _copied_bytes += num_bytes
    if _copied_bytes >= COPIES_BYTES:
        gc.collect()
        _copied_bytes = num_bytes


def free_unused(device: torch.device) -> None:
    """Give back what the device's allocator keeps: between trials, never between steps."""
    if device.type in ACCELERATORS:
        torch.get_device_module(device).empty_cache()


def forget_peak(device: torch.device) -> None:
    """`peak` counts from here, where the system lets it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)
    except OSError:
        return  # no Linux, or not allowed: the peak is that of the process


def peak(device: torch.device) -> dict[str, int]:
    """The most bytes since `forget_peak`: resident, and on CUDA allocated and reserved there."""
    found = {"peak_resident_bytes": _peak_resident()}
    if device.type == "cuda":
        found["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        found["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return found


def _peak_resident() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0])
    except (OSError, IndexError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
