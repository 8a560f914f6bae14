"""Describes what may be learnt from one version of the feature table, and loads its rows."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import canonical, digest
from autoglm.contracts.task import TASKS, TaskForm, answer_to_json
from autoglm.datasets.cells import read_answer, read_input
from autoglm.datasets.feature_table import DeltaFeatureTable, Provenance
from autoglm.datasets.splits import SPLITS, Split, split_all, split_by_column, split_by_time
from autoglm.errors import DataError
from autoglm.observability.tracing import trace_id_of

LONGEST_TRACES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Usable rows, column by column, in the order of their keys. What inputs and answers are is
    the task's to say (contracts.task).
    """

    keys: list[str]
    inputs: list[Any]
    answers: list[Any]
    splits: list[Split]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class Ways:
    """How rows are split: shares of the hash, a column that says it, or a column with times."""

    shares: Mapping[str, float]
    column: str
    by_time: Mapping[str, str]

    @property
    def said(self) -> str:
        """The column that is read for it."""
        return self.by_time.get("column", self.column)

    def split(self, keys: Sequence[str], texts: Sequence[str], said: Sequence[Any]) -> list[Split]:
        """Raises: DataError data.wrong_split."""
        if self.by_time:
            bounds = {k: self.by_time[k] for k in ("validation_from", "test_from")}
            try:
                return split_by_time(texts, said, **bounds)
            except ValueError as error:
                raise _wrong_split(f"column {self.said!r}: {error}") from error
        shares = self.shares
        splits = split_all(texts, validation=shares["validation"], test=shares["test"])
        if not self.column:
            return splits
        return split_by_column(texts, list(map(_said, keys, said)), splits)


def describe(
    table: DeltaFeatureTable,
    version: int | None = None,
    *,
    min_rows: int,
    split: Mapping[str, float],
    task: str = "text-classification",
    label_separator: str = ",",
    split_column: str = "",
    split_time: Mapping[str, str] | None = None,
) -> DatasetVersion:
    """The dataset at `version` (the newest if None); `split` has the shares validation and test of
    the rows of which `split_column` says nothing. `split_time` (column, validation_from, test_from)
    is used in place of both.

    Raises: DataError data.no_rows, data.one_class, data.one_number, data.split_empty,
    data.wrong_split, data.no_such_version.
    """
    at = table.version if version is None else version
    source = table.provenance(at) if at >= 0 else None
    if source is None:
        raise _no_rows(table, waiting=0, dead=0)
    by_time = dict(split_time or {})
    columns = ["_key", "_version", "_trace", table.text, table.label]
    said = by_time.get("column", split_column)
    latest = table.read(at, columns=_once(*columns, said))
    if said and said not in latest.column_names:
        raise _wrong_split(f"the feature table has no column {said!r}")
    num_dead = table.num_dead(at)
    form = TASKS[task]
    ways = Ways(split, split_column, by_time)
    rows, num_waiting = _labelled(latest, table, ways, form, label_separator)
    if not len(rows):
        raise _no_rows(table, waiting=num_waiting, dead=num_dead)
    named = [] if form.answers in {"number", "text"} else rows.answers
    counts = Counter(label for answer in named for label in labels_in(answer))
    labels = _label_set(rows, counts, min_rows)
    rare = {label: n for label, n in sorted(counts.items()) if label not in labels}
    if form.answers == "number":
        _check_numbers(table.label, rows.answers)
    elif form.answers != "text" and len(labels) < (1 if form.answers == "labels" else 2):
        raise _one_class(table.label, labels, rare, min_rows)
    usable = _only(rows, labels=labels)
    split_rows = Counter(usable.splits)
    for name in SPLITS:
        if not split_rows[name]:
            raise _split_empty(name, len(usable), split)
    return DatasetVersion(
        project=table.project,
        uri=table.uri,
        version=at,
        rows=len(usable),
        split_rows={name: split_rows[name] for name in SPLITS},
        labels=labels,
        label_counts={label: counts[label] for label in labels},
        rare_labels=rare,
        unlabelled_rows=num_waiting,
        dead_rows=num_dead,
        text=table.text,
        label=table.label,
        split=dict(split),
        schema_digest=digest(table.text, table.label, _type_name(latest, table.label)),
        content_digest=_content_digest(usable, labels, ways),
        positions=source.positions,
        traceparent=source.traceparent,
        linked_traces=_linked_traces(latest, source),
        created_at=source.at,
        task=task,
        label_separator=label_separator,
        split_column=split_column,
        split_time=by_time,
    )


