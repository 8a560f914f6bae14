"""What is taken away on purpose: a row for good, and files that nothing needs any more."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoglm.contracts.model_version import ModelVersion
from autoglm.datasets import erasure
from autoglm.loop.change_to_dataset import open_broker, topic_of
from autoglm.loop.explain import history, learnt_from, spelled
from autoglm.project import Project
from autoglm.search.report import is_open
from autoglm.state.event_log import EventLog
from autoglm.training.stages import STAGES, let_go, size_of
from autoglm.triggers.admission import UNFINISHED, Admission


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasedRow:
    """`models` learnt from the row and still do."""

    version: int
    changes: int
    models: tuple[ModelVersion, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Names of what went (or would go), and how many trained stages."""

    table_files: tuple[str, ...]
    models: tuple[str, ...]
    stages: int
    num_bytes: int


def erase_row(project: Project, key: str) -> ErasedRow:
    """Out of the feature table, of the broker's batches that were read to their end, and of what
    was kept of the text (tokens and states).

    The owner's lock is held. Raises: OwnerError, DataError data.no_such_row.
    """
    key = spelled(project, key)
    with project.own("data erase"):
        models = learnt_from(project, history(project).of(key))
        done = erasure.erase(project.table(), key)
        with closing(open_broker(project)) as broker:
            broker.retain(topic_of(project))  # batches that the table has are not needed any more
        shutil.rmtree(project.state / "cache", ignore_errors=True)
    return ErasedRow(version=done.version, changes=done.changes, models=tuple(models))


def collect_garbage(project: Project, *, is_dry_run: bool = False) -> Garbage:
    """Files of the feature table that neither the newest version, nor a run that goes on, nor a
    model version that is kept reads; folders of model versions beyond storage.keep_versions; what
    trials of studies trained, unless a run or the newest study is to go on.

    Raises: OwnerError: under a living `up` something may be being written.
    """
    with project.own("gc"):
        table, registry = project.table(), project.registry()
        keep_versions = project.settings.storage.keep_versions
        old = registry.surplus(keep_versions)
        models = [version.digest for version in old]
        num_bytes = sum(_size(Path(version.folder)) for version in old)
        if not is_dry_run:
            models = registry.prune(keep_versions)
        held = {
            version.lineage.dataset_version
            for version in registry.versions()
            if version.digest not in models and Path(version.folder).exists()
        }
        unfinished = _unfinished(project)
        held |= {_dataset_version(row) for row in unfinished}
        trained = project.work / STAGES
        is_over = not unfinished and not is_open(EventLog(project.engine))
        stages, stage_bytes = size_of(trained) if is_over else (0, 0)
        num_bytes += stage_bytes
        unused = erasure.collect_garbage(table, held, is_dry_run=True)
        num_bytes += table.store.num_bytes(unused)
        if not is_dry_run:
            erasure.collect_garbage(table, held)
            if stages:
                let_go(trained, 0)
                num_left, bytes_left = size_of(trained)
                stages, num_bytes = stages - num_left, num_bytes - bytes_left
    return Garbage(
        table_files=tuple(unused), models=tuple(models), stages=stages, num_bytes=num_bytes
    )


def _unfinished(project: Project) -> list[Mapping[str, Any]]:
    return [
        row
        for row in Admission(project.engine, project.state).rows()
        if row["status"] in UNFINISHED
    ]


def _dataset_version(row: Mapping[str, Any]) -> int:
    return int(row["run_spec"]["dataset"]["version"])


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
