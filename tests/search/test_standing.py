from __future__ import annotations

from typing import Any

import optuna
from optuna.trial import TrialState

from autoglm.search.standing import standing_of

FACTS = {"curve": {"1": 0.5, "2": 0.7}, "seconds": 2.0, "cpu_seconds": 3.0, "keeps": False}


def trial_with(attributes: dict[str, Any]) -> optuna.trial.FrozenTrial:
    return optuna.create_trial(
        state=TrialState.COMPLETE, value=0.7, user_attrs={"params": {"training.lr": 0.1}, **attributes}
    )  # fmt: skip


def test_facts_that_earlier_versions_wrote_one_by_one_are_read_alike() -> None:
    now = standing_of(trial_with({"facts": FACTS}), 1)
    assert now is not None
    assert now == standing_of(trial_with(FACTS), 1)
    assert (now.scores, now.seconds, now.keeps) == ({1: 0.5, 2: 0.7}, 2.0, False)
