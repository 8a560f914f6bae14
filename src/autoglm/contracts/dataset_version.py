from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from autoglm.contracts.task import TASKS, TaskForm


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetVersion:
    """The latest row per key at one version of the feature table, and what may be learnt from it.

    `labels` is the label set (sorted; the tags of token-classification, nothing where answers are
    numbers or texts); a label with fewer than `data.min_rows` rows is in `rare_labels` and its rows
    wait, as `unlabelled_rows` do until their label arrives. `text` and `label` are the columns that
    the task reads and answers; `split_column`, or the column and bounds of `split_time`, decide in
    place of the hash. `content_digest` covers keys, texts and labels of the usable rows
    and the split: equal digests teach equal models.
    """

    project: str
    uri: str
    version: int
    rows: int
    split_rows: Mapping[str, int]
    labels: tuple[str, ...]
    label_counts: Mapping[str, int]
    rare_labels: Mapping[str, int]
    unlabelled_rows: int
    dead_rows: int
    text: str
    label: str
    split: Mapping[str, float]
    schema_digest: str
    content_digest: str
    positions: Mapping[str, str]
    traceparent: str
    linked_traces: tuple[str, ...]
    created_at: datetime
    task: str = "text-classification"
    label_separator: str = ","
    split_column: str = ""
    split_time: Mapping[str, str] = field(default_factory=dict)

    @property
    def form(self) -> TaskForm:
        return TASKS[self.task]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the model puts out: its labels, or the column where it is a number."""
        return self.labels or (self.label,)
