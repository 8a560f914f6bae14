"""From a row to the models that learnt from it, and from a model to its rows: what happened, told.

row ─► its changes (batch, trace, table version) ─► dataset version ─► runs ─► model versions
model ─► run (trigger, trace, trials, result) ─► dataset version ─► traces of its batches
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoglm.contracts.model_version import ModelVersion
from autoglm.contracts.record import to_json
from autoglm.datasets.dataset_version import load_rows
from autoglm.datasets.row_history import RowChange, RowHistory
from autoglm.errors import DataError, StorageError
from autoglm.loop import records
from autoglm.loop.change_to_dataset import GROUP, describe_dataset, topic_of
from autoglm.observability.tracing import trace_id_of
from autoglm.project import Project
from autoglm.state.event_log import EventLog
from autoglm.triggers.admission import Admission


def explain_row(project: Project, key: str) -> dict[str, Any]:
    """Raises: DataError data.no_such_row."""
    key = spelled(project, key)
    changes = history(project).of(key)
    if not changes:
        raise DataError(
            f"the feature table has no row with the key {key!r}.",
            code="data.no_such_row",
            next_step=_what_keys_are(project),
        )
    return {
        "project": project.name,
        "key": key,
        "changes": [to_json(change) for change in changes],
        "now": _standing(project, key, changes),
        "runs": [_run_of(row, changes) for row in _runs(project) if _is_in(row, changes)],
        "models": [_brief(version) for version in learnt_from(project, changes)],
    }


def spelled(project: Project, key: str) -> str:
    """A key that a person wrote, as the table has it."""
    from autoglm.streaming.row_key import RowKey

    name = RowKey.of(project.settings.data.source.key).spelled(key)
    return name.encode("utf-8", "backslashreplace").decode()  # of a dead letter; no row has such


def _what_keys_are(project: Project) -> str:
    said = project.settings.data.source.key
    if isinstance(said, str):
        return f"Keys are values of the column {said!r}."
    return f'Keys are JSON arrays of the values of {", ".join(said)}, like \'["a","7"]\'.'


def explain_model(project: Project, reference: str) -> dict[str, Any]:
    """Raises: StorageError model.unknown."""
    registry = project.registry(read_only=True)
    version = registry.find(reference)
    shown: dict[str, Any] = {
        "project": project.name,
        "model": records.model(version, registry.aliases()),
        "run": None,
        "dataset": None,
        "parents": _parents(registry, version),
        "events": [],
    }
    row = next((r for r in _runs(project) if r["run_id"] == version.lineage.run_id), None)
    if row is None:
        return shown
    log = EventLog(project.reading_engine)
    dataset = row["run_spec"]["dataset"]
    traces = (dataset["traceparent"], *dataset["linked_traces"])
    shown["run"] = records.run(log, row)
    shown["dataset"] = {
        **{k: dataset[k] for k in ("version", "rows", "split_rows", "label_counts", "positions")},
        "traces": [trace_id_of(trace) for trace in traces],
    }
    shown["events"] = [
        {"kind": event.kind, "at": event.at.isoformat()}
        for event in log.read(f"run/{version.lineage.run_id}")
    ]
    return shown


def history(project: Project) -> RowHistory:
    return RowHistory(table=project.table(), group=GROUP, topic=topic_of(project))


def learnt_from(project: Project, changes: Sequence[RowChange]) -> list[ModelVersion]:
    """Model versions, oldest first, whose rows held the one with these changes, and those that were
    trained on from such a version. A row in a held-out split counts: it chose among trials.
    """
    starts = {row["run_id"]: _start_of(row) for row in _runs(project)}
    found: dict[str, ModelVersion] = {}
    for version in reversed(_versions(project)):
        lineage = version.lineage
        inherits = starts.get(lineage.run_id) != "backbone" and lineage.parent in found
        if inherits or _holds(changes, lineage.dataset_version):
            found[version.digest] = version
    return list(found.values())


def _standing(project: Project, key: str, changes: Sequence[RowChange]) -> dict[str, Any]:
    """Where the row stands in the newest dataset version."""
    last = changes[-1]
    dead = [change for change in changes if change.op == "dead"]
    alive = [change for change in changes if change.op != "dead"]
    if not alive:
        return {"state": "dead", "code": dead[-1].code, "cause": dead[-1].cause}
    if alive[-1].op == "delete":
        return {"state": "deleted", "table_version": last.table_version}
    try:
        dataset = describe_dataset(project)
    except DataError as error:
        return {"state": "stored", "dataset_version": None, "why": error.message}
    rows = load_rows(dataset)
    splits: Mapping[str, str] = dict(zip(rows.keys, rows.splits, strict=True))
    state = splits.get(key)
    label = alive[-1].row.get(dataset.label)
    waits = "waits for its answer" if label is None or not str(label).strip() else "rare label"
    return {"state": state or waits, "dataset_version": dataset.version}


def _holds(changes: Sequence[RowChange], dataset_version: int) -> bool:
    then = [c for c in changes if c.table_version <= dataset_version and c.op != "dead"]
    return bool(then) and then[-1].op == "upsert"


def _is_in(row: Mapping[str, Any], changes: Sequence[RowChange]) -> bool:
    return _holds(changes, int(row["run_spec"]["dataset"]["version"]))


def _run_of(row: Mapping[str, Any], changes: Sequence[RowChange]) -> dict[str, Any]:
    spec = row["run_spec"]
    version = int(spec["dataset"]["version"])
    seen = [c for c in changes if c.table_version <= version and c.op != "dead"]
    return {
        "run_id": row["run_id"],
        "status": row["status"],
        "dataset_version": version,
        "table_version_of_row": seen[-1].table_version,
        "trace_id": trace_id_of(spec["traceparent"]),
        "trace_of_row": seen[-1].trace_id,
    }


def _brief(version: ModelVersion) -> dict[str, Any]:
    return {
        "number": version.number,
        "digest": version.digest,
        "run_id": version.lineage.run_id,
        "dataset_version": version.lineage.dataset_version,
    }


def _parents(registry: Any, version: ModelVersion) -> list[dict[str, Any]]:
    """The version in service when each was made, back to the first."""
    chain: list[dict[str, Any]] = []
    known = {version.digest}
    parent = version.lineage.parent
    while parent and parent not in known and (found := registry.get(parent)) is not None:
        known.add(parent)
        chain.append(_brief(found))
        parent = found.lineage.parent
    return chain


def _runs(project: Project) -> list[Mapping[str, Any]]:
    try:
        return Admission(project.reading_engine, project.state).rows()
    except StorageError as error:
        if error.code == "storage.missing":
            return []
        raise


def _versions(project: Project) -> list[ModelVersion]:
    try:
        return project.registry(read_only=True).versions()
    except StorageError as error:
        if error.code == "storage.missing":
            return []
        raise


def _start_of(row: Mapping[str, Any]) -> str:
    return str(row["run_spec"]["config"].get("model", {}).get("start_from", "auto"))
