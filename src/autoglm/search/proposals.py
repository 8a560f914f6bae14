"""The sampler's next point: asked dimension by dimension, where its condition holds, until one is
new and fulfils the constraints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autoglm.contracts.record import digest
from autoglm.errors import SearchError
from autoglm.search.constraints import Constraint, violations
from autoglm.search.first_points import first_points
from autoglm.search.samplers import without_loop
from autoglm.search.space import Dimension, assignments
from autoglm.search.spellings import refused
from autoglm.search.standing import HAS_ROOM, PARAMS, standing_of

if TYPE_CHECKING:
    import optuna

# So many infeasible proposals end a study that has no trial yet. After as many in a row, or so many
# known points, a new one is looked for without the sampler; after so many draws there is none.
MOST_INFEASIBLE = 100
MOST_KNOWN = 20
MOST_DRAWN = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposals:
    """`own` are the project's values, which stand where nothing is asked; `fixed` are values of
    every trial.
    """

    dimensions: tuple[Dimension, ...]
    constraints: tuple[Constraint, ...]
    own: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def next(
        self,
        study: optuna.Study,
        sampler_of: Callable[[int], Any] | None = None,
        *,
        but: Collection[int] = (),
    ) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A new trial and its values, which repeat no other's but those of the trials `but`; None
        when every point was tried. Refused points are told to the sampler, which `sampler_of` makes
        for each (without it the study's own is asked).

        Raises: SearchError search.infeasible, search.constraint.
        """
        import optuna

        before = study.get_trials(deepcopy=False)
        told = [
            t.user_attrs.get(PARAMS) or self.values(t.params)
            for t in before
            # What repeated another one was no trial: else it would outlive the pardon of `but`.
            if t.number not in but and (PARAMS in t.user_attrs or standing_of(t, 1) is not None)
        ]
        num_asked = sum(t.state != optuna.trial.TrialState.WAITING for t in before)
        num_known, num_refused, off = 0, 0, Counter[str]()
        while True:
            if sampler_of is not None:
                study.sampler = sampler_of(num_asked)
            num_asked += 1
            trial = study.ask()
            values = self.ask(trial)
            missed = self._refuse(study, trial, values)
            if missed:
                off.update(missed)
                num_refused += 1
                if num_refused >= MOST_INFEASIBLE and not told:
                    raise self._infeasible(off)
            elif not _is_among(values, told):
                return trial, values
            else:
                num_known, num_refused = num_known + 1, 0
                with without_loop():
                    study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
            if num_known == MOST_KNOWN or num_refused == MOST_INFEASIBLE:
                new = self._untold(told, num_asked)
                if new is None:
                    return None
                study.enqueue_trial(new)
                num_known += 1

    def again(
        self, study: optuna.Study, trial_id: int, sampler: Any
    ) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A trial that was half asked, by a version that wrote down value by value, with the rest
        asked now; None when it is refused.
        """
        import optuna

        study.sampler = sampler
        trial = optuna.Trial(study, trial_id)
        values = self.ask(trial)
        return None if self._refuse(study, trial, values) else (trial, values)

    def _untold(self, told: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any] | None:
        """A point that the sampler did not come upon, as Optuna takes it: of a finite space the
        first, else one by chance, of which 200 are looked at.
        """
        every = assignments(self.dimensions, self.own)
        points = self._drawn(seed) if every is None else ({**self.fixed, **each} for each in every)
        for values in points:
            if self.allows(values) and not _is_among(values, told):
                return {d.key: d.told(values[d.key]) for d in self.dimensions if d.key in values}
        return None

    def _drawn(self, seed: int) -> Iterator[dict[str, Any]]:
        """Points by chance, of a study that nobody keeps."""
        import optuna

        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        for _ in range(MOST_DRAWN):
            yield self.ask(study.ask())

    def ask(self, trial: optuna.Trial) -> dict[str, Any]:
        """The values of the dimensions whose conditions hold."""
        values: dict[str, Any] = dict(self.fixed)
        for dimension in self.dimensions:
            in_force = {**self.own, **values}
            if all(condition.holds(in_force) for condition in dimension.when):
                told = _suggested(trial, dimension.key, dimension.distribution())
                values[dimension.key] = dimension.point(told)
        return values

    def allows(self, values: Mapping[str, Any]) -> bool:
        return not violations(self.constraints, {**self.own, **values})

    def values(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters of a trial → the values of its keys."""
        asked = {d.key: d.point(told[d.key]) for d in self.dimensions if d.key in told}
        return {**self.fixed, **asked}

    def enqueue_first(self, study: optuna.Study) -> None:
        """The project's own values, and what reaches furthest, for which room is kept."""
        told_of = {dimension.key: dimension.told for dimension in self.dimensions}
        own, reaches = first_points(self.dimensions, self.own)
        points = [(own, {}), *((reach, {HAS_ROOM: True}) for reach in reaches)]
        for point, attrs in points:
            if point:
                told = {key: told_of[key](value) for key, value in point.items()}
                study.enqueue_trial(told, attrs)

    def first_values(self) -> list[dict[str, Any]]:
        """The values of the project's own point, and of those that reach furthest as far as the
        constraints allow them.
        """
        own, reaches = first_points(self.dimensions, self.own)
        values = [{**self.fixed, **point} for point in (own, *reaches)]
        return [each for each in values if each is values[0] or self.allows(each)]

    def num_points(self) -> int | None:
        """How many different trials there can be; None when they are too many to count.

        Raises: SearchError search.infeasible when there is none, search.constraint where a
        constraint cannot be computed.
        """
        every = assignments(self.dimensions, self.own)
        if every is None:
            if self.constraints:
                self.allows(next(self._drawn(seed=0)))
            return None
        num, off = 0, Counter[str]()
        for values in every:
            missed = violations(self.constraints, {**self.own, **values})
            off.update(missed)
            num += not missed
        if not num:
            raise self._infeasible(off)
        return num

    def _refuse(
        self, study: optuna.Study, trial: optuna.Trial, values: Mapping[str, Any]
    ) -> list[str]:
        """What the point does not fulfil; then the trial is over, and the sampler knows why."""
        import optuna

        if not self.constraints:
            return []
        missed = violations(self.constraints, {**self.own, **values})
        if missed:
            for each in self.constraints:
                if each.text not in trial.constraints:  # else said before we were killed
                    trial.set_constraint(each.text, missed.get(each.text, 0.0))
            with without_loop():
                study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
        return list(missed)

    def _infeasible(self, off: Counter[str]) -> SearchError:
        ((text, _num),) = off.most_common(1)
        means = next(each for each in self.constraints if each.text == text).keys
        shown = ", ".join(
            str(next((d for d in self.dimensions if d.key == key), f"{key} = {self.own.get(key)}"))
            for key in means.values()
        )
        return refused(
            f"no trial fulfils search.constraints {text!r} ({shown}).",
            "Relax the constraint or widen the space.",
            "search.infeasible",
        )


def _is_among(values: Mapping[str, Any], told: Sequence[Mapping[str, Any]]) -> bool:
    """Equal in JSON as well: `true` is not 1. That is asked of the few that are equal at all."""
    return any(values == each and digest(values) == digest(each) for each in told)


def _suggested(trial: optuna.Trial, key: str, wanted: Any) -> Any:
    from optuna import distributions as d

    if isinstance(wanted, d.CategoricalDistribution):
        return trial.suggest_categorical(key, wanted.choices)
    if isinstance(wanted, d.IntDistribution):
        return trial.suggest_int(key, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
    return trial.suggest_float(key, wanted.low, wanted.high, step=wanted.step, log=wanted.log)
