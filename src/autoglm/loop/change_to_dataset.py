"""source ─► collector ─► broker ─► processor ─► feature table ─► dataset version"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.task import TASKS
from autoglm.errors import DataError
from autoglm.evaluation.slices import read_slices
from autoglm.plugins import project_files, registry
from autoglm.project import Project
from autoglm.settings import inject

TOPIC = "changes"
GROUP = "feature-table"
OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What one trip to the source brought: events read, rows stored, events that became dead."""

    events: int
    rows: int
    dead: int


def collect_changes(project: Project, cancel: threading.Event, on_event: OnEvent) -> Collected:
    """Bring every change that the source shows now into the feature table, each exactly once."""
    from autoglm.streaming.collector import collect
    from autoglm.streaming.consumer_group import Consumer
    from autoglm.streaming.processor import ProcessorChain, RowProcessor

    data = project.settings.data
    source = registry.get("source", data.source.kind)(
        data.source,
        project=project.name,
        base=project.folder,
        batch_rows=data.batch_rows,
        columns=(data.input_column, data.answer_column),
    )
    broker = registry.get("broker", "sqlite")(
        project.state / "broker.db", partitions=data.partitions
    )
    table = project.table()
    first = RowProcessor(
        text=data.input_column,
        label=data.answer_column,
        max_text_bytes=data.max_text_bytes,
        form=TASKS[project.settings.model.task],
        label_separator=data.label_separator,
        base=project.folder,
    )
    processor = ProcessorChain([first, *_processors(project)])
    consumer = Consumer(
        broker,
        table,
        processor,
        project=project.name,
        group=GROUP,
        topic=TOPIC,
        batch_rows=data.batch_rows,
    )
    # What an earlier process left in the broker goes first: its source may be gone by now.
    left = consumer.drain(cancel)
    on_event({"kind": "source", "promise": source.promise})
    collected = collect(source, broker, topic=TOPIC, cancel=cancel, on_batch=None)
    drained = consumer.drain(cancel)
    result = Collected(
        events=collected.events, rows=left.rows + drained.rows, dead=left.dead + drained.dead
    )
    on_event(
        {"kind": "collected", "events": result.events, "rows": result.rows, "dead": result.dead}
    )
    return result


def _processors(project: Project) -> list[Any]:
    """The project's own, by name; its files are read as they are now."""
    settings = project.settings
    if not settings.data.processors:
        return []
    files = project_files.read_files(project.folder, settings.imports)
    project_files.execute(files, project.state / "code")
    return [inject(registry.get("processor", n), settings) for n in settings.data.processors]


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
