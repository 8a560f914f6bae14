"""Algorithms and callbacks of a trial, made by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from autoglm.errors import CancelledError, PluginError, TrainingError
from autoglm.plugins import registry
from autoglm.training.algorithms import EarlyStopping, Ema


def algorithms(training: Mapping[str, Any]) -> list[Any]:
    """Those of `training.algorithms` in their order, then ours where they are switched on."""
    found = [_made("algorithm", name, training) for name in training["algorithms"]]
    if training["ema"]:
        found.append(Ema(training))
    if training["early_stopping"]:
        found.append(EarlyStopping(training))
    return found


def callbacks(training: Mapping[str, Any]) -> list[Any]:
    return [_made("callback", name, training) for name in training["callbacks"]]


def _made(kind: str, name: str, training: Mapping[str, Any]) -> Any:
    """An object of the part: its class is handed the section `training` if it takes anything."""
    part = registry.get(kind, name)
    if not isinstance(part, type):
        return part
    takes = inspect.signature(part).parameters
    return part(training) if takes else part()


@contextmanager
def speaking_for(part: str) -> Iterator[None]:
    """What a project's own part raises is told as its fault."""
    try:
        yield
    except (PluginError, CancelledError, TrainingError):
        raise
    except Exception as error:
        raise PluginError(
            f"{part}: {type(error).__name__}: {error}.",
            code="plugin.failed",
            next_step="Correct the part; the run can be resumed.",
        ) from error
