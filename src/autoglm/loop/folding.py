"""Whether the rows can be dealt into as many folds as asked, told before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from autoglm.contracts.run_spec import RunSpec
from autoglm.datasets.dataset_version import load_rows
from autoglm.errors import PluginError, SearchError
from autoglm.evaluation.evaluator import find_evaluator
from autoglm.evaluation.probe import probe
from autoglm.plugins import project_files
from autoglm.plugins.kinds import Evaluator

# Enough to tell whether there is a value at all.
PROBED_ROWS = 2000


def probe_folds(spec: RunSpec) -> str:
    """What folds will lack, in words; empty when each has rows of every label.

    Raises: SearchError search.folds for more folds than rows, for a start from the model in
    service, which has learnt from all of them, or where a metric that is sought has
    no value, not even of a perfect prediction, on a fold without the rarest labels.
    """
    project_files.open_parts(spec)
    folds = int(spec.config["search"]["folds"])
    if spec.config["model"]["start_from"] == "stable":
        said = f"search.folds is {folds}, and stable has learnt from the rows that would validate."
        raise _refused(said, "Set model.start_from to auto or backbone, or search.folds to 0.")
    answers = [a for part in ("train", "validation") for a in load_rows(spec.dataset, part).answers]
    if len(answers) < folds:
        said = f"search.folds is {folds}, and there are {len(answers):,} rows to be dealt."
        raise _refused(said, f"Set search.folds to {len(answers)} or fewer.")
    if spec.dataset.form.answers != "label":
        return ""
    rare = {label: num for label, num in Counter(answers).items() if num < folds}
    sought = [spec.config["evaluate"]["metric"], *spec.config["search"].get("objectives", ())]
    asked = {*sought} - {*spec.dataset.form.metrics}  # which have a value on any labelled row
    for label, num in sorted(rare.items()):
        without = [answer for answer in answers if answer != label][:PROBED_ROWS]
        for name in sorted(asked):
            if without and not _has_value(find_evaluator(name), name, without):
                fewer = f"Set search.folds to {num} or fewer, " if num > 1 else "Add rows of it, "
                said = f"{_lacking(folds, {label: num})}, where {name} has no value."
                raise _refused(said, f"{fewer}or choose another metric.")
    return f"{_lacking(folds, rare)}." if rare else ""


def _has_value(evaluator: Evaluator, name: str, truth: Sequence[Any]) -> bool:
    try:
        return probe(evaluator, name, truth).perfect is not None
    except PluginError:  # as a fold's value would be: what raises has none
        return False


def _lacking(folds: int, rare: dict[str, int]) -> str:
    shown = ", ".join(f"{label!r} has {num}" for label, num in sorted(rare.items()))
    return (
        f"search.folds is {folds}, and of the rows to be dealt {shown}: some folds validate without"
        " such rows"
    )


def _refused(message: str, next_step: str) -> SearchError:
    return SearchError(message, code="search.folds", next_step=next_step, exit_code=2)
