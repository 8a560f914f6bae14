"""Candidate, stable and the floors on the same test rows; the offline gate's verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoglm.contracts.evaluation_report import EvaluationReport
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.task import TaskForm, TextScore
from autoglm.datasets.dataset_version import Rows, load_rows
from autoglm.errors import ModelError
from autoglm.evaluation.evaluator import find_evaluator, paired
from autoglm.evaluation.floors import linear_predictions, majority_predictions
from autoglm.modeling.onnx_model import OnnxModel
from autoglm.plugins import project_files
from autoglm.release import offline_gate
from autoglm.settings import from_snapshot

# A text of which the model reads less than this share has something to tell behind max_length.
WORTH_TELLING = 0.9


def evaluate_candidate(spec: RunSpec, candidate: str, stable: str) -> EvaluationReport:
    """`candidate` and `stable` are model folders; `stable` is empty for a first model, which
    the first of a task is too.
    """
    settings = from_snapshot(spec.config)
    test, train = load_rows(spec.dataset, "test"), load_rows(spec.dataset, "train")
    model, truth = OnnxModel(Path(candidate), threads=0), test.answers
    answers = _answers(model, test.inputs)
    stable_answers = _answers(OnnxModel(Path(stable), threads=0), test.inputs) if stable else []
    project_files.open_parts(spec)
    metric = settings.evaluate.metric
    names = dict.fromkeys([*spec.dataset.form.metrics, metric])
    evaluators = {name: find_evaluator(name) for name in names}
    gate = evaluators[metric]
    floors = _Floors(model, spec.dataset.form, train, test.inputs)
    majority = gate.evaluate(truth, floors.majority).value or 0.0
    linear = gate.evaluate(truth, floors.linear).value or 0.0
    whole = gate.evaluate(truth, floors.whole).value if floors.whole is not None else None
    difference = paired(gate, truth, answers, stable_answers) if stable else None
    scores = {name: e.evaluate(truth, answers) for name, e in evaluators.items()}
    if difference is None:
        value = scores[metric].value or 0.0
        over_linear = paired(gate, truth, answers, floors.linear)
        verdict, reason = offline_gate.judge_first(
            value, majority, over_linear, margin=settings.evaluate.margin
        )
    else:
        verdict, reason = offline_gate.judge_quality(difference, settings.evaluate.margin)
    return EvaluationReport(
        project=spec.project,
        run_id=spec.run_id,
        metric=metric,
        candidate=scores,
        stable={
            name: e.evaluate(truth, stable_answers) for name, e in evaluators.items() if stable
        },
        difference=difference,
        majority=majority,
        linear_floor=linear,
        linear_whole=whole,
        test_rows=len(truth),
        verdict=verdict,
        reason=reason,
    )


def evaluate_texts(
    spec: RunSpec, candidate: Sequence[TextScore], stable: Sequence[TextScore]
) -> EvaluationReport:
    """Of what a training worker found; `stable` is empty for a first model. There are no floors:
    a majority of answers, or a linear model, writes nothing.

    Raises: ModelError model.other_tokens when both do not divide the answers into the same tokens.
    """
    truth = [TextScore(0.0, each.tokens, each.tokens) for each in candidate]
    if stable and [each.tokens for each in stable] != [each.tokens for each in candidate]:
        raise ModelError(
            "the two models divide the answers into different tokens: a loss per token of one says"
            " nothing of the other.",
            code="model.other_tokens",
            next_step="Compare models of one tokenizer and chat template.",
        )
    project_files.open_parts(spec)
    settings = from_snapshot(spec.config)
    metric = settings.evaluate.metric
    names = dict.fromkeys([*spec.dataset.form.metrics, metric])
    evaluators = {name: find_evaluator(name) for name in names}
    difference = paired(evaluators[metric], truth, candidate, stable) if stable else None
    verdict, reason = "Inconclusive", "no_floors"
    if difference is not None:
        verdict, reason = offline_gate.judge_quality(difference, settings.evaluate.margin)
    return EvaluationReport(
        project=spec.project,
        run_id=spec.run_id,
        metric=metric,
        candidate={name: e.evaluate(truth, candidate) for name, e in evaluators.items()},
        stable={name: e.evaluate(truth, stable) for name, e in evaluators.items() if stable},
        difference=difference,
        majority=None,
        linear_floor=None,
        test_rows=len(truth),
        verdict=verdict,
        reason=reason,
    )


class _Floors:
    """What needs no model of ours. The linear one reads what the model reads; `whole` is set where
    much of the texts lies behind max_length.
    """

    def __init__(
        self, model: OnnxModel, form: TaskForm, train: Rows, inputs: Sequence[Any]
    ) -> None:
        self.majority = majority_predictions(train.answers, inputs, form)
        whole = train.inputs, train.answers, inputs, form
        self.whole: list[Any] | None = None
        if form.reads == "image":
            pixels = [model.pixels(rows) for rows in (train.inputs, inputs)]
            self.linear = linear_predictions(pixels[0], train.answers, pixels[1], form)
            return
        if form.reads == "tokens":
            self.linear = linear_predictions(*whole)
            return
        read = model.seen(train.inputs), model.seen(inputs)
        self.linear = linear_predictions(read[0], train.answers, read[1], form)
        if sum(map(len, read[0])) < WORTH_TELLING * sum(map(len, train.inputs)):
            self.whole = linear_predictions(*whole)


def _answers(model: OnnxModel, inputs: Sequence[Any]) -> list[Any]:
    return [answer.label for answer in model.predict(inputs)]