def load_rows(dataset: DatasetVersion, split: str | None = None) -> Rows:
    """The usable rows of `dataset`, of one split or of all."""
    table = DeltaFeatureTable(
        dataset.uri, project=dataset.project, key="", text=dataset.text, label=dataset.label
    )
    ways = Ways(dataset.split, dataset.split_column, dataset.split_time)
    columns = _once("_key", dataset.text, dataset.label, ways.said)
    latest = table.read(dataset.version, columns=columns)
    rows, _ = _labelled(latest, table, ways, dataset.form, dataset.label_separator)
    return _only(rows, labels=dataset.labels, split=split)


def _labelled(
    latest: pa.Table,
    table: DeltaFeatureTable,
    ways: Ways,
    form: TaskForm,
    separator: str,
) -> tuple[Rows, int]:
    """Rows with input and answer, and how many wait for their answer."""
    if table.text not in latest.column_names:
        return Rows(keys=[], inputs=[], answers=[], splits=[]), latest.num_rows
    if table.label not in latest.column_names:
        latest = latest.append_column(table.label, pa.nulls(latest.num_rows, pa.string()))
    labels = _as_text(latest[table.label])
    is_labelled = pc.and_(
        pc.not_equal(pc.utf8_trim_whitespace(labels), ""), pc.is_valid(latest[table.text])
    ).fill_null(False)
    keys: list[str] = latest["_key"].filter(is_labelled).to_pylist()
    texts: list[str] = latest[table.text].filter(is_labelled).to_pylist()
    cells: list[str] = labels.filter(is_labelled).to_pylist()
    said = latest[ways.said].filter(is_labelled).to_pylist() if ways.said else []
    splits = ways.split(keys, texts, said)
    rows = Rows(
        keys=keys,
        inputs=_parsed(keys, texts, table.text, lambda cell: read_input(cell, form)),
        answers=_parsed(keys, cells, table.label, lambda c: read_answer(c, form, separator)),
        splits=splits,
    )
    return rows, latest.num_rows - len(rows)


def _once(*names: str) -> list[str]:
    return list(dict.fromkeys(filter(None, names)))


def _said(key: str, said: Any) -> Split | None:
    name = str(said or "").strip().lower()
    if not name:
        return None
    if name not in SPLITS:
        raise _wrong_split(f"row {key} is said to be of the split {said!r:.60}")
    return name


def _parsed(
    keys: Sequence[str], cells: Sequence[str], column: str, read: Callable[[str], Any]
) -> list[Any]:
    """Rows are checked before they are stored, but by the task of their day."""
    parsed = []
    for key, cell in zip(keys, cells, strict=True):
        try:
            parsed.append(read(cell))
        except ValueError as error:
            raise DataError(
                f"row {key}, column {column!r}: {error}.",
                code="data.bad_answer",
                next_step="Correct the row in its source, or model.task.",
            ) from error
    return parsed


def labels_in(answer: Any) -> frozenset[str]:
    """The labels that an answer names; none of a number."""
    if isinstance(answer, str):
        return frozenset((answer,))
    return frozenset(() if isinstance(answer, float) else answer)


