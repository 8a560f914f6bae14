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
from autoglm.plugins.context import Plugin

if TYPE_CHECKING:
    import pyarrow as pa


class Source(Protocol):
    """Where rows change. Reads only. Re-reading from a position is allowed and gives the same
    events in the same order per key, or later ones.
    """

    name: str

    @property
    def promise(self) -> str:
        """One line, printed at start: what this mode can and cannot see."""
        ...

    def read(self, position: str) -> Iterator[ChangeBatch]:
        """Batches after `position` (`""` = from the beginning) until nothing more is there now.
        Each with events leads to another position: the same one is the same batch come again.

        Raises: SourceError (code says whether missing, locked, or without the column).
        """
        ...


@runtime_checkable
class ListeningSource(Source, Protocol):
    """A source that is told of changes. One thread reads and acknowledges."""

    def follow(self, position: str, *, cancel: threading.Event) -> Iterator[ChangeBatch]:
        """As `read`, then blocks and yields as changes come; ends when cancelled."""
        ...

    def acknowledge(self, position: str) -> None:
        """The broker has stored this batch's position: what lies before will not be asked again."""
        ...


@dataclass(frozen=True, kw_only=True)
class FetchedBatch:
    """Events of one partition at offsets `range.start` … `range.end`, and the source's position: a
    long one (some hold a digest per row) by its SHA-256.
    """

    events: Sequence[ChangeEvent]
    range: OffsetRange
    source: str
    position: str
    traceparent: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Partitions that one member of a group reads, until the group has another generation."""

    generation: int
    partitions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that a broker of somebody's was asked to do, and what it did."""

    name: str
    is_so: bool
    seconds: float
    detail: str


class Broker(Protocol):
    """A keyed, ordered, replayable log: a small subset of Kafka. Appends are atomic with the source
    position; it never drops what a group has not read, never pushes, and knows nothing of tables.

    Its class has `open(config, *, project, state, partitions)`: a new connection to the broker that
    section `streaming.broker` describes, for one thread.
    """

    def append(self, topic: str, batch: ChangeBatch, *, producer: str, epoch: int) -> None:
        """Store events and position in one transaction. A batch at the stored position is ignored.
        Raises: FencedError if `epoch` is older than the producer's newest.
        """
        ...

    def new_epoch(self, topic: str, producer: str) -> int:
        """Take over as `producer`: every earlier epoch is refused from now on."""
        ...

    def position(self, topic: str, producer: str) -> str:
        """Position stored with the producer's last batch, `""` before the first. May wait for what
        a producer has open, so take over first.
        """
        ...

    def num_partitions(self, topic: str) -> int:
        """Fixed for the topic's life; makes the topic. Raises: StorageError
        broker.partitions_changed.
        """
        ...

    def begin_offset(self, topic: str, partition: int) -> int:
        """The oldest that can still be fetched; `end_offset` when there is none."""
        ...

    def end_offset(self, topic: str, partition: int) -> int: ...

    def fetch(
        self, topic: str, partition: int, offset: int, *, max_events: int
    ) -> FetchedBatch | None:
        """At most `max_events` from `offset` on, None if there are none now. Offsets grow and may
        have gaps: go on at `range.end`. Raises: StorageError broker.offset_gone below
        `begin_offset`.
        """
        ...

    def join(self, group: str, topic: str, *, member: str, lease: timedelta) -> Assignment:
        """Become a member for `lease`; every partition of a group belongs to exactly one member.
        May be called again. Partitions may be none yet: `heartbeat` tells when they come.
        """
        ...

    def heartbeat(self, group: str, topic: str, *, member: str) -> Assignment:
        """Renew the lease; who has let his run out is left out from now on. Raises: FencedError
        if that happened to `member`: it drops what it holds and joins again.
        """
        ...

    def leave(self, group: str, topic: str, *, member: str) -> None: ...

    def hint(
        self, group: str, offsets: Mapping[Partition, int], *, generation: int | None = None
    ) -> None:
        """Tell how far a group is, for lag and retention only: the truth is in the table's commit.
        Raises: FencedError if `generation` is not the group's newest.
        """
        ...

    def hints(self, group: str, topic: str) -> Mapping[int, int]:
        """Partition → offset last told; those of which nothing was told are missing."""
        ...

    def retain(self, topic: str) -> int:
        """Drop whole batches that every group has, by its hints; says how many events went."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Processed:
    rows: Sequence[ChangeEvent]
    dead: Sequence[DeadLetter]


class Processor(Protocol):
    """Pure: same events in, same rows out; may be called twice for the same events. Rows and dead
    letters together are as many as the events, unless its class says `changes_number = True`.
    """

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
        """Write rows and offsets in one commit and return its version. Rows that the table cannot
        hold are dead letters of it; a table that makes some says how many as `num_unfit`.

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


class ConfigCentre(Protocol):
    """A remote place that says config values. Never asked for more than the whole tree."""

    def load(self) -> tuple[Mapping[str, Any], str]:
        """The tree (maps, or dotted names) and its revision. Raises: ConfigError."""
        ...

    def watch(self, revision: str) -> Iterator[str]:
        """Yields when something changed after `revision`, until `close`. Raises: ConfigError."""
        ...

    def close(self) -> None: ...


class Attention(Protocol):
    """An attention function as transformers calls it: (module, query, key, value, mask, …) →
    (output (batch, length, heads, size), weights or None). Grouped heads come as they are: key and
    value may have fewer heads than query. Its other parameters with a default are its options.

    The mask is boolean (batch, 1, query, key), True may be seen, or None where all may be. One that
    names `is_causal` may get None where only the future is hidden. Attributes, all optional:
    `mask_function` makes another mask; `everything` maps options to the values with which it drops
    nothing and must equal dense attention (without it: as it stands); `is_sparse = True` says that
    it never equals dense attention, then only its use of mask and position_bias is proven.
    """

    def __call__(
        self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any
    ) -> tuple[Any, Any]: ...


