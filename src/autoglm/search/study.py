"""The loop of a study: ask, train from rung to rung, tell, until a bound is reached.

open the journal; the project's own values and earlier studies' best points are the first trials
trials before the sampler has learnt anything are asked at once and run cheapest first
while trials are left and no bound is reached:
next    ← the trial that was going on, else the one that the scheduler promotes, else an asked
          one, else a new one of the sampler                     (recorded before it is trained)
metrics ← runner.advance(chain, end of the next rung)            (idempotent: no step twice)
record the value; tell it at the chain's end (exactly once), else the scheduler's verdict
the best paused trial is trained to its end while it is better than every complete one
best ← best validation value of the complete, of those that keep the constraints of evaluate.metrics
       if any do; among equals the cheapest, then the first
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoglm.clock import Clock
from autoglm.contracts.record import to_json
from autoglm.contracts.stage_chain import Progress, StageChain
from autoglm.contracts.trial import Removal, StudyResult
from autoglm.errors import (
    AutoGLMError,
    CancelledError,
    ModelError,
    SearchError,
    TrainingError,
    from_system,
)
from autoglm.observability.logging import get_logger
from autoglm.plugins.kinds import TrialRunner
from autoglm.search.affordable import MOST_TOO_DEAR, next_affordable, tighter_budget
from autoglm.search.config import SearchConfig
from autoglm.search.constraints import Constraint
from autoglm.search.proposals import Proposals
from autoglm.search.results import Fulfils, Objective, all_failed, result_of, undefined
from autoglm.search.samplers import Samplers
from autoglm.search.schedulers import make_scheduler
from autoglm.search.space import Dimension
from autoglm.search.standing import (
    COST,
    CURVE,
    FACTS,
    KEEPS,
    PARAMS,
    PROMOTED,
    Standing,
    standing_of,
    winner_of,
)
from autoglm.search.stopping import CancelOrDeadline, reason_to_stop
from autoglm.state.event_log import EventLog

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from autoglm.search.journal import StudyStorage

OnEvent = Callable[[Mapping[str, Any]], None]


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
        maximize: bool = True,
        objectives: Sequence[Objective] = (),
        seed: int,
        runner: TrialRunner,
        log: EventLog,
        clock: Clock,
        on_event: OnEvent,
        fulfils: Fulfils = lambda _metrics: True,
        fixed: Mapping[str, Any] | None = None,
        removed: tuple[Removal, ...] = (),
    ) -> None:
        self._removed = removed
        self._fulfils = fulfils
        self._project, self._name, self._config = project, name, config
        self._metric, self._sign, self._seed = metric, 1 if maximize else -1, seed
        self._objectives = tuple(objectives)
        fixed = dict(fixed or {})
        self._proposals = Proposals(
            dimensions=dimensions, constraints=constraints, own={**defaults, **fixed}, fixed=fixed
        )
        self._samplers = Samplers(config.sampler, seed)
        self._scheduler = make_scheduler(config, seed)
        self._runner, self._log, self._clock = runner, log, clock
        self._on_event = on_event
        self._logger = get_logger(study=name)
        self._chains: dict[int, StageChain] = {}
        self._read: dict[int, tuple[FrozenTrial, Standing | None]] = {}
        self._forgiven: set[int] = set()
        self._study: optuna.Study
        self._storage: StudyStorage

    def run(self, cancel: threading.Event, *, started: float | None = None) -> StudyResult:
        """`started` (monotonic seconds): the budget counts from there, preparations included.

        Raises: SearchError when no trial could be finished, no point fulfils the constraints or
        the stored study asked something else; CancelledError (resumable); FencedError when
        another process took the study over.
        """
        started = self._clock.monotonic() if started is None else started
        num_points = self._num_points()
        self._open()
        self._forgiven = {*self._study.user_attrs.get("forgiven", ())}
        used = sum(each.seconds for each in self._standings())
        deadline = started + self._config.budget.total_seconds() - used
        stop = CancelOrDeadline(cancel, self._clock, deadline)
        stopped_by = self._study.user_attrs.get("stopped_by", "")
        if not stopped_by:
            stopped_by = self._work(stop, num_points)
            self._end(stopped_by, used + self._clock.monotonic() - started)
        return result_of(
            self._study, project=self._project, metric=self._metric, sign=self._sign,
            objectives=self._objectives, trials=self._storage.recorded(self._study._study_id),
            fulfils=self._fulfils, removed=self._removed,
        )  # fmt: skip

    def _work(self, stop: CancelOrDeadline, num_points: int | None) -> str:
        """Train until there is nothing more to do; says what ended it."""
        limit = min(self._config.trials, num_points or self._config.trials)
        done = "space" if limit < self._config.trials else "trials"
        while True:
            standings = self._standings()
            # The first value is waited for, however long it takes: without one there is no result.
            stop.is_armed = any(each.state == "complete" for each in standings)
            reason = reason_to_stop(self._config, standings, stop)
            if stop.is_cancelled:
                raise CancelledError("the search was stopped.", next_step="It can be resumed.")
            if all_failed(standings):
                return reason or done
            each = self._next(standings, stop, reason, limit)
            if each is None:
                return reason or self._too_dear(stop) or done
            if each.state == "half_asked":
                self._ask_rest(each)
            else:
                self._advance(each, stop, to_the_end=bool(reason))

    def _next(
        self, standings: Sequence[Standing], stop: CancelOrDeadline, reason: str, limit: int
    ) -> Standing | None:
        """The trial to be trained now; None when there is nothing more to do."""
        going_on = [each for each in standings if each.state == "going_on"]
        paused = [each for each in standings if each.state == "paused"]
        complete = [each for each in standings if each.state == "complete"]
        if reason:
            if complete:
                return None
            if going_on or paused:
                return winner_of(going_on + paused)
        half_asked = [each for each in standings if each.state == "half_asked"]
        if going_on or half_asked:
            return (half_asked + going_on)[0]
        if resumed := self._scheduler.promoted(standings):
            return resumed
        if (new := self._new(standings, stop, limit)) is not None:
            return new
        # What is served was trained to its end: the best of the paused is, while it is the best.
        winner = winner_of(paused + complete)
        return winner if winner is not None and winner.state == "paused" else None

    def _new(
        self, standings: Sequence[Standing], stop: CancelOrDeadline, limit: int
    ) -> Standing | None:
        """An asked trial that can be paid for; the sampler is asked on until one can."""
        others = [each for each in standings if each.state != "asked"]
        asked = [each for each in standings if each.state == "asked"]
        while True:
            found = self._affordable(asked, others, stop)
            room = min(limit - len(others) - len(asked), MOST_TOO_DEAR - len(asked))
            if found is not None or room < 1:
                return found
            asked += self._ask(limit - len(others) - len(asked))

    def _affordable(
        self, asked: Sequence[Standing], others: Sequence[Standing], stop: CancelOrDeadline
    ) -> Standing | None:
        if self._scheduler.pauses:  # what it has come to when the budget ends is not lost
            return min(asked, key=lambda each: (each.cost, each.number), default=None)
        return next_affordable(asked, others, self._config, seconds_left=stop.seconds_left)

    def _too_dear(self, stop: CancelOrDeadline) -> str:
        """The budget that pays for none of the asked trials; empty when none is asked."""
        standings = self._standings()
        if not any(each.state == "asked" for each in standings):
            return ""
        which, _left = tighter_budget(standings, self._config, seconds_left=stop.seconds_left)
        return which

    def _ask(self, most: int) -> list[Standing]:
        """The next trials: several at once before the sampler has learnt anything, with what they
        will cost; else one. One commit.
        """
        num_asked = len(self._standings())
        num = max(1, min(most, self._samplers.num_startup - num_asked))
        numbers = set()
        with self._storage.batch():
            for _ in range(num):
                trial, params = self._proposals.next(self._study, self._samplers.of)
                trial.set_user_attr(PARAMS, params)
                numbers.add(trial.number)
                trial.set_user_attr(COST, self._cost(trial.number, params))
        return [each for each in self._standings() if each.number in numbers]

    def _cost(self, number: int, params: Mapping[str, Any]) -> float:
        """Expected CPU-seconds; a trial that cannot be planned fails when its turn comes, first."""
        try:
            self._chains[number] = self._runner.plan(params)
            return self._runner.cost(self._chains[number]).cpu_seconds
        except (ModelError, TrainingError, SearchError) as error:
            if error.retryable:
                raise
            return 0.0

    def _ask_rest(self, each: Standing) -> None:
        with self._storage.batch():
            sampler = self._samplers.of(each.number)
            asked = self._proposals.again(self._study, each.trial_id, sampler)
            if asked is not None:
                asked[0].set_user_attr(PARAMS, asked[1])

    def _advance(self, each: Standing, stop: CancelOrDeadline, *, to_the_end: bool) -> None:
        """Train to the next rung and record what came of it."""
        if each.state == "asked":
            self._tell("trial_started", each, params=each.params)
        started = self._clock.monotonic()
        try:
            chain = self._chains.get(each.number) or self._runner.plan(each.params)
            self._chains[each.number] = chain
            stage = self._next_rung(each, chain, to_the_end=to_the_end)
            if each.state == "paused":
                self._promote(each, stage)
                self._tell("trial_promoted", each, stage=stage, value=self._value(each))
            progress = self._runner.advance(chain, chain.boundaries[stage - 1], cancel=stop)
        except CancelledError:
            if stop.is_cancelled:
                raise
            self._cut_off(each)
            return
        except (TrainingError, SearchError) as error:
            if full := from_system(error):
                raise full from error  # no fault of the trial's
            if error.retryable:
                raise
            self._fail(each, error, self._clock.monotonic() - started)
            return
        self._record(each, progress, stage, self._clock.monotonic() - started)

    def _next_rung(self, each: Standing, chain: StageChain, *, to_the_end: bool) -> int:
        num_stages = len(chain.stages)
        rungs = self._scheduler.rungs(each.number, num_stages)
        ahead = [rung for rung in rungs if rung > each.reached]
        return num_stages if to_the_end or not ahead else ahead[0]

    def _record(self, each: Standing, progress: Progress, stage: int, seconds: float) -> None:
        """One commit: what was measured, and what it means for the trial."""
        missing = [
            name
            for name in (self._metric, *(objective.name for objective in self._objectives))
            if (value := progress.metrics.get(name)) is None or value != value
        ]
        if missing:
            self._fail(each, undefined(each.number, missing[0], progress.metrics), seconds)
            return
        value = progress.metrics[self._metric]
        scores = {**each.scores, stage: self._sign * value}
        paid, saved = _paid(each, progress)
        mine = replace(each, scores=scores, seconds=each.seconds + seconds)
        facts: dict[str, Any] = {
            CURVE: {str(at): self._sign * score for at, score in scores.items()},
            "metrics": dict(progress.metrics),
            KEEPS: self._fulfils(progress.metrics),
            "chain_key": progress.key,
            "num_steps": progress.step,
            "cpu_seconds": paid,
            "seconds": mine.seconds,
            "saved": saved,
        }
        others = [s for s in self._standings() if s.number != each.number]
        is_over = progress.is_done or progress.is_stopped
        verdict = "complete" if is_over else self._scheduler.verdict(mine, others)
        with self._storage.batch():
            if not self._objectives:
                self._storage.set_trial_intermediate_value(each.trial_id, stage, value)
            if verdict == "go_on":
                rung = self._next_rung(mine, self._chains[each.number], to_the_end=False)
                self._promote(each, rung)
            facts["at"] = {
                "seconds": mine.seconds + sum(s.seconds for s in others),
                "cpu_seconds": paid + sum(s.cpu_seconds for s in others),
            }
            self._set(each, facts)
            if verdict == "complete":
                told = [progress.metrics[objective.name] for objective in self._objectives]
                self._over(each, told or [value])
            elif verdict == "stop":
                self._over(mine, state="PRUNED")
        self._tell_recorded(mine, verdict, value, others)

    def _tell_recorded(
        self, mine: Standing, verdict: str, value: float, others: Sequence[Standing]
    ) -> None:
        done = [s.score for s in others if s.state == "complete" and s.score is not None]
        kind = {"complete": "trial_finished", "stop": "trial_stopped"}.get(verdict, "trial_paused")
        if verdict == "go_on":
            return
        best = self._sign * max([*done, self._sign * value])
        self._tell(
            kind, mine, params=mine.params, value=value, best=best, seconds=mine.seconds,
            stage=mine.reached,
        )  # fmt: skip

    def _cut_off(self, each: Standing) -> None:
        self._over(each, state="PRUNED")
        self._logger.info("trial cut off by the budget", trial=each.number)
        self._tell("trial_cut_off", each)

    def _fail(self, each: Standing, error: AutoGLMError, seconds: float) -> None:
        with self._storage.batch():
            self._set(each, {"cause": str(error), "seconds": each.seconds + seconds})
            self._over(each, state="FAIL")
        self._logger.warning("trial failed", trial=each.number, cause=str(error))
        self._tell("trial_failed", each, cause=str(error))

    def _over(self, each: Standing, values: Sequence[float] = (), *, state: str = "") -> None:
        """Tell the sampler, and write it down. This is Optuna's `tell` without its copies of all
        trials. A sampler that has seen every point stops Optuna's own loop, which is not running.
        """
        from optuna.trial import TrialState

        ended = TrialState[state] if state else TrialState.COMPLETE
        told = list(values) or None
        if ended == TrialState.PRUNED and each.score is not None and not self._objectives:
            told = [self._sign * each.score]
        trial = self._storage.get_trial(each.trial_id)
        with contextlib.suppress(RuntimeError):
            self._study.sampler.after_trial(self._study, trial, ended, told)
        self._storage.set_trial_state_values(each.trial_id, ended, told)
        self._chains.pop(each.number, None)

    def _end(self, stopped_by: str, seconds: float) -> None:
        """One commit: what is still open is told, and why the study ended."""
        standings = self._standings()
        if not any(each.state == "complete" for each in standings):
            # There is no result to be kept. Called again, when the cause is mended, it tries again.
            failed = [each.number for each in standings if each.state == "failed"]
            self._study.set_user_attr("forgiven", [*self._forgiven, *failed])
            return
        with self._storage.batch():
            for each in standings:
                if not each.is_over:
                    self._over(each, state="PRUNED")
            self._study.set_user_attr("seconds", seconds)
            self._study.set_user_attr("stopped_by", stopped_by)

    def _num_points(self) -> int | None:
        """Raises: SearchError search.infeasible, search.endless."""
        num = self._proposals.num_points()
        if num is None and self._samplers.is_exhaustive:
            shown = ", ".join(str(d) for d in self._proposals.dimensions if d.points() is None)
            raise SearchError(
                f"search.sampler = {self._samplers.name!r} tries every point, and there is no end"
                f" of them: {shown or 'too many combinations'}.",
                code="search.endless",
                next_step="Write choice, randint or quniform, or take another sampler.",
                exit_code=2,
            )
        return num

    def _open(self) -> None:
        """One commit: a new study, what it asks, and its first points."""
        import optuna

        from autoglm.search import journal
        from autoglm.search.warm_start import hints

        self._storage = journal.writing(self._log, self._name)
        directions = ["maximize" if o.maximize else "minimize" for o in self._objectives]
        with self._storage.batch():
            try:
                self._study = optuna.load_study(
                    study_name=self._name, storage=self._storage, sampler=self._samplers.of(0)
                )
            except KeyError:
                self._study = optuna.create_study(
                    storage=self._storage, study_name=self._name, sampler=self._samplers.of(0),
                    directions=directions or ["maximize" if self._sign > 0 else "minimize"],
                )  # fmt: skip
            self._same()
            if self._storage.recorded(self._study._study_id):
                return
            self._proposals.enqueue_first(self._study)
            if self._config.warm_start:
                found = hints(self._log, self._name, self._asks(), num_trials=self._config.trials)
                for hint in found:
                    self._study.enqueue_trial(hint.pop("told"))
                self._study.set_user_attr("hints", found)

    def _same(self) -> None:
        """Whether what is stored under this name asked the same. Raises: SearchError."""
        asks, study = self._asks(), self._study
        known = study.user_attrs.get("asks", asks)
        differs = [name for name in {**asks, **known} if known.get(name) != asks.get(name)]
        if differs:
            stored, wanted = ({name: each.get(name) for name in differs} for each in (known, asks))
            raise SearchError(
                f"study {self._name} was made for another {' and '.join(differs)}: it holds"
                f" {stored}, asked for is {wanted}.",
                code="search.other_space",
                next_step="Start a new run: results of one space say little of another.",
                exit_code=2,
            )
        if "asks" not in study.user_attrs:
            study.set_user_attr("asks", asks)
            study.set_user_attr("removed", [to_json(removal) for removal in self._removed])

    def _asks(self) -> dict[str, Any]:
        """What decides which trials there can be and which is best."""
        asks = {
            "space": [str(dimension) for dimension in self._proposals.dimensions],
            "constraints": [each.text for each in self._proposals.constraints],
            "metric": self._metric,
            "seed": self._seed,
        }
        if self._proposals.fixed:
            asks["fixed"] = dict(self._proposals.fixed)
        if self._objectives:
            asks["objectives"] = [each.name for each in self._objectives]
        return asks if self._sign > 0 else {**asks, "lower_is_better": True}

    def _standings(self) -> list[Standing]:
        """In the order of their numbers. A trial that did not change is not read again: Optuna's
        journal makes a new object of one that did.
        """
        found = []
        for trial in self._storage.recorded(self._study._study_id):
            known = self._read.get(trial.number)
            if known is None or known[0] is not trial:
                known = self._read[trial.number] = (trial, standing_of(trial, self._sign))
            if known[1] is not None and trial.number not in self._forgiven:
                found.append(known[1])
        return found

    def _value(self, each: Standing) -> float | None:
        return None if each.score is None else self._sign * each.score

    def _promote(self, each: Standing, stage: int) -> None:
        self._storage.set_trial_user_attr(each.trial_id, PROMOTED, stage)

    def _set(self, each: Standing, facts: Mapping[str, Any]) -> None:
        known = self._storage.get_trial(each.trial_id).user_attrs.get(FACTS, {})
        self._storage.set_trial_user_attr(each.trial_id, FACTS, {**known, **facts})

    def _tell(self, kind: str, each: Standing, **facts: Any) -> None:
        self._on_event({"kind": kind, "number": each.number, **facts})


def _paid(each: Standing, progress: Progress) -> tuple[float, dict[str, float]]:
    """CPU-seconds paid for the trial so far, and by lever what was not."""
    now = progress.cpu_seconds - progress.saved.get("stage_tree", 0.0)
    paid = each.cpu_seconds + max(0.0, now)
    saved = {
        lever: each.saved.get(lever, 0.0) + progress.saved.get(lever, 0.0)
        for lever in sorted({*each.saved, *progress.saved} - {"stage_tree"})
    }
    shared = progress.cpu_seconds - paid  # its own earlier rungs are no gift
    return paid, ({**saved, "stage_tree": shared} if shared > 1e-9 else saved)


def told_params(log: EventLog, name: str) -> dict[int, dict[str, Any]]:
    """Trial number → parameters of the study `name`; empty when there is no such study."""
    from autoglm.search.warm_start import open_study

    study = open_study(log, name)
    trials = [] if study is None else study.get_trials(deepcopy=False)
    found = {trial.number: standing_of(trial, 1) for trial in trials}
    return {n: dict(each.params) for n, each in found.items() if each and each.params}
