"""What is asked of models on the test rows, and what the evaluators say: scores, slices, measures.

test rows ─► answers (and shares, if an evaluator wants them) ─► a score per evaluator
                                                              ─► the same per slice
exported folder ─► latency of a row, size                     (measured here, no evaluator)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoglm.contracts.evaluation_report import Score, SliceScore
from autoglm.contracts.run_spec import RunSpec
from autoglm.datasets.columns import column_of, rows_since
from autoglm.datasets.dataset_version import Rows
from autoglm.errors import AutoGLMError, ConfigError, PluginError
from autoglm.evaluation.asking import needs_proba, score_of, scores_of_parts
from autoglm.evaluation.evaluator import find_evaluator
from autoglm.evaluation.resampling import drawn, interval
from autoglm.evaluation.roles import LATENCY, MEASURED, SIZE, Role, read_roles
from autoglm.evaluation.slices import Slice, read_slices, slices_of
from autoglm.modeling.onnx_model import OnnxModel
from autoglm.observability.logging import get_logger
from autoglm.plugins.kinds import Evaluator
from autoglm.settings import Settings, from_snapshot

# Rows that the latency is measured on, one at a time, and rounds over them.
TIMED_ROWS, TIMED_ROUNDS = 64, 3


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one model says of rows; `shares` only where an evaluator wants them."""

    answers: Sequence[Any]
    shares: Sequence[Mapping[str, float]] = ()

    def to(self, evaluator: Evaluator) -> Sequence[Any]:
        return self.shares if needs_proba(evaluator) else self.answers


@dataclass(kw_only=True)
class Asked:
    """The evaluators of a run by name, `gate` among them, and what each is for. `problems` gathers
    why one that only reports has no score.
    """

    metric: str
    evaluators: Mapping[str, Evaluator]
    roles: Mapping[str, Role]
    problems: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: RunSpec) -> Asked:
        """Raises: PluginError plugin.unknown; ConfigError."""
        settings = from_snapshot(spec.config)
        metric, roles = settings.evaluate.metric, read_roles(settings.evaluate.metrics)
        names = dict.fromkeys([*spec.dataset.form.metrics, metric, *(r.name for r in roles)])
        evaluators = {n: find_evaluator(n) for n in names if n not in MEASURED}
        return cls(metric=metric, evaluators=evaluators, roles={r.name: r for r in roles})

    @property
    def gate(self) -> Evaluator:
        return self.evaluators[self.metric]

    @property
    def wants_shares(self) -> bool:
        return any(map(needs_proba, self.evaluators.values()))

    def say(self, model: OnnxModel, inputs: Sequence[Any]) -> Said:
        """Raises: ConfigError evaluate.no_shares for an evaluator that wants what such a model
        has not.
        """
        answers = [answer.label for answer in model.predict(inputs)]
        if not self.wants_shares:
            return Said(answers=answers)
        try:
            return Said(answers=answers, shares=model.shares(inputs))
        except ValueError as error:
            names = [n for n, e in self.evaluators.items() if needs_proba(e)]
            raise ConfigError(
                f"evaluator:{', '.join(names)} wants a share for each label: {error}.",
                code="evaluate.no_shares",
                next_step="Choose one that judges answers (needs_proba=False).",
            ) from error

    def scores(self, truth: Sequence[Any], said: Said) -> dict[str, Score]:
        """By evaluator. Raises: PluginError of one that gates; `problems` says why of others."""
        found = {}
        for name, evaluator in self.evaluators.items():
            try:
                found[name] = score_of(evaluator, truth, said.to(evaluator))
            except PluginError as error:
                found[name] = self._without(name, error, len(truth))
        return found

    def scores_of(
        self,
        truth: Sequence[Any],
        said: Said,
        parts: Sequence[Sequence[int]],
        *,
        with_interval: bool = True,
    ) -> list[dict[str, Score]]:
        """By part, then by evaluator."""
        columns = {
            name: scores_of_parts(
                evaluator, truth, said.to(evaluator), parts, with_interval=with_interval
            )
            for name, evaluator in self.evaluators.items()
            if name not in self.problems
        }
        return [{name: columns[name][i] for name in columns} for i in range(len(parts))]

    def _without(self, name: str, error: PluginError, num_rows: int) -> Score:
        role = self.roles.get(name)
        if name == self.metric or (role is not None and role.role == "constraint"):
            raise error
        if name not in self.problems:
            get_logger().warning("evaluator gave no score", evaluator=name, cause=str(error))
        self.problems[name] = str(error)
        return Score(value=None, low=None, high=None, rows=num_rows)

    def measured(self, folder: Path, rows: Rows, threads: int) -> dict[str, Score]:
        """Of an exported folder, what the roles name of it."""
        found = {}
        if LATENCY in self.roles:
            found[LATENCY] = latency_ms(OnnxModel(folder, threads=threads), rows.inputs)
        if SIZE in self.roles:
            size = float(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()))
            found[SIZE] = Score(value=size, low=size, high=size, rows=0)
        return found

    def missed(self, scores: Mapping[str, Score]) -> tuple[str, ...]:
        """Constraints that do not hold, in words."""
        said = [role.missed(scores[name].value) for name, role in self.roles.items()]
        return tuple(filter(None, said))

    def unknown(self, scores: Mapping[str, Score]) -> tuple[str, ...]:
        """Constraints of which nobody knows."""
        return tuple(n for n, role in self.roles.items() if role.is_unknown(scores[n].value))

    @property
    def constraints(self) -> dict[str, str]:
        return {n: role.bound for n, role in self.roles.items() if role.role == "constraint"}


