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

# A text of which the model reads less than this share has something to tell behind max_length.
WORTH_TELLING = 0.9


def evaluate_candidate(spec: RunSpec, candidate: str, stable: str) -> EvaluationReport:
    """`candidate` and `stable` are model folders; `stable` is empty for a first model."""
    settings = from_snapshot(spec.config)
    test, train = load_rows(spec.dataset, "test"), load_rows(spec.dataset, "train")
    classifier = OnnxClassifier(Path(candidate), threads=0)
    answers = _labels(classifier, test.texts)
    stable_answers = _labels(OnnxClassifier(Path(stable), threads=0), test.texts) if stable else []
    project_files.open_parts(spec)
    names = dict.fromkeys([*METRICS, settings.evaluate.metric])
    evaluators = {name: find_evaluator(name) for name in names}
    metric = settings.evaluate.metric
    gate = evaluators[metric]
    # The floor reads what the model reads; what lies behind max_length is told apart.
    read = classifier.seen(train.texts), classifier.seen(test.texts)
    linear = linear_predictions(read[0], train.labels, read[1])
    whole = None
    if sum(map(len, read[0])) < WORTH_TELLING * sum(map(len, train.texts)):
        answers_whole = linear_predictions(train.texts, train.labels, test.texts)
        whole = gate.evaluate(test.labels, answers_whole).value
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
        linear_whole=whole,
        test_rows=len(test.labels),
        verdict=verdict,
        reason=reason,
    )


def _labels(classifier: OnnxClassifier, texts: list[str]) -> list[str]:
    return [answer.label for answer in classifier.predict(texts)]
