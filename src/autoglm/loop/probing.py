"""The evaluators of a run, asked of perfect and constant predictions before anything is trained."""

from __future__ import annotations

from autoglm.contracts.run_spec import RunSpec
from autoglm.contracts.task import TextScore
from autoglm.datasets.dataset_version import load_rows
from autoglm.errors import PluginError
from autoglm.evaluation.probe import Probed, probe
from autoglm.loop.evidence import Asked
from autoglm.plugins import project_files

# Enough to tell a sign, little enough to cost nothing.
PROBED_ROWS = 2000


def probe_evaluators(spec: RunSpec) -> list[Probed]:
    """What each says on the validation rows. One that only reports and breaks is a warning.

    Raises: PluginError of one that picks or constrains (evaluation.asking).
    """
    project_files.open_parts(spec)
    asked = Asked.of(spec)
    truth = load_rows(spec.dataset, "validation").answers[:PROBED_ROWS]
    if spec.dataset.form.answers == "text":
        truth = [TextScore(0.0, words, words) for words in map(_num_words, truth)]
    found = []
    for name, evaluator in asked.evaluators.items():
        role = asked.roles.get(name)
        gates = name == asked.metric or (role is not None and role.role == "constraint")
        if name != asked.metric and role is None:
            continue  # one of ours that is told anyway
        try:
            found.append(probe(evaluator, name, truth))
        except PluginError as error:
            if gates:
                raise
            warning = f"{name} will have no score: {error}"
            found.append(
                Probed(
                    evaluator=name, perfect=None, best_constant=None, constant="", warning=warning
                )
            )
    return found


def _num_words(answer: str) -> int:
    """In place of tokens, which only a tokenizer knows."""
    return max(1, len(answer.split()))
