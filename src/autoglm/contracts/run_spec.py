from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from autoglm.contracts.dataset_version import DatasetVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectFile:
    """A Python file of the project's `imports:`, as it was when the run was admitted."""

    name: str
    digest: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """Everything a run needs, frozen when it was admitted; a resumed run reads this, not the files.

    `config` is the whole tree in force (section → key → value); `secrets` are the keys whose value
    is not kept in it: who needs one reads it from the layers (settings.unfreeze). `stable` is the
    digest of the model version in service when the run began, `""` when there was none. `folder`
    is the run's own workspace. `tuning` is `default`, `project` (own files in `imports`) or
    `source` (files of this package, with their SHA-256 in `changed_source`).
    """

    project: str
    run_id: str
    cause: str
    trigger: str
    dataset: DatasetVersion
    config: Mapping[str, Any]
    config_digest: str
    seed: int
    stable: str
    folder: str
    traceparent: str
    tuning: str
    created_at: datetime
    imports: tuple[ProjectFile, ...] = ()
    secrets: tuple[str, ...] = ()
    changed_source: Mapping[str, str] = field(default_factory=dict)
