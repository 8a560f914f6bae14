"""source ─► collector ─► broker ─► processor ─► feature table ─► dataset version"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoglm.clock import Clock
from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.task import TASKS
from autoglm.errors import ConfigError, DataError, StorageError
from autoglm.evaluation.slices import read_slices
from autoglm.observability.logging import get_logger
from autoglm.plugins import project_files, registry
from autoglm.plugins.kinds import Broker, Source
from autoglm.project import Project
from autoglm.settings import Settings, inject

if TYPE_CHECKING:
    from autoglm.streaming.consumer_group import Consumer

HOLD_SECONDS = 0.2

GROUP = "feature-table"
OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What one trip to the source brought: events read, rows stored, events that became dead."""

    events: int
    rows: int
    dead: int


def collect_changes(project: Project, cancel: threading.Event, on_event: OnEvent) -> Collected:
    """Bring every change that the source shows now into the feature table, each exactly once.

    Alone: who calls this owns the project, and nobody else processes.
    """
    with closing(open_broker(project)) as broker:
        consumer = open_consumer(project, broker, cancel)
        # What an earlier process left in the broker goes first: its source may be gone by now.
        left = consumer.drain(cancel)
        drained = [left]

        def make_room(_events: int) -> None:
            if waiting_events(project, broker) > project.settings.streaming.max_backlog:
                drained.append(consumer.drain(cancel))

        events = collect_once(project, broker, cancel, on_event, on_batch=make_room)
        drained.append(consumer.drain(cancel))
    result = Collected(
        events=events, rows=sum(d.rows for d in drained), dead=sum(d.dead for d in drained)
    )
    on_event(
        {"kind": "collected", "events": result.events, "rows": result.rows, "dead": result.dead}
    )
    return result


def collect_once(
    project: Project,
    broker: Broker,
    cancel: threading.Event,
    on_event: OnEvent,
    *,
    on_batch: Callable[[int], None] | None = None,
    follow: bool = False,
    floor: TableFloor | None = None,
) -> int:
    """Source ─► broker: what it shows now, and with `follow`, where the source can, what it will
    show until cancelled. Says how many events there were. `floor` is kept by who calls again: the
    table is asked once. Raises: StorageError broker.offset_gone for a log that is not the table's,
    storage.unreachable while nobody can tell; SourceError.
    """
    from autoglm.streaming.collector import collect

    source = open_source(project)
    on_event({"kind": "source", "promise": source.promise})
    topic = topic_of(project)
    known = floor or TableFloor(project)
    found = collect(
        source,
        broker,
        topic=topic,
        cancel=cancel,
        on_batch=on_batch,
        newest_of=lambda position: known.newest(broker, position),
        follow=follow,
    )
    return found.events


class TableFloor:
    """The highest version that anybody gave before this process did. The table is asked before the
    first event, and then no more: a collector that runs goes on while the table's store is away.
    """

    def __init__(self, project: Project) -> None:
        self._project, self._known = project, -1
        self._has_asked = False

    def newest(self, broker: Broker, position: str) -> int:
        """`position` is the source's in the broker; of a log without one the table is asked anew.

        Raises: StorageError. Without the table's answer nothing may be appended: neither whether
        the log is the table's is known then, nor above which versions the source has to give.
        """
        if not self._has_asked or not position:
            try:
                self._known = newest_version(self._project, broker)
            except StorageError as error:
                get_logger().warning(
                    "collector waits for the feature table", error_code=error.code,
                    cause=error.message,
                )  # fmt: skip
                raise
            self._has_asked = True
        return self._known


def newest_version(project: Project, broker: Broker) -> int:
    """The highest version in the table and in what waits for it, -1 without any.

    Raises: StorageError broker.offset_gone.
    """
    from autoglm.streaming.consumer_group import seek
    from autoglm.streaming.version_floor import newest_waiting

    table, topic = project.table(), topic_of(project)
    # Also refuses a new log in place of the table's: once filled it would look like the old one,
    # and the changes at the offsets that the table has would be passed by.
    numbers = range(broker.num_partitions(topic))
    offsets = seek(broker, table, group=GROUP, topic=topic, numbers=numbers)
    return max(newest_waiting(broker, offsets), table.newest_version())


def hold_back(project: Project, broker: Broker, cancel: threading.Event, clock: Clock) -> None:
    """Block while the group is more than `streaming.max_backlog` behind: a collector that calls
    this after each batch stops reading, and nothing is dropped.
    """
    is_told = False
    while not cancel.is_set():
        waiting = waiting_events(project, broker)
        if waiting <= project.settings.streaming.max_backlog:
            return
        if not is_told:
            get_logger().warning("collector waits for the processors", backlog=waiting)
            is_told = True
        clock.wait(cancel, HOLD_SECONDS)


