"""Algorithms and callbacks of a trial, made by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autoglm.errors import CancelledError, PluginError, TrainingError
from autoglm.plugins import registry
from autoglm.training.algorithms import EarlyStopping, Ema
from autoglm.training.memory import is_out_of_memory


def algorithms(training: Mapping[str, Any]) -> list[Any]:
    """Those of `training.algorithms` in their order, then ours where they are switched on."""
    found = [_made("algorithm", name, training) for name in training["algorithms"]]
    if training["ema"]:
        found.append(Ema(training))
    if training["early_stopping"]:
        found.append(EarlyStopping(training))
    return found


def are_ours(algorithms: Sequence[Any]) -> bool:
    """Whether each changes nothing but what learns."""
    return all(type(each) in {Ema, EarlyStopping} for each in algorithms)


def callbacks(training: Mapping[str, Any]) -> list[Any]:
    return [_made("callback", name, training) for name in training["callbacks"]]


def _made(kind: str, name: str, training: Mapping[str, Any]) -> Any:
    """An object of the part: its class is handed the section `training` if it takes anything."""
    part = registry.get(kind, name)
    if not isinstance(part, type):
        return part
    takes = inspect.signature(part).parameters
    return part(training) if takes else part()


def own_parts(config: Any) -> str:
    """The project's own attention and head in a model of this config; empty where it has none."""
    said = (("attention", config.attention), ("head", config.head))
    own = [f"{k}:{n}" for k, n in said if n in registry.names(k) and not registry.is_ours(k, n)]
    return " or ".join(own)


def schedule(name: str) -> Callable[[int, int], float]:
    """By name; what is no number is told as its fault."""
    part = registry.get("schedule", name)

    def factor(step: int, num_steps: int) -> float:
        with speaking_for(f"schedule:{name}"):
            found = float(part(step, num_steps))
            if not math.isfinite(found):
                raise ValueError(f"step {step} of {num_steps} has the factor {found}")
        return found

    return factor


@contextmanager
def speaking_for(part: str) -> Iterator[None]:
    """What a project's own part raises is told as its fault; want of memory is nobody's."""
    try:
        yield
    except (PluginError, CancelledError, TrainingError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise PluginError(
            f"{part}: {type(error).__name__}: {error}.",
            code="plugin.failed",
            next_step="Correct the part; the run can be resumed.",
        ) from error
