"""What changed between two versions of the feature table, by key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoglm.datasets.feature_table import DeltaFeatureTable


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Keys, sorted. A row that is `relabelled` kept its input; one that is `changed` did not.
    `labels` counts rows by label, before and after (None: those that wait for one).
    """

    before: int
    after: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    relabelled: tuple[str, ...]
    labels: Mapping[str | None, tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        return not (self.added or self.removed or self.changed or self.relabelled)


def compare(table: DeltaFeatureTable, before: int, after: int) -> Difference:
    """Raises: DataError data.no_such_version, data.version_gone."""
    old, new = _cells(table, before), _cells(table, after)
    both = sorted(old.keys() & new.keys())
    changed = tuple(key for key in both if old[key][0] != new[key][0])
    relabelled = tuple(
        key for key in both if old[key][0] == new[key][0] and old[key][1] != new[key][1]
    )
    counts = [Counter(_label(label) for _, label in cells.values()) for cells in (old, new)]
    names = sorted({*counts[0], *counts[1]}, key=lambda name: (name is None, name or ""))
    return Difference(
        before=before,
        after=after,
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=changed,
        relabelled=relabelled,
        labels={name: (counts[0][name], counts[1][name]) for name in names},
    )


def _cells(table: DeltaFeatureTable, version: int) -> dict[str, tuple[Any, Any]]:
    latest = table.read(version, columns=["_key", table.text, table.label])
    nothing = [None] * latest.num_rows
    columns = [
        latest[name].to_pylist() if name in latest.column_names else nothing
        for name in (table.text, table.label)
    ]
    return dict(zip(latest["_key"].to_pylist(), zip(*columns, strict=True), strict=True))


def _label(value: Any) -> str | None:
    return None if value is None or not str(value).strip() else str(value)
