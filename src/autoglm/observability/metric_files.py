"""Metrics of processes that answer no requests: each keeps a file, the gateway shows them all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "metrics"


@dataclass(kw_only=True, slots=True)
class Family:
    """One metric; `samples` are (suffix, labels, value), as Prometheus writes them."""

    name: str
    kind: str  # gauge | counter | histogram
    what: str
    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)

    def add(self, value: float, suffix: str = "", **labels: str) -> None:
        self.samples.append((suffix, labels, value))


def write_metrics(state: Path, service: str, families: Sequence[Family]) -> None:
    """Replace the service's file in one step: who reads sees the old one or the new one."""
    folder = state / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".{service}.{os.getpid()}"
    document = [
        {"name": f.name, "kind": f.kind, "what": f.what, "samples": f.samples} for f in families
    ]
    staging.write_text(json.dumps(document), encoding="utf-8")
    staging.replace(folder / f"{service}.json")


class MetricFiles:
    """A collector for a registry of prometheus_client: what lies in the files now."""

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import Metric

        found: dict[str, Metric] = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # being deleted with the state; a figure less, not an error
            for family in document:
                name, kind = family["name"], family["kind"]
                metric = found.setdefault(name, Metric(name, family["what"], kind))
                for suffix, labels, value in family["samples"]:
                    metric.add_sample(name + suffix, labels, value)
        return found.values()
