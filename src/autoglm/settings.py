"""The whole configuration of a project: one section per package that reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len

from autoglm.config.config_loader import Config, load
from autoglm.config.schema import Key
from autoglm.contracts.record import digest, from_json, to_json
from autoglm.evaluation.config import EvaluateConfig
from autoglm.modeling.config import ModelConfig
from autoglm.registry.config import StorageConfig
from autoglm.release.config import ReleaseConfig
from autoglm.search.config import SearchConfig
from autoglm.serving.config import ServingConfig
from autoglm.streaming.config import DataConfig
from autoglm.training.config import TrainingConfig
from autoglm.triggers.config import TriggerConfig

FILE_NAME = "autoglm.yaml"
# What changes which model comes out; the other sections only change how it is run and released.
LEARNING_SECTIONS = ("model", "data", "search", "training", "evaluate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    project: Annotated[str, Len(1, 63), Key("Name that every record, line and metric carries.")]
    model: Annotated[ModelConfig, Key("What is adapted.")]
    data: Annotated[DataConfig, Key("Where rows come from and which columns count.")]
    search: Annotated[SearchConfig, Key("How the best adaptation is looked for.")] = field(
        default_factory=SearchConfig
    )
    training: Annotated[TrainingConfig, Key("How one trial is trained.")] = field(
        default_factory=TrainingConfig
    )
    evaluate: Annotated[EvaluateConfig, Key("What counts as better.")] = field(
        default_factory=EvaluateConfig
    )
    trigger: Annotated[TriggerConfig, Key("What starts a run.")] = field(
        default_factory=TriggerConfig
    )
    release: Annotated[ReleaseConfig, Key("How a candidate gets traffic.")] = field(
        default_factory=ReleaseConfig
    )
    serving: Annotated[ServingConfig, Key("Gateway and model workers.")] = field(
        default_factory=ServingConfig
    )
    storage: Annotated[StorageConfig, Key("What may lie on disk.")] = field(
        default_factory=StorageConfig
    )


def load_settings(folder: Path, *, assignments: Sequence[str] = ()) -> Config[Settings]:
    """Settings of the project in `folder`. Raises: ConfigError."""
    return load(
        Settings,
        files=[folder / FILE_NAME],
        environ=os.environ,
        assignments=assignments,
        base=folder,
    )


def snapshot(settings: Settings) -> dict[str, Any]:
    """The frozen tree that a run keeps (durations in seconds)."""
    tree: dict[str, Any] = to_json(settings)
    return tree


def from_snapshot(tree: Mapping[str, Any]) -> Settings:
    return from_json(Settings, tree)


def learning_digest(settings: Settings) -> str:
    """Digest of what decides which model comes out of given rows."""
    tree = snapshot(settings)
    data = {
        k: v
        for k, v in tree["data"].items()
        if k in {"text", "label", "max_length", "min_rows", "split"}
    }
    return digest({**{name: tree[name] for name in LEARNING_SECTIONS}, "data": data})