def latency_ms(model: OnnxModel, inputs: Sequence[Any]) -> Score:
    """Milliseconds of one row alone, tokenizer included: the median over rows, each the fastest of
    a few times.
    """
    model.warm()
    asked = inputs[:: max(1, len(inputs) // TIMED_ROWS)][:TIMED_ROWS]
    times = [min(_seconds(model, one) for _ in range(TIMED_ROUNDS)) * 1e3 for one in asked]
    low, high = interval(drawn(_median, times))
    return Score(value=_median(times), low=low, high=high, rows=len(asked))


def _seconds(model: OnnxModel, one: Any) -> float:
    started = time.perf_counter()
    model.predict([one])
    return time.perf_counter() - started


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def slice_scores(
    asked: Asked,
    slices: Sequence[Slice],
    truth: Sequence[Any],
    candidate: Said,
    stable: Said | None,
) -> tuple[SliceScore, ...]:
    parts = [each.at for each in slices]
    if not parts:
        return ()
    of_candidate = asked.scores_of(truth, candidate, parts)
    of_stable: list[dict[str, Score]] = [{}] * len(parts)
    if stable is not None:
        of_stable = asked.scores_of(truth, stable, parts, with_interval=False)
    return tuple(
        SliceScore(by=each.by, name=each.name, rows=len(each.at), candidate=mine, stable=theirs)
        for each, mine, theirs in zip(slices, of_candidate, of_stable, strict=True)
    )


def find_slices(
    spec: RunSpec, settings: Settings, rows: Rows, since: int | None = None
) -> list[Slice]:
    """The groups that evaluate.slices names, and behind them the rows that stable has not seen:
    those that changed after the dataset version `since`.

    Raises: ConfigError, DataError data.no_column.
    """
    dataset, found = spec.dataset, []
    for way in read_slices(settings.evaluate.slices, dataset.form):
        cells = column_of(dataset, way.column, rows.keys) if way.column else ()
        found += slices_of(way, rows.inputs, rows.answers, cells)
    if since is not None and since != dataset.version:
        try:
            new = rows_since(dataset, since, rows.keys)
        except AutoGLMError as error:  # the old version was cleared away: nothing to compare with
            get_logger().info("new rows are not told apart", cause=str(error))
            return found
        found.append(Slice(by="new rows", name=f"since dataset version {since}", at=tuple(new)))
    return found