def refuse_full(project: Project, broker: Broker) -> None:
    """For a collector that nobody processes behind. Raises: StorageError broker.full; what was
    appended stays, and the next call goes on behind it.
    """
    waiting, limit = waiting_events(project, broker), project.settings.streaming.max_backlog
    if waiting > limit:
        raise StorageError(
            f"{waiting:,} events wait in the broker; streaming.max_backlog is {limit:,}.",
            code="broker.full",
            next_step="Let `autoglm process` take them into the table, then collect again.",
        )


def waiting_events(project: Project, broker: Broker) -> int:
    """Events that the broker holds and the table does not."""
    from autoglm.streaming.figures import backlog

    return backlog(broker, GROUP, topic_of(project))


def topic_of(project: Project) -> str:
    """A broker of another kind holds another log: its topic has another name in the table."""
    config = project.settings.streaming.broker
    if config.topic or config.kind == "sqlite":
        return config.topic or "changes"
    return f"autoglm.{project.name}.changes"


def open_broker(project: Project) -> Broker:
    settings = project.settings
    config = settings.streaming.broker
    opened: Broker = registry.get("broker", config.kind).open(
        config, project=project.name, state=project.state, partitions=settings.data.partitions
    )
    return opened


def open_source(project: Project) -> Source:
    """Nothing is read yet. Raises: PluginError for a kind that is not there."""
    data = project.settings.data
    made: Source = registry.get("source", data.source.kind)(
        data.source,
        project=project.name,
        base=project.folder,
        batch_rows=data.batch_rows,
        columns=(data.input_column, data.answer_column),
    )
    return made


def open_consumer(
    project: Project, broker: Broker, cancel: threading.Event, **callbacks: Any
) -> Consumer:
    """Broker ─► the product's own checks ─► the project's processors ─► table."""
    from autoglm.streaming.consumer_group import Consumer
    from autoglm.streaming.processor import ProcessorChain, RowProcessor

    data = project.settings.data
    first = RowProcessor(
        text=data.input_column,
        label=data.answer_column,
        max_text_bytes=data.max_text_bytes,
        form=TASKS[project.settings.model.task],
        label_separator=data.label_separator,
        base=project.folder,
    )
    chain = ProcessorChain(
        [first, *_processors(project)],
        attempts=project.settings.streaming.attempts,
        cancel=cancel,
    )
    return Consumer(
        broker,
        project.table(),
        chain,
        project=project.name,
        group=GROUP,
        topic=topic_of(project),
        batch_rows=data.batch_rows,
        **callbacks,
    )


def _processors(project: Project) -> list[Any]:
    """The project's own, by name and options; its files are read as they are now."""
    settings = project.settings
    if not settings.data.processors:
        return []
    files = project_files.read_files(project.folder, settings.imports)
    project_files.execute(files, project.state / "code")
    return [_made(said, settings) for said in settings.data.processors]


def _made(said: str | Mapping[str, Any], settings: Settings) -> Any:
    """Raises: ConfigError for an option that the processor does not take or refuses."""
    options = {} if isinstance(said, str) else {k: v for k, v in said.items() if k != "name"}
    name = said if isinstance(said, str) else str(said.get("name", ""))
    try:
        return inject(registry.get("processor", name), settings, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"data.processors: {name}: {error}.",
            code="config.wrong_value",
            next_step="Write NAME, or {name: NAME, OPTION: VALUE}; docs/streaming.md has them all.",
        ) from error


def describe_dataset(project: Project) -> DatasetVersion:
    """The dataset version of the feature table as it stands.

    Raises: DataError when there is nothing to learn from (no rows, one class, …), data.no_column
    for a slice by a column that the table lacks.
    """
    from autoglm.datasets.columns import check_columns
    from autoglm.datasets.dataset_version import describe

    table = project.table()
    if table.version < 0:
        raise DataError(
            "the feature table is empty: no change has arrived yet.",
            code="data.no_rows",
            next_step="Check data.source, or `autoglm run` to collect.",
        )
    data = project.settings.data
    dataset = describe(
        table,
        min_rows=data.min_rows,
        split={"validation": data.split.validation, "test": data.split.test},
        split_column=data.split.column,
        split_time=data.split.by_time,
        task=project.settings.model.task,
        label_separator=data.label_separator,
    )
    # Told before anything is trained, not when the report is made.
    ways = read_slices(project.settings.evaluate.slices, dataset.form)
    check_columns(dataset, [way.column for way in ways if way.column])
    return dataset
