"""The loop of a study: ask, train, tell, until budget or trials are used up.

open the journal; trials that were asked but not told are taken up first
the project's own values are the first trial, as far as they lie in the space
while trials are left and wall time is left:
params  ← sampler                        (recorded before the trial starts)
chain   ← runner.plan(params)
metrics ← runner.advance(chain)          (idempotent: a stored stage is not trained again)
tell the value                           (recorded exactly once)
best ← highest validation value; among equals the cheapest, then the first
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autoglm.clock import Clock
from autoglm.contracts.record import digest
from autoglm.contracts.trial import StudyResult, Trial
from autoglm.errors import AutoGLMError, CancelledError, SearchError, TrainingError
from autoglm.observability.logging import get_logger
from autoglm.plugins import registry
from autoglm.plugins.kinds import TrialRunner
from autoglm.search.config import SearchConfig
from autoglm.search.constraints import Constraint
from autoglm.search.journal import EventLogJournal
from autoglm.search.proposals import Proposals
from autoglm.search.space import Dimension
from autoglm.state.event_log import EventLog

if TYPE_CHECKING:
    import optuna

OnEvent = Callable[[Mapping[str, Any]], None]


class _CancelOrDeadline(threading.Event):
    """What a trial is told to stop by: the user's `cancel`, or the study's deadline once armed."""

    def __init__(self, cancel: threading.Event, clock: Clock, deadline: float) -> None:
        super().__init__()
        self._cancel, self._clock, self._deadline = cancel, clock, deadline
        self.is_armed = False

    @property
    def is_cancelled(self) -> bool:
        return self._cancel.is_set()

    def is_set(self) -> bool:
        return self.is_cancelled or (self.is_armed and self._clock.monotonic() >= self._deadline)


class Study:
    """One study, named by its run. Resuming is opening it again under the same name."""

    def __init__(
        self,
        *,
        project: str,
        name: str,
        config: SearchConfig,
        dimensions: tuple[Dimension, ...],
        constraints: tuple[Constraint, ...] = (),
        defaults: Mapping[str, Any],
        metric: str,
        seed: int,
        runner: TrialRunner,
        log: EventLog,
        clock: Clock,
        on_event: OnEvent,
    ) -> None:
        self._project, self._name, self._config = project, name, config
        self._metric, self._seed = metric, seed
        self._proposals = Proposals(dimensions=dimensions, constraints=constraints, own=defaults)
        self._runner, self._log, self._clock = runner, log, clock
        self._on_event = on_event
        self._logger = get_logger(study=name)

    def run(self, cancel: threading.Event, *, started: float | None = None) -> StudyResult:
        """`started` (monotonic seconds): the budget counts from there, preparations included.

        Raises: SearchError when no trial could be finished or no point fulfils the constraints,
        CancelledError (resumable).
        """
        started = self._clock.monotonic() if started is None else started
        num_points = self._proposals.num_points()
        study = self._open()
        used = sum(t.user_attrs.get("seconds", 0.0) for t in study.trials)
        stopped_by = "trials"
        limit = min(self._config.trials, num_points or self._config.trials)
        stop = _CancelOrDeadline(
            cancel, self._clock, started + self._config.budget.total_seconds() - used
        )
        while self._num_finished(study) < limit:
            # The first value is waited for, however long it takes: without one there is no result.
            stop.is_armed = self._has_value(study)
            if stop.is_set() and not cancel.is_set():
                stopped_by = "budget"
                break
            self._one_trial(study, stop)
            if self._all_failed(study):
                break
        return self._result(study, stopped_by, used + self._clock.monotonic() - started)

    def _open(self) -> optuna.Study:
        import optuna

        storage = _storage(self._log, self._name)
        study = optuna.create_study(
            storage=storage, study_name=self._name, direction="maximize", load_if_exists=True
        )
        self._same(study)
        first = self._proposals.first()
        if first and not study.trials:
            study.enqueue_trial(first)
        # The number of told trials is part of the seed: a resumed sampler goes on, not back.
        seed = int(digest(self._seed, self._num_finished(study))[:8], 16)
        study.sampler = registry.get("sampler", self._config.sampler)(seed)
        return study

    def _same(self, study: optuna.Study) -> None:
        """Whether what is stored under this name asked the same. Raises: SearchError."""
        asks = self._asks()
        known = study.user_attrs.get("asks", asks)
        if known != asks:
            differs = [name for name in asks if known.get(name) != asks[name]]
            stored, wanted = ({name: each.get(name) for name in differs} for each in (known, asks))
            raise SearchError(
                f"study {self._name} was made for another {' and '.join(differs)}: it holds"
                f" {stored}, asked for is {wanted}.",
                code="search.other_space",
                next_step="Start a new run: results of one space say little of another.",
            )
        if "asks" not in study.user_attrs:
            study.set_user_attr("asks", asks)

    def _asks(self) -> dict[str, Any]:
        """What decides which trials there can be and which is best."""
        return {
            "space": [str(dimension) for dimension in self._proposals.dimensions],
            "constraints": [each.text for each in self._proposals.constraints],
            "metric": self._metric,
            "seed": self._seed,
        }

    def _one_trial(self, study: optuna.Study, stop: _CancelOrDeadline) -> None:
        trial, params = self._proposals.next(study)
        if params != trial.params:
            trial.set_user_attr("params", params)
        started = self._clock.monotonic()
        self._on_event({"kind": "trial_started", "number": trial.number, "params": params})
        try:
            chain = self._runner.plan(params)
            progress = self._runner.advance(chain, chain.num_steps, cancel=stop)
        except CancelledError:
            if stop.is_cancelled:
                raise
            self._cut_off(study, trial)
            return
        except (TrainingError, SearchError) as error:
            if error.retryable:
                raise
            self._fail(study, trial, error)
            return
        seconds = self._clock.monotonic() - started
        value = progress.metrics.get(self._metric)
        if value is None or value != value:
            self._fail(study, trial, _undefined(trial.number, self._metric, progress.metrics))
            return
        trial.set_user_attr("metrics", dict(progress.metrics))
        trial.set_user_attr("chain_key", progress.key)
        trial.set_user_attr("num_steps", progress.num_steps)
        trial.set_user_attr("cpu_seconds", progress.cpu_seconds)
        trial.set_user_attr("seconds", seconds)
        study.tell(trial.number, value)
        self._on_event(
            {"kind": "trial_finished", "number": trial.number, "params": params, "value": value,
             "best": study.best_value, "seconds": seconds}
        )  # fmt: skip

    def _cut_off(self, study: optuna.Study, trial: optuna.Trial) -> None:
        import optuna

        study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
        self._logger.info("trial cut off by the budget", trial=trial.number)
        self._on_event({"kind": "trial_cut_off", "number": trial.number})

    def _fail(self, study: optuna.Study, trial: optuna.Trial, error: AutoGLMError) -> None:
        import optuna

        trial.set_user_attr("cause", str(error))
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        self._logger.warning("trial failed", trial=trial.number, cause=str(error))
        self._on_event({"kind": "trial_failed", "number": trial.number, "cause": str(error)})

    def _num_finished(self, study: optuna.Study) -> int:
        return sum(t.state.name in {"COMPLETE", "FAIL"} for t in study.trials)

    def _has_value(self, study: optuna.Study) -> bool:
        return any(t.state.name == "COMPLETE" for t in study.trials)

    def _all_failed(self, study: optuna.Study) -> bool:
        """Three failures without one success: more of the same would only cost time."""
        return not self._has_value(study) and self._num_finished(study) >= 3

    def _result(self, study: optuna.Study, stopped_by: str, seconds: float) -> StudyResult:
        trials = tuple(
            Trial(
                project=self._project,
                study=self._name,
                number=t.number,
                params=_params(t),
                state="complete" if t.state.name == "COMPLETE" else "failed",
                value=t.value,
                metrics=t.user_attrs.get("metrics", {}),
                chain_key=t.user_attrs.get("chain_key", ""),
                num_steps=t.user_attrs.get("num_steps", 0),
                seconds=t.user_attrs.get("seconds", 0.0),
                cpu_seconds=t.user_attrs.get("cpu_seconds", 0.0),
                cause=t.user_attrs.get("cause", ""),
            )
            for t in study.trials
            if t.state.name in {"COMPLETE", "FAIL"}
        )
        complete = [t for t in trials if t.value is not None]
        if not complete:
            cause = next((t.cause for t in trials if t.cause), "no trial was started")
            raise SearchError(f"no trial could be finished; the first cause: {cause}")
        best = min(complete, key=lambda t: (-(t.value or 0.0), t.cpu_seconds, t.number))
        return StudyResult(
            project=self._project,
            study=self._name,
            metric=self._metric,
            best=best,
            trials=trials,
            stopped_by=stopped_by,
            seconds=seconds,
        )


def told_params(log: EventLog, name: str) -> dict[int, dict[str, Any]]:
    """Trial number → parameters of the study `name`; empty when there is no such study."""
    import optuna

    try:
        study = optuna.load_study(study_name=name, storage=_storage(log, name))
    except KeyError:
        return {}
    return {t.number: _params(t) for t in study.trials if t.params}


def _params(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """The values of the keys, where they are not what Optuna was told."""
    return dict(trial.user_attrs.get("params", trial.params))


def _storage(log: EventLog, name: str) -> optuna.storages.JournalStorage:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.storages.JournalStorage(EventLogJournal(log, f"study/{name}"))


def _undefined(number: int, metric: str, metrics: Mapping[str, float]) -> SearchError:
    """As an F1 of entities is on rows without any."""
    others = sorted(n for n, value in metrics.items() if n != "loss" and value == value)
    return SearchError(
        f"trial {number} has no {metric}: the validation rows hold nothing that it counts.",
        code="search.undefined",
        next_step=f"Set evaluate.metric to one that they have: {', '.join(others)}."
        if others
        else "Add rows.",
    )
