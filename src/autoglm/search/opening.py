"""A study under its name: made with what it asks and its first points, or opened as it lies."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoglm.contracts.record import from_json, to_json
from autoglm.contracts.trial import Removal
from autoglm.errors import AutoGLMError, SearchError
from autoglm.evaluation.roles import Role
from autoglm.search.proposals import Proposals
from autoglm.search.results import Objective
from autoglm.search.samplers import Samplers
from autoglm.search.standing import BEGAN_AT, EITHER
from autoglm.state.event_log import EventLog

# Of a study that broke off: its error.
FAILED = "failed"

if TYPE_CHECKING:
    import optuna

    from autoglm.search.journal import StudyStorage
    from autoglm.search.refresh import Refresh


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What decides which trials there can be and which is best."""

    proposals: Proposals
    metric: str
    maximize: bool
    objectives: Sequence[Objective]
    seed: int
    removed: Sequence[Removal]
    num_folds: int = 0
    bounds: Sequence[Role] = ()

    @property
    def directions(self) -> list[str]:
        claims = [each.maximize for each in self.objectives] or [self.maximize]
        return ["maximize" if claim else "minimize" for claim in claims]

    def to_json(self) -> dict[str, Any]:
        asks = {
            "space": [str(dimension) for dimension in self.proposals.dimensions],
            "constraints": [each.text for each in self.proposals.constraints],
            "metric": self.metric,
            "seed": self.seed,
        }
        if self.proposals.fixed:
            asks["fixed"] = dict(self.proposals.fixed)
        if self.num_folds:
            asks["folds"] = self.num_folds
        if self.objectives:
            asks["objectives"] = [each.name for each in self.objectives]
        return asks if self.maximize else {**asks, "lower_is_better": True}


def open_study(
    log: EventLog,
    name: str,
    asked: Asked,
    samplers: Samplers,
    *,
    num_hints_for: int,
    refresh: Refresh | None = None,
    start: str = "",
) -> tuple[optuna.Study, StudyStorage]:
    """One commit. A new study begins with the points of `refresh`, its own first points and, of the
    best of earlier studies, with as many as fit `num_hints_for` trials. `start`: where its trials
    begin, the `backbone` or `stable`, of which it keeps a note.

    Raises: SearchError search.other_space.
    """
    import optuna

    from autoglm.search import journal
    from autoglm.search.warm_start import hints

    storage = journal.writing(log, name)
    with storage.batch():
        sampler = samplers.of(0)
        try:
            study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
        except KeyError:
            study = optuna.create_study(
                storage=storage, study_name=name, sampler=sampler, directions=asked.directions
            )
        _refuse_another(study, asked.to_json())
        if "asks" not in study.user_attrs:
            study.set_user_attr("asks", asked.to_json())
            study.set_user_attr("removed", [to_json(removal) for removal in asked.removed])
            study.set_user_attr("bounds", [to_json(bound) for bound in asked.bounds])
            study.set_user_attr(BEGAN_AT, start)
        began_at = study.user_attrs.get(BEGAN_AT, start)
        if "stopped_by" not in study.user_attrs and began_at != start:
            study.set_user_attr(BEGAN_AT, EITHER)  # it goes on behind a release
        if study.user_attrs.get(FAILED):
            study.set_user_attr(FAILED, "")
        if storage.recorded(study._study_id):
            return study, storage
        if refresh is not None:
            for point in refresh.points:
                study.enqueue_trial(dict(point))
            study.set_user_attr("refresh", to_json(refresh))
        asked.proposals.enqueue_first(study)
        if num_hints_for:
            found = hints(log, name, asked.to_json(), num_trials=num_hints_for)
            for hint in found:
                study.enqueue_trial(hint.pop("told"))
            study.set_user_attr("hints", found)
    return study, storage


def note_failure(log: EventLog, name: str, error: AutoGLMError) -> None:
    """That the study, if there is one, did not end but broke off, and of what."""
    from autoglm.search import journal
    from autoglm.search.warm_start import open_study as looked_at

    if looked_at(log, name) is None:
        return
    import optuna

    with contextlib.suppress(AutoGLMError):  # else that error would hide the first one
        storage = journal.writing(log, name)
        with storage.batch():
            study = optuna.load_study(study_name=name, storage=storage)
            study.set_user_attr(FAILED, f"{error.code}: {error.message}")


def refresh_in(study: optuna.Study) -> Refresh | None:
    """The answer that it began with: what was found when it was made holds when it goes on."""
    from autoglm.search.refresh import Refresh

    said = study.user_attrs.get("refresh")
    return None if said is None else from_json(Refresh, said)


def values_beside(refresh: Refresh | None, number: int) -> Mapping[str, Any]:
    """Of the trial `number`, what no dimension asks."""
    beside = refresh.beside if refresh is not None else ()
    return beside[number] if number < len(beside) else {}


def num_points(proposals: Proposals, samplers: Samplers) -> int | None:
    """How many trials there can be; None where there is no end of them.

    Raises: SearchError search.infeasible, search.endless.
    """
    num = proposals.num_points()
    if num is None and samplers.is_exhaustive:
        shown = ", ".join(str(d) for d in proposals.dimensions if d.points() is None)
        raise SearchError(
            f"search.sampler = {samplers.name!r} tries every point, and there is no end"
            f" of them: {shown or 'too many combinations'}.",
            code="search.endless",
            next_step="Write choice, randint or quniform, or take another sampler.",
            exit_code=2,
        )
    return num


def _refuse_another(study: optuna.Study, asks: Mapping[str, Any]) -> None:
    """Whether what is stored under this name asked the same. Raises: SearchError."""
    known = study.user_attrs.get("asks", asks)
    differs = [name for name in {**asks, **known} if known.get(name) != asks.get(name)]
    if differs:
        stored, wanted = ({name: each.get(name) for name in differs} for each in (known, asks))
        raise SearchError(
            f"study {study.study_name} was made for another {' and '.join(differs)}: it holds"
            f" {stored}, asked for is {wanted}.",
            code="search.other_space",
            next_step="Start a new run: results of one space say little of another.",
            exit_code=2,
        )
