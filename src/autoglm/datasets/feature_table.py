"""The feature table: an append-only Delta log of rows whose commits carry the broker's offsets."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from autoglm import fail_points
from autoglm.contracts.change_event import ChangeEvent, DeadLetter, OffsetRange, Partition
from autoglm.datasets.table_schema import (
    SYSTEM_COLUMNS,
    SYSTEM_SCHEMA,
    as_numbers,
    to_arrow,
    widened,
    without_unfit,
)
from autoglm.datasets.table_store import open_store
from autoglm.errors import AutoGLMError, DataError, FencedError, StorageError
from autoglm.observability.logging import get_logger

# Latency grows with the number of live files (16 ms → 84 ms over 1,000 commits).
COMMITS_PER_COMPACTION = 100
# What a compaction makes: files of about so many bytes, in groups of so many rows.
COMPACTED_BYTES, COMPACTED_ROWS = 64 << 20, 2**16
WIDENED, DIGEST = "widened", "sha256:"
STATS_COLUMNS = ("_version", "_partition", "_offset", "_committed_at")
DEAD_COLUMNS = ("_key", "_raw", "_cause", "_code", "_partition", "_offset", "_trace")

_before_commit = fail_points.declare(
    "hop4.before_commit", "rows are ready, the table has neither them nor their offsets"
)
_after_commit = fail_points.declare(
    "hop4.after_commit", "rows and offsets are in the table, the consumer does not know"
)
_before_compaction = fail_points.declare("hop6.before_compaction", "nothing is rewritten")
_after_compaction = fail_points.declare("hop6.after_compaction", "files are rewritten, nobody told")


@dataclass(frozen=True, kw_only=True, slots=True)
class TableVersion:
    """One commit of rows: how many were written, dead letters among them counted apart."""

    version: int
    at: datetime
    rows: int
    dead: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What the newest commit of rows at a version says of itself; a position by its digest."""

    at: datetime
    positions: Mapping[str, str]
    traceparent: str


