"""Candidate, stable and the floors on the same test rows; the offline gate's verdict."""

from __future__ import annotations

from pathlib import Path

from autoglm.contracts.evaluation_report import EvaluationReport
from autoglm.contracts.run_spec import RunSpec
from autoglm.datasets.dataset_version import load_rows
from autoglm.evaluation.evaluator import find_evaluator, paired
from autoglm.evaluation.floors import linear_predictions, majority_predictions
from autoglm.evaluation.metrics import METRICS
from autoglm.modeling.onnx_classifier import OnnxClassifier
from autoglm.plugins import project_files
from autoglm.release import offline_gate
from autoglm.settings import from_snapshot


def evaluate_candidate(spec: RunSpec, candidate: str, stable: str) -> EvaluationReport:
    """`candidate` and `stable` are model folders; `stable` is empty for a first model."""
    settings = from_snapshot(spec.config)
    test, train = load_rows(spec.dataset, "test"), load_rows(spec.dataset, "train")
    answers = _predictions(candidate, test.texts)
    stable_answers = _predictions(stable, test.texts) if stable else []
    project_files.execute(spec.imports, Path(spec.folder) / "code")
    names = dict.fromkeys([*METRICS, settings.evaluate.metric])
    evaluators = {name: find_evaluator(name) for name in names}
    metric = settings.evaluate.metric
    gate = evaluators[metric]
    linear = linear_predictions(train.texts, train.labels, test.texts)
    majority = majority_predictions(train.labels, len(test.labels))
    floors = [gate.evaluate(test.labels, p).value or 0.0 for p in (majority, linear)]
    difference = paired(gate, test.labels, answers, stable_answers) if stable else None
    scores = {name: e.evaluate(test.labels, answers) for name, e in evaluators.items()}
    if difference is None:
        value = scores[metric].value or 0.0
        over_linear = paired(gate, test.labels, answers, linear)
        verdict, reason = offline_gate.judge_first(
            value, floors[0], over_linear, margin=settings.evaluate.margin
        )
    else:
        verdict, reason = offline_gate.judge_quality(difference, settings.evaluate.margin)
    return EvaluationReport(
        project=spec.project,
        run_id=spec.run_id,
        metric=metric,
        candidate=scores,
        stable={
            name: e.evaluate(test.labels, stable_answers)
            for name, e in evaluators.items()
            if stable
        },
        difference=difference,
        majority=floors[0],
        linear_floor=floors[1],
        test_rows=len(test.labels),
        verdict=verdict,
        reason=reason,
    )


def _predictions(folder: str, texts: list[str]) -> list[str]:
    return [answer.label for answer in OnnxClassifier(Path(folder), threads=0).predict(texts)]
