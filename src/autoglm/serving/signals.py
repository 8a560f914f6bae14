"""Golden signals per version: raw latencies for the judge, Prometheus for everybody else."""

from __future__ import annotations

from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from autoglm.contracts.measurement import Block, VersionWindow
from autoglm.contracts.rollout import RouteTable
from autoglm.observability.metric_files import MetricFiles

LATENCIES_KEPT = 20_000
ANSWERS_KEPT = 20_000
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)


class _Window:
    def __init__(self) -> None:
        self.requests = self.errors = self.labelled = self.correct = 0
        self.latencies: deque[float] = deque(maxlen=LATENCIES_KEPT)

    def cut(self, version: str) -> VersionWindow:
        latencies = sorted(self.latencies)
        count = len(latencies)
        return VersionWindow(
            version=version,
            requests=self.requests,
            errors=self.errors,
            mean_latency_ms=sum(latencies) / count if count else None,
            p50_ms=latencies[count // 2] if count else None,
            p99_ms=latencies[min(count - 1, int(count * 0.99))] if count else None,
            labelled=self.labelled,
            correct=self.correct,
        )


class Signals:
    """Counts since the route table in force was applied (`restart`)."""

    def __init__(self, project: str, state: Path | None = None) -> None:
        self._project = project
        self._windows: dict[str, _Window] = {}
        self._answers: OrderedDict[str, tuple[str, Any]] = OrderedDict()
        self._registry = CollectorRegistry()
        if state is not None:
            self._registry.register(MetricFiles(state))
        names = ["project", "version", "status"]
        self._requests = Counter(
            "autoglm_requests", "Predictions by status.", names, registry=self._registry
        )
        self._seconds = Histogram(
            "autoglm_request_seconds", "Latency of answers.", ["project", "version"],
            buckets=BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._weight = Gauge(
            "autoglm_route_weight", "Traffic weight, per cent.", ["project", "version"],
            registry=self._registry,
        )  # fmt: skip

    def restart(self, routes: RouteTable) -> None:
        self._windows = {}
        self._weight.clear()
        self._weight.labels(self._project, routes.stable[:12]).set(100 - routes.candidate_weight)
        if routes.candidate:
            self._weight.labels(self._project, routes.candidate[:12]).set(routes.candidate_weight)

    def answered(self, version: str, seconds: float, request_id: str, label: Any) -> None:
        window = self._windows.setdefault(version, _Window())
        window.requests += 1
        window.latencies.append(seconds * 1000)
        self._answers[request_id] = (version, label)
        if len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)
        self._requests.labels(self._project, version[:12], "200").inc()
        self._seconds.labels(self._project, version[:12]).observe(seconds)

    def failed(self, version: str, status: str) -> None:
        window = self._windows.setdefault(version, _Window())
        window.requests += 1
        window.errors += 1
        self._requests.labels(self._project, version[:12], status).inc()

    def answer_to(self, request_id: str) -> tuple[str, Any] | None:
        """(version, answer) of a request whose true label is still waited for."""
        return self._answers.get(request_id)

    def labelled(self, request_id: str, label: Any) -> bool:
        """The true label of an answer; says whether the answer is still known. A number is near or
        far, not right or wrong: it is not counted.
        """
        known = self._answers.pop(request_id, None)
        if known is None:
            return False
        version, answered = known
        if isinstance(answered, float):
            return True
        window = self._windows.setdefault(version, _Window())
        window.labelled += 1
        window.correct += answered == label
        return True

    def block(self, routes: RouteTable | None) -> Block:
        def window(version: str) -> VersionWindow | None:
            return self._windows[version].cut(version) if version in self._windows else None

        return Block(
            project=self._project,
            generation=routes.generation if routes else 0,
            candidate=window(routes.candidate) if routes else None,
            stable=window(routes.stable) if routes else None,
            lease_held=False,
        )

    def exposition(self) -> bytes:
        """Of the gateway, and of the processes that keep their figures in files."""
        return generate_latest(self._registry)
