"""The ports. One page; each says what it promises and what it does not do. They may grow, their
meaning must not change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from autoglm.contracts.change_event import (
    ChangeBatch,
    ChangeEvent,
    DeadLetter,
    OffsetRange,
    Partition,
)
from autoglm.contracts.evaluation_report import Score
from autoglm.contracts.measurement import Block, Measurement
from autoglm.contracts.model_version import Lineage, ModelVersion
from autoglm.contracts.stage_chain import Cost, Progress, StageChain

if TYPE_CHECKING:
    import pyarrow as pa

API_VERSION = 1


class Source(Protocol):
    """Where rows change. Reads only. Re-reading from a position is allowed and gives the same
    events in the same order per key, or later ones.
    """

    name: str
    promise: str  # one line, printed at start: what this mode can and cannot see

    def read(self, position: str) -> Iterator[ChangeBatch]:
        """Batches after `position` (`""` = from the beginning) until nothing more is there now.

        Raises: SourceError (code says whether missing, locked, or without the column).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FetchedBatch:
    """Events of one partition at offsets `range.start` … `range.end`, and the source's position."""

    events: Sequence[ChangeEvent]
    range: OffsetRange
    source: str
    position: str
    traceparent: str


class Broker(Protocol):
    """A keyed, ordered, replayable log. Appends are atomic with the source position; it never
    drops what was acknowledged and never pushes.
    """

    def append(self, topic: str, batch: ChangeBatch, *, producer: str, epoch: int) -> None:
        """Store events and position in one transaction. A batch at or before the stored position
        is ignored. Raises: FencedError if `epoch` is older than the producer's newest.
        """
        ...

    def new_epoch(self, topic: str, producer: str) -> int: ...
    def position(self, topic: str, producer: str) -> str: ...
    def num_partitions(self, topic: str) -> int: ...
    def end_offset(self, topic: str, partition: int) -> int: ...

    def fetch(
        self, topic: str, partition: int, offset: int, *, max_events: int
    ) -> FetchedBatch | None:
        """Events from `offset` on, None if there are none. Does not block."""
        ...

    def hint(self, group: str, offsets: Mapping[Partition, int]) -> None:
        """Tell how far a group is, for lag figures only; the truth is in the table's commit."""
        ...


@dataclass(frozen=True, kw_only=True)
class Processed:
    rows: Sequence[ChangeEvent]
    dead: Sequence[DeadLetter]


class Processor(Protocol):
    """Pure: same events in, same rows out; may be called twice for the same events."""

    def process(self, batch: Sequence[ChangeEvent]) -> Processed: ...


class FeatureTable(Protocol):
    """Append-only log of rows, latest row per key at a version. Commits offsets with rows."""

    @property
    def version(self) -> int:
        """The newest commit's, -1 without a table. Cheap enough to ask every second."""
        ...

    def next_offset(self, partition: Partition) -> int: ...

    def commit(
        self,
        rows: Sequence[ChangeEvent],
        dead: Sequence[DeadLetter],
        offsets: Mapping[Partition, OffsetRange],
        *,
        positions: Mapping[str, str],
        traceparent: str,
    ) -> int:
        """Write rows and offsets in one commit and return its version.

        Raises: FencedError unless each stored offset equals its range's start.
        """
        ...

    def read(self, version: int | None = None) -> pa.Table: ...
    def pin(self, version: int, by: str) -> None: ...


class Evaluator(Protocol):
    """Turns truth and prediction into a score. Knows nothing of who asks: search, gate, rollout."""

    name: str
    greater_is_better: bool

    def evaluate(
        self,
        truth: Sequence[Any],
        prediction: Sequence[Any],
        rows: Sequence[Mapping[str, Any]] = (),
    ) -> Score: ...


class ModelRegistry(Protocol):
    """Immutable versions and movable aliases (`candidate`, `stable`, `previous`)."""

    def add(
        self,
        folder: Path,
        lineage: Lineage,
        *,
        labels: Sequence[str],
        opens_with: str,
        runtime: str,
    ) -> ModelVersion:
        """Idempotent: the same bytes are the same version."""
        ...

    def move(self, alias: str, to: str, *, expect: str) -> None:
        """Compare-and-set. Raises: ConflictError when the alias is not at `expect`."""
        ...

    def resolve(self, alias: str) -> ModelVersion | None: ...


class MetricProvider(Protocol):
    """Where a gate reads its numbers. Measures, never judges. Safe to call twice."""

    def measure(self, query: str, *, window: timedelta) -> Measurement | Block: ...


@runtime_checkable
class TrialRunner(Protocol):
    """The seam between search and training. `advance` starts from the deepest stored stage and is
    idempotent: same chain and step, same bytes.
    """

    def plan(self, params: Mapping[str, Any]) -> StageChain: ...
    def cost(self, chain: StageChain) -> Cost: ...
    def advance(self, chain: StageChain, to_step: int, *, cancel: threading.Event) -> Progress: ...
