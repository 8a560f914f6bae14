"""Candidate, stable and the floors on the same test rows; the offline gate's verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autoglm.contracts.evaluation_report import EvaluationReport, Score
from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.task import TaskForm, TextScore
from autoglm.datasets.dataset_version import Rows, load_rows
from autoglm.errors import ModelError
from autoglm.evaluation.asking import needs_proba, value_of
from autoglm.evaluation.evaluator import paired
from autoglm.evaluation.floors import linear_predictions, majority_predictions, majority_shares
from autoglm.evaluation.resampling import UNDEFINED
from autoglm.evaluation.roles import MEASURED
from autoglm.loop.evidence import Asked, Said, find_slices, slice_scores
from autoglm.modeling.kept_logits import KeptLogits
from autoglm.modeling.onnx_model import OnnxModel
from autoglm.plugins import project_files
from autoglm.plugins.kinds import Evaluator
from autoglm.release import offline_gate
from autoglm.settings import Settings, from_snapshot

# A text of which the model reads less than this share has something to tell behind max_length.
WORTH_TELLING = 0.9


def evaluate_candidate(
    spec: RunSpec,
    candidate: str,
    stable: str,
    since: int | None = None,
    *,
    cache: Path | None = None,
    fits_floor: bool = True,
) -> EvaluationReport:
    """`candidate` and `stable` are model folders; `stable` is empty for a first model, which
    the first of a task is too. `since` is the dataset version that stable learnt from. What models
    said of rows is looked for, and kept, in the folder `cache`. Where stable judges, the linear
    floor is only shown: without `fits_floor` it is left out.

    Raises: PluginError of an evaluator that picks or constrains (evaluation.asking).
    """
    settings = from_snapshot(spec.config)
    project_files.open_parts(spec)
    asked = Asked.of(spec)
    test, train = load_rows(spec.dataset, "test"), load_rows(spec.dataset, "train")
    kept = cache / "logits" if cache is not None and settings.cache.logits else None
    model, truth = _opened(candidate, kept), test.answers
    said = asked.say(model, test.inputs)
    other = asked.say(_opened(stable, kept), test.inputs) if stable else None
    scores = asked.scores(truth, said)
    stable_scores = asked.scores(truth, other) if other is not None else {}
    scores |= _measured(asked, spec, settings, candidate)
    stable_scores |= _measured(asked, spec, settings, stable)
    slices = find_slices(spec, settings, test, since if stable else None)
    floors = _Floors(
        model, spec.dataset.form, train, test.inputs, is_linear=fits_floor or other is None
    )
    gate, shown = asked.gate, floors.values(asked.gate, truth)
    mine, margin = said.to(gate), settings.evaluate.margin
    difference = paired(gate, truth, mine, other.to(gate)) if other is not None else None
    if other is None:
        floor = None if needs_proba(gate) else floors.linear
        linear = None if floor is None else paired(gate, truth, mine, floor)
        value = scores[asked.metric].value
        judged = offline_gate.judge_first(value, shown["majority"], linear, margin=margin)
    else:
        judged = offline_gate.judge_quality(difference, margin)
    missed = asked.missed(scores)
    verdict, reason = offline_gate.judge_constraints(judged, missed, asked.unknown(scores))
    return EvaluationReport(
        project=spec.project,
        run_id=spec.run_id,
        metric=asked.metric,
        candidate=scores,
        stable=stable_scores,
        difference=difference,
        test_rows=len(truth),
        verdict=verdict,
        reason=reason,
        slices=slice_scores(asked, slices, truth, said, other),
        constraints=asked.constraints,
        missed=missed,
        problems=asked.problems,
        **shown,
    )


def _opened(folder: str, kept: Path | None) -> OnnxModel:
    if kept is None:
        return OnnxModel(Path(folder), threads=0)
    return KeptLogits(Path(folder), threads=0, kept=kept)


def _measured(asked: Asked, spec: RunSpec, settings: Settings, folder: str) -> Mapping[str, Score]:
    """Of a folder as it will be served, on rows that nothing else is judged by."""
    if not folder or not set(asked.roles) & set(MEASURED):
        return {}
    rows = load_rows(spec.dataset, "validation")
    return asked.measured(Path(folder), rows, settings.serving.threads)


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
    asked = Asked.of(spec)
    sides = [Said(answers=side) for side in (candidate, stable)]
    scores = asked.scores(truth, sides[0])
    # Nobody exports such a model for the gateway: what is measured of an export has no value.
    scores |= {name: UNDEFINED for name in MEASURED if name in asked.roles}
    difference = paired(asked.gate, truth, candidate, stable) if stable else None
    judged = "Inconclusive", "no_floors"
    if stable:
        judged = offline_gate.judge_quality(difference, settings.evaluate.margin)
    missed = asked.missed(scores)
    verdict, reason = offline_gate.judge_constraints(judged, missed, asked.unknown(scores))
    return EvaluationReport(
        project=spec.project,
        run_id=spec.run_id,
        metric=asked.metric,
        candidate=scores,
        stable=asked.scores(truth, sides[1]) if stable else {},
        difference=difference,
        constraints=asked.constraints,
        missed=missed,
        problems=asked.problems,
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
        self,
        model: OnnxModel,
        form: TaskForm,
        train: Rows,
        inputs: Sequence[Any],
        *,
        is_linear: bool,
    ) -> None:
        self.majority = majority_predictions(train.answers, inputs, form)
        # Asked for by what judges shares of labels, which numbers do not have.
        self._majority_shares = partial(majority_shares, train.answers, inputs, model.labels)
        whole = train.inputs, train.answers, inputs, form
        self.linear: list[Any] | None = None
        self.whole: list[Any] | None = None
        if not is_linear:
            return
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

    def values(self, gate: Evaluator, truth: Sequence[Any]) -> dict[str, float | None]:
        """What the floors are worth to the gate, as the report names them; no linear one where it
        judges shares.
        """
        has_shares = needs_proba(gate)
        of_majority = self._majority_shares() if has_shares else self.majority
        linear, whole = (None, None) if has_shares else (self.linear, self.whole)
        said = {"majority": of_majority, "linear_floor": linear, "linear_whole": whole}
        return {
            name: None if answers is None else value_of(gate, truth, answers)
            for name, answers in said.items()
        }