class DeltaFeatureTable:
    """Port `FeatureTable` in a folder, or at the address of an object store (`connect_table`); the
    table is made by the first commit.

    `key`, `text` and `label` name the user's columns. Reading needs none of them.
    """

    def __init__(self, place: Path | str, *, project: str, key: str, text: str, label: str) -> None:
        self.store = open_store(place)
        self.project = project
        self.key = key
        self.text = text
        self.label = label
        self.num_unfit = 0  # of the last commit's rows, those that became dead letters in it
        self._handle: DeltaTable | None = None
        self._positions: dict[str, str] | None = None
        self._compaction: threading.Thread | None = None

    @property
    def table_id(self) -> str:
        return self.project

    @property
    def version(self) -> int:
        """Number of the newest commit, -1 without a table. Raises: StorageError."""
        with self.in_our_words():
            return self.store.newest()

    @property
    def uri(self) -> str:
        """What a reader of its dataset versions opens."""
        return self.store.uri

    def open(self, version: int | None = None) -> DeltaTable:
        """A handle of the caller's own, at `version` or the newest. Raises: StorageError."""
        with self.in_our_words():
            return self.store.open(version)

    def next_offset(self, partition: Partition) -> int:
        handle = self._refreshed()
        if handle is None:
            return 0
        return int(handle.transaction_version(partition.app_id(self.table_id)) or 0)

    def commit(
        self,
        rows: Sequence[ChangeEvent],
        dead: Sequence[DeadLetter],
        offsets: Mapping[Partition, OffsetRange],
        *,
        positions: Mapping[str, str],
        traceparent: str,
    ) -> int:
        """See port. Rows that the table cannot hold are dead letters of this commit. Raises:
        FencedError, StorageError storage.full. After any of them nothing was written; after
        storage.unreachable the offsets say whether the store took the commit.
        """
        handle = self._handle or self._refreshed() or self._create()
        self._widen(handle, rows)  # moves the handle, so before what is checked on it
        transactions = self._transactions(handle, offsets)
        known = pa.schema(handle.schema())
        rows, unfit = without_unfit(rows, known, text=self.text, label=self.label)
        dead = [*dead, *unfit]
        data = to_arrow(
            rows,
            dead,
            known,
            text=self.text,
            now=datetime.now(UTC),
        )
        all_positions = {**self._known_positions(handle), **_named(positions)}
        facts = {
            "positions": json.dumps(all_positions),
            "traceparent": traceparent,
            "rows": str(len(rows)),
            "dead": str(len(dead)),
        }
        with self.in_our_words():
            _before_commit()
            with self.store.turn():
                write_deltalake(
                    handle,
                    data,
                    mode="append",
                    schema_mode="merge" if set(data.schema.names) - set(known.names) else None,
                    # A rebase on a newer version keeps the check: the same application id refuses.
                    commit_properties=CommitProperties(facts, app_transactions=transactions),
                )
        _after_commit()
        self._positions, self.num_unfit = all_positions, len(unfit)
        version = int(handle.version())
        if version % COMMITS_PER_COMPACTION == COMMITS_PER_COMPACTION - 1:
            self._compact_behind()
        return version

    def columns(self, version: int | None = None) -> list[str]:
        """The user's columns at `version`, by name."""
        handle = self._at(version)
        names = [] if handle is None else pa.schema(handle.schema()).names
        return sorted(set(names) - SYSTEM_COLUMNS)

    def read(self, version: int | None = None, *, columns: Sequence[str] | None = None) -> pa.Table:
        """The latest row per `_key` at `version`, sorted by `_key`; deleted keys are left out.

        Raises: DataError data.no_such_version, data.version_gone.
        """
        handle = self._at(version)
        if handle is None:
            return SYSTEM_SCHEMA.empty_table()
        known = set(pa.schema(handle.schema()).names)
        wanted = None if columns is None else [name for name in columns if name in known]
        order = ["_key", "_version", "_partition", "_offset"]
        needed = None if wanted is None else list(dict.fromkeys([*wanted, *order, "_op"]))
        log = self._scanned(handle, needed, pc.field("_op") != "dead")
        if log.num_rows == 0:
            return log if wanted is None else log.select(wanted)
        sorted_rows = pc.sort_indices(log, sort_keys=[(name, "ascending") for name in order])
        keys = log["_key"].combine_chunks().take(sorted_rows)
        is_last = pa.concat_arrays([pc.not_equal(keys[:-1], keys[1:]), pa.array([True])])
        latest = log.take(sorted_rows.filter(is_last))
        latest = latest.filter(pc.equal(latest["_op"], "upsert"))
        return latest if wanted is None else latest.select(wanted)

    def changes_of(self, keys: Sequence[str]) -> pa.Table:
        """Every entry of the log under `keys`, dead letters too, in no order."""
        handle = self._refreshed()
        if handle is None:
            return SYSTEM_SCHEMA.empty_table()
        # The cast keeps pyarrow from comparing it with a file's own bounds, which deltalake gives
        # in another type of text than the column's (`string_view`) and pyarrow then refuses.
        is_one = pc.field("_key").cast(pa.string()).isin(pa.array(keys, pa.string()))
        return self._scanned(handle, None, is_one)

    def dead(self, version: int | None = None) -> pa.Table:
        """Dead letters up to `version`: key, raw, cause, code, partition, offset, trace."""
        handle = self._at(version)
        if handle is None:
            return SYSTEM_SCHEMA.empty_table().select(DEAD_COLUMNS)
        return self._scanned(handle, list(DEAD_COLUMNS), pc.field("_op") == "dead")

    def dead_events(self) -> pa.Table:
        """Dead letters with what is needed to make an event of each again."""
        handle = self._refreshed()
        columns = [*DEAD_COLUMNS, "_version", "_source", "_committed_at"]
        if handle is None:
            return SYSTEM_SCHEMA.empty_table().select(columns)
        return self._scanned(handle, columns, pc.field("_op") == "dead")

    def newest_versions(self, keys: Sequence[str]) -> dict[str, int]:
        """Key → version of its newest row or delete; keys that have neither are missing."""
        handle = self._refreshed()
        if handle is None or not keys:
            return {}
        is_one = pc.field("_key").cast(pa.string()).isin(pa.array(keys))  # cast: as in `changes_of`
        found = self._scanned(handle, ["_key", "_version"], (pc.field("_op") != "dead") & is_one)
        newest = found.group_by("_key").aggregate([("_version", "max")])
        pairs = zip(newest["_key"].to_pylist(), newest["_version_max"].to_pylist(), strict=True)
        return dict(pairs)

    def newest_version(self) -> int:
        """The highest `_version` of any entry, -1 without one. Read from Delta's own statistics;
        files that another program wrote without them are looked into.
        """
        handle = self._refreshed()
        if handle is None:
            return -1
        with self.in_our_words():
            files = pa.table(handle.get_add_actions(flatten=True))
        if files.num_rows == 0:
            return -1
        name = "max._version"
        if name in files.schema.names and files[name].null_count == 0:
            return int(pc.max(files[name]).as_py())
        found = pc.max(self._scanned(handle, ["_version"], None)["_version"]).as_py()
        return -1 if found is None else int(found)

    def num_dead(self, version: int | None = None) -> int:
        handle = self._at(version)
        if handle is None:
            return 0
        with self.in_our_words():
            dataset = self.store.rows_of(handle)
            return int(dataset.count_rows(filter=pc.field("_op") == "dead"))

    def versions(self) -> list[TableVersion]:
        """Commits that brought rows, newest first."""
        handle = self._refreshed()
        if handle is None:
            return []
        return [
            TableVersion(
                version=entry["version"],
                at=_moment(entry["timestamp"]),
                rows=int(entry["rows"]),
                dead=int(entry["dead"]),
            )
            for entry in self._history(handle, None)
            if "rows" in entry
        ]

    def provenance(self, version: int | None = None) -> Provenance | None:
        """Of the newest commit of rows at `version`; None when there is none."""
        handle = self._at(version)
        entry = None if handle is None else self._newest_rows(handle)
        if entry is None:
            return None
        return Provenance(
            at=_moment(entry["timestamp"]),
            positions=_named(json.loads(entry["positions"])),
            traceparent=entry["traceparent"],
        )

    def pin(self, version: int, by: str) -> None:
        """Keep the files of `version` as long as `by` needs them. Idempotent."""
        self._at(version)
        with self.in_our_words():
            self.store.pin(version, by)

    def unpin(self, by: str) -> None:
        """`by` needs no version any more. Idempotent."""
        with self.in_our_words():
            self.store.unpin(by)

    def pins(self) -> dict[int, list[str]]:
        """Version → who needs it."""
        with self.in_our_words():
            return self.store.pins()

    def _widen(self, handle: DeltaTable, rows: Sequence[ChangeEvent]) -> None:
        """Columns of whole numbers become columns of numbers where `rows` need it: the log is
        written anew as a commit of its own, since Delta's readers do not widen. Costs one copy of
        the log in memory. Raises: FencedError, StorageError.
        """
        own = (self.text, self.label)
        if not widened(rows, pa.schema(handle.schema()), but=own):
            return
        with self.in_our_words(), self.store.turn(alone=True):
            handle.update_incremental()
            names = widened(rows, pa.schema(handle.schema()), but=own)
            log = self.store.rows_of(handle).to_table()
            names = [name for name in names if as_numbers(log, [name]) is not None]
            if not names:
                return
            # No second try: on top of a compaction, deltalake's would double every row.
            facts = CommitProperties({WIDENED: json.dumps(names)}, max_commit_retries=0)
            write_deltalake(
                handle,
                as_numbers(log, names),
                mode="overwrite",
                schema_mode="overwrite",
                commit_properties=facts,
            )
        get_logger(project=self.project).info("columns hold all numbers now", columns=names)

    def _scanned(self, handle: DeltaTable, columns: Sequence[str] | None, only: Any) -> pa.Table:
        """Raises: DataError data.version_gone, StorageError."""
        with self.in_our_words():
            try:
                return self.store.rows_of(handle).to_table(columns=columns, filter=only)
            except FileNotFoundError as error:
                raise DataError(
                    f"version {handle.version()} of {self.uri} is not kept any more: `autoglm gc`"
                    " deleted its files, since nobody had pinned it or a row was erased behind it.",
                    code="data.version_gone",
                    next_step="Take a newer version: `autoglm data versions`.",
                ) from error

    def _history(self, handle: DeltaTable, limit: int | None) -> list[dict[str, Any]]:
        with self.in_our_words():
            return list(handle.history(limit))

    def _newest_rows(self, handle: DeltaTable) -> dict[str, Any] | None:
        """The newest log entry that a `commit` wrote: creation and compaction carry no facts."""
        for limit in (4, None):
            for entry in self._history(handle, limit):
                if "positions" in entry:
                    return dict(entry)
        return None

    def _transactions(
        self, handle: DeltaTable, offsets: Mapping[Partition, OffsetRange]
    ) -> list[Transaction]:
        # deltalake records an application's version without comparing it; that it must follow
        # the stored one is ours to check, on the snapshot that the commit is made from.
        transactions = []
        for partition, read in offsets.items():
            app_id = partition.app_id(self.table_id)
            stored = int(handle.transaction_version(app_id) or 0)
            if stored != read.start:
                self._handle = None
                raise FencedError(
                    f"the table has {app_id} up to {stored}, this commit begins at {read.start}.",
                    next_step="Read the offsets again.",
                )
            transactions.append(Transaction(app_id, read.end))
        return transactions

    def _known_positions(self, handle: DeltaTable) -> dict[str, str]:
        if self._positions is None:
            entry = self._newest_rows(handle)
            self._positions = _named(json.loads(entry["positions"])) if entry else {}
        return self._positions

    def _refreshed(self) -> DeltaTable | None:
        """A handle at the newest version, None without a table."""
        newest = self.version
        if newest < 0:
            self._handle = self._positions = None
            return None
        with self.in_our_words():
            if self._handle is None:
                self._handle, self._positions = self.store.open(), None
            elif self._handle.version() != newest:
                self._handle.update_incremental()
                self._positions = None
        return self._handle

    def _at(self, version: int | None) -> DeltaTable | None:
        if version is None:
            return self._refreshed()
        newest = self.version
        if not 0 <= version <= newest:
            raise DataError(
                f"{self.uri} has no version {version}; the newest is {newest}.",
                code="data.no_such_version",
            )
        return self.open(version)

    def _create(self) -> DeltaTable:
        with self.in_our_words():
            self.store.prepare()
        try:
            self._handle = self.store.create(
                schema=SYSTEM_SCHEMA,
                partition_by=["_op"],
                configuration={
                    # Models name the version that they learnt from; its log entry must stay.
                    "delta.logRetentionDuration": "interval 3650 days",
                    # The log's own bounds would quote keys and texts, which outlive an erasure.
                    "delta.dataSkippingStatsColumns": ",".join(STATS_COLUMNS),
                },
            )
        except Exception as error:
            if self.version < 0:
                raise self._translated(error) from error
            self._handle = self.open()  # another process was first
        return self._handle

    def _compact_behind(self) -> None:
        """In a thread: appends go on meanwhile, since a compaction changes no rows and an append
        reads none. One at a time; a process waits for its own at its end.
        """
        if self._compaction is not None and self._compaction.is_alive():
            return
        self._compaction = threading.Thread(target=self._compact, name="compaction")
        self._compaction.start()

    def _compact(self) -> None:
        try:
            with self.store.turn():
                _before_compaction()
                # By default a writer per core holds a million rows. Without a codec there is none.
                self.store.open().optimize.compact(
                    target_size=COMPACTED_BYTES,
                    max_concurrent_tasks=1,
                    writer_properties=WriterProperties(
                        max_row_group_size=COMPACTED_ROWS, compression="ZSTD"
                    ),
                )
                _after_compaction()
        except Exception as error:
            # Deltalake raises plain `Exception` too. The table is as it was; the next one does it.
            get_logger(project=self.project).warning(
                "compaction postponed", cause=str(self._translated(error))
            )

    @contextmanager
    def in_our_words(self) -> Iterator[None]:
        """What fails inside is raised as an error of ours, and the handle is opened anew."""
        try:
            yield
        except AutoGLMError:
            raise
        except Exception as error:
            self._handle = self._positions = None
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> StorageError:
        """Deltalake raises plain `Exception` for part of what goes wrong below it."""
        if isinstance(error, CommitFailedError):
            return FencedError(
                f"{self.uri}: somebody committed in between ({error}).",
                next_step="Read the offsets again.",
            )
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return StorageError(
                f"{self.uri}: no space left; nothing of this commit is in the table.",
                code="storage.full",
                next_step="Free disk space, then run again: it goes on where it stood.",
            )
        if (known := self.store.translated(error)) is not None:
            return known
        if isinstance(error, TableNotFoundError):
            return StorageError(f"{self.uri} is not a Delta table.", code="storage.unusable")
        return StorageError(
            f"{self.uri} cannot be used: {error}.",
            code="storage.unusable",
            next_step="Check the folder's permissions.",
        )


def _named(positions: Mapping[str, str]) -> dict[str, str]:
    """Each by its digest: some hold every key of their source, and the log outlives an erasure.
    The broker has them whole. A digest stays as it is.
    """
    return {
        source: position if position.startswith(DIGEST) else DIGEST + _sha256(position)
        for source, position in positions.items()
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
