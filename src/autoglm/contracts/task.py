"""What the columns of a task hold, for everything that does not train: no torch in here.

text · tokens · image   ─► model ─►   label · labels · number · tags · text

A label is a text; labels are a set of texts; a number is a float; tags are a tuple with a text per
token; a text is one that is written, not chosen. In JSON they are a text, a sorted list, a number,
a list and a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Reads = Literal["text", "tokens", "image"]
Answers = Literal["label", "labels", "number", "tags", "text"]
TaskName = Literal[
    "text-classification",
    "multi-label-classification",
    "token-classification",
    "regression",
    "image-classification",
    "sequence-modeling",
    "causal-lm",
]


# What is told of answers of each form, by name (evaluation.metrics computes them).
METRICS_OF: Mapping[str, tuple[str, ...]] = {
    "label": ("accuracy", "macro_f1", "minority_recall"),
    "labels": ("accuracy", "macro_f1", "micro_f1"),
    "tags": ("accuracy", "entity_f1"),
    "number": ("r2", "negative_mae", "negative_rmse"),
    "text": ("negative_loss", "token_accuracy"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskForm:
    """`metric` is the one that picks and gates unless the project names another."""

    reads: Reads
    answers: Answers
    metric: str

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS_OF[self.answers]


TASKS: Mapping[str, TaskForm] = {
    "text-classification": TaskForm(reads="text", answers="label", metric="macro_f1"),
    "multi-label-classification": TaskForm(reads="text", answers="labels", metric="micro_f1"),
    "token-classification": TaskForm(reads="tokens", answers="tags", metric="entity_f1"),
    "regression": TaskForm(reads="text", answers="number", metric="r2"),
    "image-classification": TaskForm(reads="image", answers="label", metric="accuracy"),
    "sequence-modeling": TaskForm(reads="text", answers="label", metric="macro_f1"),
    "causal-lm": TaskForm(reads="text", answers="text", metric="negative_loss"),
}


@dataclass(frozen=True, slots=True)
class TextScore:
    """What a model gives to the tokens of one known answer, each read behind the right ones before
    it: their negative log-likelihood, how many there are, and of how many it is the likeliest.
    """

    nll: float
    tokens: int
    hits: int


def answer_to_json(answer: Any) -> Any:
    """A label, labels, a number or tags as JSON has it."""
    if isinstance(answer, frozenset):
        return sorted(answer)
    return list(answer) if isinstance(answer, tuple) else answer


def answer_from_json(answer: Any, form: TaskForm) -> Any:
    """The reverse, for the answers of a task. Raises: ValueError when it is none."""
    if form.answers == "number":
        if isinstance(answer, bool) or not isinstance(answer, (int, float)):
            raise ValueError(f"{answer!r:.80} is no number")
        return float(answer)
    if form.answers in {"labels", "tags"}:
        if not isinstance(answer, list) or not all(isinstance(each, str) for each in answer):
            raise ValueError(f"{answer!r:.80} is no list of texts")
        return frozenset(answer) if form.answers == "labels" else tuple(answer)
    if not isinstance(answer, str):
        raise ValueError(f"{answer!r:.80} is no text")
    return answer