def _as_text(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Labels as the texts that a model answers with: 1 is "1", True is "true", NaN is none."""
    if pa.types.is_floating(labels.type):
        encoded = pc.if_else(pc.is_nan(labels), None, labels).combine_chunks().dictionary_encode()
        words = pa.array([str(value) for value in encoded.dictionary.to_pylist()], pa.string())
        return pa.chunked_array([words.take(encoded.indices)])
    return labels.cast(pa.string())


def _label_set(rows: Rows, counts: Mapping[str, int], min_rows: int) -> tuple[str, ...]:
    """Labels with enough rows that can be learnt: one which training never sees has no place."""
    in_train: set[str] = set()
    for answer, split in zip(rows.answers, rows.splits, strict=True):
        if split == "train":
            in_train |= labels_in(answer)
    return tuple(sorted(label for label in in_train if counts[label] >= min_rows))


def _check_numbers(label: str, numbers: Sequence[float]) -> None:
    if len(set(numbers)) < 2:
        raise DataError(
            f"column {label!r} holds one number only: {numbers[0]:g}.",
            code="data.one_number",
            next_step="A regression needs two: add rows with others.",
        )


def _only(rows: Rows, *, labels: Iterable[str], split: str | None = None) -> Rows:
    """Rows of a split whose answer is made of `labels`; of a set of labels the others are left
    out, since the row still tells of those that count.
    """
    allowed = set(labels)
    answers = [a & allowed if isinstance(a, frozenset) else a for a in rows.answers]
    at = [
        index
        for index, (answer, part) in enumerate(zip(answers, rows.splits, strict=True))
        if split in (None, part) and (not allowed or labels_in(answer) <= allowed)
    ]
    return Rows(
        keys=[rows.keys[index] for index in at],
        inputs=[rows.inputs[index] for index in at],
        answers=[answers[index] for index in at],
        splits=[rows.splits[index] for index in at],
    )


def _content_digest(rows: Rows, labels: Sequence[str], ways: Ways) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    hasher.update(canonical([list(labels), dict(ways.shares)]))
    # By hash, texts and shares say it all.
    said = [rows.splits] if ways.said else []
    for column in (rows.keys, rows.inputs, rows.answers, *said):
        data = pa.array(map(_as_cell, column), pa.large_string())
        for buffer in data.buffers()[1:]:  # ends of the values, then their bytes
            hasher.update(len(buffer).to_bytes(8, "big"))
            hasher.update(buffer)
    return hasher.hexdigest()


def _as_cell(value: Any) -> str:
    return value if isinstance(value, str) else canonical(answer_to_json(value)).decode()


def _linked_traces(latest: pa.Table, source: Provenance) -> tuple[str, ...]:
    """Traces of the other batches that the latest rows came with, newest first."""
    own = trace_id_of(source.traceparent)
    newest = latest.group_by("_trace").aggregate([("_version", "max")])
    order = [("_version_max", "descending"), ("_trace", "ascending")]
    traces = newest.sort_by(order)["_trace"].to_pylist()
    others = [trace for trace in traces if trace_id_of(trace) not in ("", own)]
    return tuple(others[:LONGEST_TRACES])


def _type_name(latest: pa.Table, column: str) -> str:
    return str(latest.schema.field(column).type) if column in latest.column_names else "null"


def _no_rows(table: DeltaFeatureTable, *, waiting: int, dead: int) -> DataError:
    return DataError(
        f"there is no row to learn from: {waiting:,} wait for a value in {table.label!r},"
        f" {dead:,} are dead letters.",
        code="data.no_rows",
        next_step="Check data.text and data.label, and that the source's table has rows.",
    )


def _one_class(
    label: str, labels: Sequence[str], rare: Mapping[str, int], min_rows: int
) -> DataError:
    has = f"only the class {labels[0]!r}" if labels else "no class"
    others = ", ".join(f"{name!r} ({count})" for name, count in list(rare.items())[:5])
    detail = (
        f" {len(rare)} more are too rare, or have no row outside the held-out splits: {others}."
        if rare
        else ""
    )
    return DataError(
        f"column {label!r} has {has} with at least {min_rows} rows.{detail}",
        code="data.one_class",
        next_step="A classifier needs two: add rows of another class, or lower data.min_rows.",
    )


def _wrong_split(what: str) -> DataError:
    return DataError(
        f"{what}.",
        code="data.wrong_split",
        next_step=f"data.split.column names a column of {', '.join(SPLITS)} or nothing;"
        " data.split.time one with ISO times.",
    )


def _split_empty(name: str, num_rows: int, split: Mapping[str, float]) -> DataError:
    share = split.get(name, 1 - sum(split.values()))
    # So many distinct texts leave a split of this share empty in one of a hundred data sets.
    needed = math.ceil(math.log(0.01) / math.log(1 - share)) if 0 < share < 1 else 1
    return DataError(
        f"the {name} split is empty: {num_rows:,} usable rows are too few for a share of"
        f" {share:.0%}; about {max(needed, num_rows + 1)} rows with different texts are needed.",
        code="data.split_empty",
        next_step=f"Add rows, or raise data.split.{name}." if name in split else "Add rows.",
    )
