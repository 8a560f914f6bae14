"""The loop of a study: ask, train from rung to rung, tell, until a bound is reached.

open the journal; the project's own values and earlier studies' best points are asked first
trials before the sampler has learnt anything are asked at once and run cheapest first
what an earlier study answered about nearly the same rows is tried before them (search.refresh)
while trials are left and no bound is reached:
next    ← the trial that was going on, else the one that the scheduler promotes, else an asked
          one, else a new one of the sampler                     (recorded before it is trained)
metrics ← runner.advance(chain, end of the next rung)            (idempotent: no step twice)
          while another runner is idle, the next trial begins beside it
record the value; tell it at the chain's end (exactly once), else the scheduler's verdict
the best paused trial is trained to its end while it is better than every complete one as long
best ← best validation value of the complete, of those that keep the constraints of evaluate.metrics
       if any do; among equals the one expected to be the cheapest, then the first
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoglm.clock import Clock
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
from autoglm.evaluation.roles import Role
from autoglm.observability.logging import get_logger
from autoglm.plugins.kinds import TrialRunner
from autoglm.search.affordable import MOST_TOO_DEAR, next_affordable, tighter_budget
from autoglm.search.bounds import keeps, said_of
from autoglm.search.branching import BRANCH_OF, Branches
from autoglm.search.config import SearchConfig
from autoglm.search.constraints import Constraint
from autoglm.search.costs import expected, trainings_of
from autoglm.search.crew import AtWork, Crew
from autoglm.search.folds import over_folds
from autoglm.search.opening import Asked, num_points, open_study, refresh_in, values_beside
from autoglm.search.proposals import Proposals
from autoglm.search.results import Objective, all_failed, result_of, undefined
from autoglm.search.samplers import Samplers, without_loop
from autoglm.search.schedulers import make_scheduler
from autoglm.search.space import Dimension
from autoglm.search.standing import (
    COST,
    CURVE,
    FACTS,
    KEEPS,
    PARAMS,
    PROMOTED,
    WHY,
    Standing,
    paid_of,
    standing_of,
    to_be_ended,
    winner_of,
)
from autoglm.search.stopping import CancelOrDeadline, reason_to_stop
from autoglm.state.event_log import EventLog

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from autoglm.search.journal import StudyStorage
    from autoglm.search.refresh import Refresh

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
        runners: Sequence[TrialRunner],
        log: EventLog,
        clock: Clock,
        on_event: OnEvent,
        bounds: Sequence[Role] = (),
        fixed: Mapping[str, Any] | None = None,
        removed: tuple[Removal, ...] = (),
        refresh: Refresh | None = None,
        start: str = "",
    ) -> None:
        self._bounds, self._refresh, self._start = tuple(bounds), refresh, start
        self._project, self._name, self._config = project, name, config
        self._metric, self._sign = metric, 1 if maximize else -1
        self._objectives = tuple(objectives)
        fixed = dict(fixed or {})
        self._proposals = Proposals(
            dimensions=dimensions, constraints=constraints, own={**defaults, **fixed}, fixed=fixed
        )
        self._asked = Asked(
            proposals=self._proposals, metric=metric, maximize=maximize, seed=seed,
            objectives=self._objectives, removed=removed, bounds=self._bounds,
            num_folds=config.folds,
        )  # fmt: skip
        self._samplers = Samplers(config.sampler, seed)
        self._scheduler = make_scheduler(config, seed)
        self._crew = Crew([over_folds(each, config.folds) for each in runners])
        self._log, self._clock = log, clock
        self._branches = Branches(
            dimensions, lambda params: self._crew.next.plan(params), self._proposals.allows
        )
        self._at_work: dict[int, AtWork] = {}
        self._on_event = on_event
        self._logger = get_logger(study=name)
        self._chains: dict[int, StageChain] = {}
        self._read: dict[int, tuple[FrozenTrial, Standing | None]] = {}
        self._forgiven: set[int] = set()
        self._is_used_up = False
        self._study: optuna.Study
        self._storage: StudyStorage

    def run(self, cancel: threading.Event, *, started: float | None = None) -> StudyResult:
        """`started` (monotonic seconds): the budget counts from there, preparations included.

        Raises: SearchError when no trial could be finished, no point fulfils the constraints or
        the stored study asked something else; CancelledError (resumable); FencedError when
        another process took the study over.
        """
        started = self._clock.monotonic() if started is None else started
        most_points = num_points(self._proposals, self._samplers)
        self._open()
        self._forgiven = {*self._study.user_attrs.get("forgiven", ())}
        used = self._wall(self._standings())
        deadline = started + self._config.budget.total_seconds() - used
        stop = CancelOrDeadline(cancel, self._clock, deadline)
        stopped_by = self._study.user_attrs.get("stopped_by", "")
        if not stopped_by:
            stopped_by = self._work(stop, most_points)
            self._end(stopped_by, used + self._clock.monotonic() - started)
        found = result_of(
            self._study, project=self._project, metric=self._metric, sign=self._sign,
            objectives=self._objectives, trials=self._storage.recorded(self._study._study_id),
            bounds=self._bounds, removed=tuple(self._asked.removed),
        )  # fmt: skip
        if found.unmet:
            self._on_event({"kind": "constraints_unmet", "said": said_of(found.unmet)})
        return found

    def _open(self) -> None:
        hinted = self._config.trials if self._config.warm_start else 0
        self._study, self._storage = open_study(
            self._log, self._name, self._asked, self._samplers, num_hints_for=hinted,
            refresh=self._refresh, start=self._start,
        )  # fmt: skip
        self._refresh = refresh_in(self._study)
        self._trainings = trainings_of(self._config, self._study, self._proposals, self._crew.next)

    def _work(self, stop: CancelOrDeadline, most_points: int | None) -> str:
        """Train until there is nothing more to do; says what ended it."""
        outside = self._refresh.num_outside if self._refresh is not None else 0
        limit = min(self._config.trials, (most_points or self._config.trials) + outside)
        try:
            return self._loop(stop, limit)
        except TrainingError as error:
            if error.retryable:  # one worker died; what the others do now is not lost
                self._settle(stop)
            raise
        finally:
            stop.is_abandoned = True
            self._crew.leave()

    def _loop(self, stop: CancelOrDeadline, limit: int) -> str:
        done = "space" if limit < self._config.trials else "trials"
        while True:
            if self._crew.is_full:
                self._finish(stop)
                continue
            standings = self._standings()
            # The first value is waited for, however long it takes: without one there is no result.
            stop.is_armed = any(each.state == "complete" for each in standings)
            reason = self._answered(standings)
            reason = reason or reason_to_stop(self._config, self._trainings, standings, stop)
            if stop.is_cancelled:
                raise CancelledError("the search was stopped.", next_step="It can be resumed.")
            is_hopeless = all_failed(standings)
            each = None if is_hopeless else self._next(standings, stop, reason, limit)
            if each is not None and each.state == "half_asked":
                self._ask_rest(each)
            elif each is not None:
                self._begin(each, stop, to_the_end=bool(reason) or self._is_tried_again(each))
            elif self._at_work:
                self._finish(stop)
            else:
                too_dear = "" if is_hopeless else self._too_dear(stop)
                return reason or too_dear or ("space" if self._is_used_up else done)

    def _answered(self, standings: Sequence[Standing]) -> str:
        is_answered = self._refresh is not None and self._refresh.is_answered(standings)
        return "refresh" if is_answered else ""

    def _is_tried_again(self, each: Standing) -> bool:
        return self._refresh is not None and self._refresh.has(each)

    def _settle(self, stop: CancelOrDeadline) -> None:
        """Record what is being trained; who dies as well, or is half asked, comes again later."""
        while self._at_work:
            with contextlib.suppress(TrainingError):
                self._finish(stop)

    def _next(
        self, standings: Sequence[Standing], stop: CancelOrDeadline, reason: str, limit: int
    ) -> Standing | None:
        """The trial to be trained now; None when there is nothing more to do."""
        idle = [each for each in standings if each.number not in self._at_work]
        going_on = [each for each in idle if each.state == "going_on"]
        paused = [each for each in idle if each.state == "paused"]
        complete = [each for each in standings if each.state == "complete"]
        if reason:
            if complete or self._at_work:
                return None
            if going_on or paused:
                return winner_of(going_on + paused)
        half_asked = [each for each in idle if each.state == "half_asked"]
        if going_on or half_asked:
            return (half_asked + going_on)[0]
        if resumed := self._scheduler.promoted(standings):
            return resumed
        if (new := self._new(standings, stop, limit)) is not None:
            return new
        if self._at_work:  # what comes of it may change what is next
            return None
        # What is served was trained to its end: the best of the paused is, while it is the best.
        return to_be_ended(paused, complete)

    def _new(
        self, standings: Sequence[Standing], stop: CancelOrDeadline, limit: int
    ) -> Standing | None:
        """An asked trial that can be paid for; the sampler is asked on until one can."""
        begun = {each.number for each in standings if each.state != "asked"} | {*self._at_work}
        others = [each for each in standings if each.number in begun]
        asked = [each for each in standings if each.number not in begun]
        if (again := self._refresh) is not None and again.is_awaited(standings, self._at_work):
            return None
        is_again = again is not None and again.is_open(standings, self._at_work)
        while True:
            found = self._affordable(asked, others, stop)
            room = min(limit - len(others) - len(asked), MOST_TOO_DEAR - len(asked))
            if found is not None or room < 1 or self._is_used_up or is_again:
                return found
            asked += self._ask(limit - len(others) - len(asked))

    def _affordable(
        self, asked: Sequence[Standing], others: Sequence[Standing], stop: CancelOrDeadline
    ) -> Standing | None:
        if self._scheduler.pauses:  # what it has come to when the budget ends is not lost
            return min(asked, key=lambda each: (each.cost, each.number), default=None)
        return next_affordable(
            asked, others, self._config, self._trainings, seconds_left=stop.seconds_left,
            at_work=[each.standing for each in self._at_work.values()],
        )  # fmt: skip

    def _too_dear(self, stop: CancelOrDeadline) -> str:
        """The budget that pays for none of the asked trials; empty when none is asked."""
        standings = self._standings()
        if not any(each.state == "asked" for each in standings):
            return ""
        left = stop.seconds_left
        return tighter_budget(standings, self._config, self._trainings, seconds_left=left)[0]

    def _ask(self, most: int) -> list[Standing]:
        """The next trials: several at once before the sampler has learnt anything. One commit."""
        standings = self._standings()
        num_asked = len(standings)
        num = self._samplers.num_startup - num_asked
        if self._refresh is not None and not num_asked:
            num = len(self._refresh.points)  # what they come to decides whether there are others
        branch = self._branches.next(standings) if num < 1 and self._config.branch else None
        num = max(1, min(most, num))
        numbers = set()
        with self._storage.batch():
            if branch is not None:
                self._study.enqueue_trial(branch[1], {BRANCH_OF: branch[0]})
            for _ in range(num):
                new = self._proposals.next(self._study, self._samplers.of, but=self._forgiven)
                if new is None:
                    self._is_used_up = True
                    break
                trial, params = new
                params |= values_beside(self._refresh, trial.number)
                trial.set_user_attr(PARAMS, params)
                numbers.add(trial.number)
                chain, cost = expected(self._crew.next, params)
                if chain is not None:
                    self._chains[trial.number] = chain
                trial.set_user_attr(COST, cost.cpu_seconds)
                trial.set_user_attr(WHY, [*cost.why])
        return [each for each in self._standings() if each.number in numbers]

    def _ask_rest(self, each: Standing) -> None:
        with self._storage.batch():
            sampler = self._samplers.of(each.number)
            asked = self._proposals.again(self._study, each.trial_id, sampler)
            if asked is not None:
                asked[0].set_user_attr(PARAMS, asked[1])

    def _begin(self, each: Standing, stop: CancelOrDeadline, *, to_the_end: bool) -> None:
        """Let a runner train to the next rung."""
        if each.state == "asked":
            self._tell("trial_started", each, params=each.params)
        started = self._clock.monotonic()
        try:
            chain = self._chains.get(each.number) or self._crew.next.plan(each.params)
        except (ModelError, TrainingError, SearchError) as error:
            self._stumble(each, error, started)
            return
        self._chains[each.number] = chain
        stage = self._next_rung(each, chain, to_the_end=to_the_end)
        if each.state == "paused":
            self._promote(each, stage)
            value = None if each.score is None else self._sign * each.score
            self._tell("trial_promoted", each, stage=stage, value=value)
        self._at_work[each.number] = AtWork(each, stage, started)
        self._crew.begin(
            each.number,
            lambda runner: runner.advance(chain, chain.boundaries[stage - 1], cancel=stop),
        )

    def _finish(self, stop: CancelOrDeadline) -> None:
        """Wait for a rung to be reached, and record what came of it."""
        number, outcome = self._crew.wait()
        each, stage, started = self._at_work.pop(number)
        try:
            progress = outcome()
        except CancelledError:
            if stop.is_cancelled:
                raise
            self._cut_off(each)
        except (ModelError, TrainingError, SearchError) as error:
            self._stumble(each, error, started)
        else:
            self._record(each, progress, stage, self._clock.monotonic() - started)

    def _stumble(self, each: Standing, error: AutoGLMError, started: float) -> None:
        """The trial has failed. Raises: what is no fault of the trial's."""
        if full := from_system(error):
            raise full from error
        if error.retryable:
            raise error
        self._fail(each, error, self._clock.monotonic() - started)

    def _next_rung(self, each: Standing, chain: StageChain, *, to_the_end: bool) -> int:
        num_stages = len(chain.stages)
        rungs = self._scheduler.rungs(each.number, num_stages)
        ahead = [rung for rung in rungs if rung > each.reached]
        return num_stages if to_the_end or not ahead else ahead[0]

    def _record(self, each: Standing, progress: Progress, stage: int, seconds: float) -> None:
        """One commit: what was measured, and what it means for the trial."""
        sought = (self._metric, *(objective.name for objective in self._objectives))
        if cause := undefined(each.number, sought, progress):
            self._fail(each, cause, seconds)
            return
        value = progress.metrics[self._metric]
        scores = {**each.scores, stage: self._sign * value}
        paid, saved = paid_of(each, progress)
        num_stages = len(self._chains[each.number].stages)
        seconds += each.seconds
        mine = replace(each, scores=scores, seconds=seconds, num_stages=num_stages)
        facts: dict[str, Any] = {
            CURVE: {str(at): self._sign * score for at, score in scores.items()},
            "metrics": dict(progress.metrics),
            KEEPS: keeps(self._bounds, progress.metrics),
            "chain_key": progress.key,
            "num_steps": progress.step,
            "num_stages": num_stages,
            "cpu_seconds": paid,
            "seconds": mine.seconds,
            "saved": saved,
            "peak": dict(progress.peak),
        }
        if progress.folds:
            facts["folds"] = [dict(each) for each in progress.folds]
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
                "seconds": self._wall([mine, *others]),
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
        """Tell the sampler, and write it down: Optuna's `tell` without its copies of all trials."""
        from optuna.trial import TrialState

        ended = TrialState[state] if state else TrialState.COMPLETE
        told = list(values) or None
        if ended == TrialState.PRUNED and each.score is not None and not self._objectives:
            told = [self._sign * each.score]
        trial = self._storage.get_trial(each.trial_id)
        with without_loop():
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

    def _wall(self, standings: Sequence[Standing]) -> float:
        """Seconds that the trials took, beside each other as they ran."""
        return sum(each.seconds for each in standings) / self._crew.size

    def _promote(self, each: Standing, stage: int) -> None:
        self._storage.set_trial_user_attr(each.trial_id, PROMOTED, stage)

    def _set(self, each: Standing, facts: Mapping[str, Any]) -> None:
        known = self._storage.get_trial(each.trial_id).user_attrs.get(FACTS, {})
        self._storage.set_trial_user_attr(each.trial_id, FACTS, {**known, **facts})

    def _tell(self, kind: str, each: Standing, **facts: Any) -> None:
        """`place`: how many trials there were when it was asked, itself included."""
        place = sum(other.number <= each.number for other in self._standings())
        self._on_event({"kind": kind, "number": each.number, "place": place, **facts})
