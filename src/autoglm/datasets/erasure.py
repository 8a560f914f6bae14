"""Taking a row out of the feature table for good, and the files that no version needs any more.

erase            the log is rewritten without the row, dead letters of it too; offsets stay
collect_garbage  files that neither the newest version nor a kept one reads are deleted

Between the two, older versions still hold the row. After an erasure no version before it is kept,
whoever pinned it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from deltalake import CommitProperties

from autoglm.datasets.feature_table import DeltaFeatureTable
from autoglm.errors import DataError, FencedError

ERASURE = "erasure"


@dataclass(frozen=True, kw_only=True, slots=True)
class Erased:
    """`version` is the table's first without the row; `changes` of it went, dead letters too."""

    version: int
    changes: int


def erase(table: DeltaFeatureTable, key: str) -> Erased:
    """Raises: DataError data.no_such_row; FencedError when somebody commits at the same time."""
    if table.version < 0:
        raise _no_row(table, key)
    handle = table.open()
    # The entry does not name the row: a log that did would keep what is to be forgotten.
    facts = CommitProperties({ERASURE: "1"})
    quoted = key.replace("'", "''")
    try:
        with table.in_our_words():
            done = handle.delete(f"_key = '{quoted}'", commit_properties=facts)
    except FencedError as error:
        raise FencedError(
            error.message, next_step="Stop `autoglm up`, then erase again."
        ) from error
    if not done["num_deleted_rows"]:
        raise _no_row(table, key)
    return Erased(version=int(handle.version()), changes=int(done["num_deleted_rows"]))


def last_erasure(table: DeltaFeatureTable) -> int:
    """The version that the newest erasure made, -1 without one. Versions before it are not kept."""
    if table.version < 0:
        return -1
    handle = table.open()
    with table.in_our_words():
        history = handle.history()
    return max((int(entry["version"]) for entry in history if ERASURE in entry), default=-1)


def collect_garbage(
    table: DeltaFeatureTable, keep: Iterable[int], *, is_dry_run: bool = False
) -> list[str]:
    """Delete files that no version of `keep`, no pinned one and not the newest one reads; their
    names. Nobody may write meanwhile: a file that is being written looks unused.
    """
    if table.version < 0:
        return []
    handle, oldest = table.open(), last_erasure(table)
    wanted = {*keep, *table.pins()}
    kept = sorted(v for v in wanted if oldest <= v < table.version)
    # `full`: what a killed writer left behind goes too.
    with table.in_our_words():
        unused = handle.vacuum(
            retention_hours=0, enforce_retention_duration=False, dry_run=is_dry_run,
            keep_versions=kept or None, full=True,
        )  # fmt: skip
    return sorted(unused)


def _no_row(table: DeltaFeatureTable, key: str) -> DataError:
    return DataError(
        f"the feature table has no row with the key {json.dumps(key, ensure_ascii=False)}.",
        code="data.no_such_row",
        next_step=f"Keys are values of the column {table.key!r}, as text.",
    )
