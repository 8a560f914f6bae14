from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """Where a model version came from. Lies beside the model; the digest does not cover it."""

    run_id: str
    trace_id: str
    dataset_uri: str
    dataset_version: int
    dataset_digest: str
    dataset_rows: int
    parent: str
    parent_dataset_version: int | None
    config_digest: str
    tuning: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersion:
    """An immutable folder named by the digest of weights, tokenizer and cleaned config.

    `opens_with`: `transformers` (plain class) or `transformers+code` (the folder carries its
    `modeling_*.py`). `number` counts the project's versions from 1, for people.
    """

    project: str
    digest: str
    number: int
    folder: str
    labels: tuple[str, ...]
    opens_with: str
    runtime: str
    size_bytes: int
    created_at: datetime
    lineage: Lineage
