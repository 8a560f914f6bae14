"""Columns of the feature table beside input and answer, and which rows an older version lacks."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.errors import DataError


def check_columns(dataset: DatasetVersion, columns: Sequence[str]) -> None:
    """Whether the table holds these columns. Raises: DataError data.no_column."""
    known = _table(dataset).columns(dataset.version) if columns else []
    for column in columns:
        if column not in known:
            near = difflib.get_close_matches(column, known, n=1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise DataError(
                f"evaluate.slices: the feature table has no column {column!r}; it has"
                f" {', '.join(known)}.",
                code="data.no_column",
                next_step=f"{meant}A column of the source is stored when a row of it has a value.",
            )


def column_of(dataset: DatasetVersion, column: str, keys: Sequence[str]) -> list[Any]:
    """The column's values of the rows `keys`, in their order; None where there is none.

    Raises: DataError data.no_column.
    """
    check_columns(dataset, [column])
    latest = _table(dataset).read(dataset.version, columns=["_key", column])
    pairs = zip(latest["_key"].to_pylist(), latest[column].to_pylist(), strict=True)
    values = dict(pairs)
    return [_or_none(values.get(key)) for key in keys]


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows_since(dataset: DatasetVersion, version: int, keys: Sequence[str]) -> list[int]:
    """Places of those of the rows `keys` that are not in the table at `version`, or whose input or
    answer was another then. Raises: DataError data.no_such_version.
    """
    now, then = (_cells(dataset, at) for at in (dataset.version, version))
    return [place for place, key in enumerate(keys) if now.get(key) != then.get(key)]


def _cells(dataset: DatasetVersion, version: int) -> dict[str, tuple[Any, ...]]:
    latest = _table(dataset).read(version, columns=["_key", dataset.text, dataset.label])
    names = [n for n in (dataset.text, dataset.label) if n in latest.column_names]
    columns = [latest[name].to_pylist() for name in names]
    return dict(zip(latest["_key"].to_pylist(), zip(*columns, strict=True), strict=True))


def _table(dataset: DatasetVersion) -> DeltaFeatureTable:
    return DeltaFeatureTable(
        dataset.uri, project=dataset.project, key="", text=dataset.text, label=dataset.label
    )
