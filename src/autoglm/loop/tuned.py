"""A study's best values ─► `autoglm.tuned.yaml`, a config layer to be reviewed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoglm.config.provenance import explain
from autoglm.errors import SearchError
from autoglm.project import Project
from autoglm.search.report import report_of
from autoglm.settings import TUNED_NAME, read_settings
from autoglm.state.event_log import EventLog


def apply_best(project: Project, study: str = "") -> dict[str, Any]:
    """Write the best values of `study` (the newest if left out). Twice is as once.

    `changes`: key → what was in force and what is now; `overruled`: key → the stronger layer that
    says something else. Raises: SearchError search.nothing_best, StorageError search.no_study,
    SearchError search.owed_to_stable for a trial of a refresh from stable,
    ConfigError for values that this configuration refuses (nothing is written then).
    """
    report = report_of(EventLog(project.reading_engine), study, project=project.name)
    best = report["best"]
    if best is None:
        failed = report["failed"]
        raise SearchError(
            f"study {report['study']} has no complete trial"
            + (f": it broke off, {failed}" if failed else " yet."),
            code="search.nothing_best",
            next_step="Mend the cause and search again."
            if failed
            else "Wait for one: `autoglm search show`.",
        )
    tried = report["refresh"]
    if tried and tried["start"] == "stable" and best["number"] < len(tried["points"]):
        raise SearchError(
            f"the best trial of study {report['study']} tried again, from stable, what study"
            f" {tried['of']} answered: that so little was enough is owed to what stable knew.",
            code="search.owed_to_stable",
            next_step=f"Apply what was answered: `autoglm search apply --study {tried['of']}`.",
        )
    path, before = project.layers.tuned, project.config
    kept = path.read_bytes() if path.exists() else None
    _place(path, tuned_text(report).encode())
    try:
        after = read_settings(project.layers)
    except BaseException:
        if kept is None:
            path.unlink()
        else:
            _place(path, kept)
        raise
    said = {key: (explain(before, key), explain(after, key)) for key in _asked(report)}
    return {
        "status": "applied",
        "file": str(path),
        "study": report["study"],
        "trial": best["number"],
        "metric": report["metric"],
        "value": best["value"],
        "is_ended": bool(report["stopped_by"]),
        "unmet": report["unmet"],
        "changes": {
            key: {"was": old["value"], "is": new["value"]} for key, (old, new) in said.items()
        },
        "overruled": {
            key: new["layer"] for key, (_, new) in said.items() if new["layer"] != TUNED_NAME
        },
    }


def tuned_text(report: Mapping[str, Any]) -> str:
    """The file: where the values come from, then one section per line of maps."""
    best = report["best"]
    of = f"{len(report['trials'])} trials of study {report['study']}"
    tree: dict[str, Any] = {}
    for key, value in sorted(_asked(report).items()):
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    lines = [
        f"# Written by `autoglm search apply`: the best of {of},",
        f"# trial {best['number']}, {report['metric']} {best['value']:.4f} on the validation rows.",
        "# A layer above autoglm.yaml, below --config files and the profile's. Review it. Without",
        "# this file it counts no more.",
        *_lines(tree, ""),
    ]
    return "\n".join(lines) + "\n"


def _asked(report: Mapping[str, Any]) -> dict[str, Any]:
    """The best values, without those that a refresh set beside the space for a trial."""
    beside = {key for each in report["refresh"].get("beside", ()) for key in each}
    left_out = beside - report["axes"].keys()
    return {key: v for key, v in report["best"]["params"].items() if key not in left_out}


def _lines(tree: Mapping[str, Any], indent: str) -> list[str]:
    found = []
    for key, value in tree.items():
        if isinstance(value, dict) and not indent:
            found += [f"{key}:", *_lines(value, "  ")]
        else:
            # JSON is YAML; what looks like a placeholder is text.
            text = json.dumps(value, ensure_ascii=False).replace("${", "$${")
            found.append(f"{indent}{key}: {text}")
    return found


def _place(path: Path, content: bytes) -> None:
    """Whole or not at all, also for who reads it now."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(content)
    staging.replace(path)