class OptimizerFactory(Protocol):
    """Makes a torch optimizer of parameter groups; `lr` is the peak rate."""

    def __call__(self, groups: Sequence[Mapping[str, Any]], *, lr: float) -> Any: ...


class Schedule(Protocol):
    """The learning rate at an optimizer step (counted from 0), as a factor of the peak."""

    def __call__(self, step: int, num_steps: int) -> float: ...


class Callback(Protocol):
    """Observes training; must not change state. `event` is a document with `kind`."""

    def on_event(self, event: Mapping[str, Any]) -> None: ...


class Algorithm(Protocol):
    """May change the state of training: called at its moments with the trainer's state."""

    def apply(self, moment: str, state: Any) -> None: ...


class SamplerFactory(Protocol):
    """Makes an Optuna sampler from a seed: for each trial a new one, with a seed of its own. One
    that has a parameter `study_seed` is also given the one that stays.
    """

    def __call__(self, seed: int) -> Any: ...


class SpaceMaker(Protocol):
    """Makes a search space: config key → dimension, in any spelling. A mapping may stand for it.

    Asked once per run, whose record keeps what it said.
    """

    def __call__(self) -> Mapping[str, Any]: ...


class BackboneLoader(Protocol):
    """A reference (what stands after `NAME:`) → a Hugging Face folder on this machine."""

    def __call__(self, reference: str) -> Path: ...


class Converter(Protocol):
    """Weights that a package ships in a form of its own → a Hugging Face folder.

    Found by entry point only: it converts in a process of its own, once per file and `version`,
    which is raised whenever other bytes come out.
    """

    version: int

    def recognises(self, file: Path, head: bytes) -> bool:
        """By name and first 16 bytes. Asked for every file of a package: loads nothing."""
        ...

    def convert(self, source: Path, folder: Path) -> Mapping[str, Any]:
        """Fill the empty `folder`; returns facts for its autoglm.json (`pooling`, `prefix`).

        Raises: ModelError model.damaged, model.unknown_format, model.missing_extra.
        """
        ...


class HeadFactory(Protocol):
    """Makes the head: a torch module from (batch, hidden) to (batch, labels)."""

    def __call__(self, hidden_size: int, num_labels: int) -> Any: ...


class Task(Protocol):
    """What is learnt: the loss of a batch, and how outputs become answers, one per row."""

    def loss(self, outputs: Any, batch: Any) -> Any: ...
    def predict(self, outputs: Any, batch: Any) -> Sequence[Any]: ...


class Notifier(Protocol):
    """Tells people. `alarm` is a document with `code`, `message`, `project`, `trace_id`."""

    def notify(self, alarm: Mapping[str, Any]) -> None: ...


class Renderer(Protocol):
    """A release policy as another system's files: name → text."""

    def render(self, policy: Mapping[str, Any]) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """`needs`: members that a part (or what its class makes) must have; none: it is called."""

    what: str
    port: type[Any] | None
    needs: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "source": Kind(
        "a class with `read` (port Source), and `follow` and `acknowledge` where it listens",
        Source,
        ("read",),
    ),
    "broker": Kind(
        "a class with `open`, `append`, `fetch`, `join` and `hint` (port Broker)",
        Broker,
        ("open", "append", "fetch", "join", "heartbeat", "leave", "hint", "hints", "retain"),
    ),
    "table": Kind(
        "a class with `commit` and `read` (port FeatureTable)", FeatureTable, ("commit", "read")
    ),
    "processor": Kind("a class with `process` (port Processor)", Processor, ("process",)),
    "backbone": Kind("a function reference → folder", BackboneLoader),
    "converter": Kind(
        "a class with `version`, `recognises` and `convert` (port Converter)",
        Converter,
        ("version", "recognises", "convert"),
    ),
    "head": Kind("a function (hidden_size, num_labels) → torch module", HeadFactory),
    "task": Kind("a class with `loss` and `predict`", Task, ("loss", "predict")),
    "attention": Kind("a function as transformers calls attention", Attention),
    "optimizer": Kind("a function (groups, lr) → torch optimizer", OptimizerFactory),
    "schedule": Kind("a function (step, num_steps) → factor", Schedule),
    "callback": Kind("a class with `on_event`", Callback, ("on_event",)),
    "algorithm": Kind("a class with `apply`", Algorithm, ("apply",)),
    "evaluator": Kind("a class with `evaluate` (port Evaluator)", Evaluator, ("evaluate",)),
    "sampler": Kind(
        "a function seed → Optuna sampler, or Optuna's own class or object", SamplerFactory
    ),
    "space": Kind("a map of dimensions, or a function that gives one", SpaceMaker),
    "metric_provider": Kind(
        "a class with `measure` (port MetricProvider)", MetricProvider, ("measure",)
    ),
    "config_centre": Kind(
        "a class with `load`, `watch` and `close`", ConfigCentre, ("load", "watch", "close")
    ),
    "notifier": Kind("a class with `notify`", Notifier, ("notify",)),
    "renderer": Kind("a class with `render`", Renderer, ("render",)),
    "step": Kind(
        "an object with `name`, `kind`, `api_version` and `execute(context)`", Plugin, ("execute",)
    ),
    "section": Kind("a frozen dataclass: a config section", None, ("__dataclass_fields__",)),
}
