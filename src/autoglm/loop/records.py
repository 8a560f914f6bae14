"""What people and programs are shown of runs, models and rollouts: one form for all faces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autoglm.contracts.model_version import ModelVersion
from autoglm.contracts.record import to_json
from autoglm.observability.tracing import trace_id_of
from autoglm.project import Project
from autoglm.registry.model_registry import LocalModelRegistry
from autoglm.state.event_log import EventLog


def run(log: EventLog, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the admission table with the run's result (None while it goes on)."""
    result = next((e.data for e in log.read(f"run/{row['run_id']}") if e.kind == "finished"), None)
    spec = row["run_spec"]
    dataset = spec["dataset"]
    return {
        "run_id": row["run_id"],
        "status": row["status"],
        "trigger": spec["trigger"],
        "reason": row["reason"],
        "admitted_at": row["at"],
        "trace_id": trace_id_of(spec["traceparent"]),
        "dataset_version": {k: dataset[k] for k in ("uri", "version", "rows")},
        "result": result,
    }


def model(version: ModelVersion, aliases: Mapping[str, str]) -> dict[str, Any]:
    held = sorted(name for name, digest in aliases.items() if digest == version.digest)
    return {**to_json(version), "aliases": held}


def release(project: Project, registry: LocalModelRegistry, log: EventLog) -> dict[str, Any]:
    """Aliases, the route table in force and the newest rollout's events."""
    streams = log.streams("rollout/")
    events = list(log.read(streams[-1])) if streams else []
    routes = json.loads(project.routes_file.read_text()) if project.routes_file.exists() else None
    return {
        "project": project.name,
        "aliases": registry.aliases(),
        "routes": routes,
        "rollout_id": streams[-1].removeprefix("rollout/") if streams else None,
        "events": [{"kind": e.kind, "at": e.at.isoformat(), **e.data} for e in events],
    }
