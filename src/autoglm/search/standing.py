"""Where each trial of a study stands, read from its journal alone: a kill changes nothing in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from autoglm.contracts.stage_chain import Progress

# What the journal keeps of a trial beside what Optuna keeps.
PARAMS, COST, CURVE, PROMOTED, KEEPS = "params", "cost", "curve", "promoted", "keeps"
HAS_ROOM, WHY = "has_room", "why"
# Of a study: whether its trials began at the `backbone`, at `stable`, or maybe at either.
BEGAN_AT, EITHER = "began_at", "either"
# What came of a trial, in one entry: each is written, read and applied on its own.
FACTS = "facts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """`scores`: stage → value at its end, higher is better. `target`: the stage to which the trial
    may go; a `paused` one has reached it. `keeps`: what was measured keeps the constraints.
    `num_stages` is known when one has been trained. `cost`: expected CPU-seconds, asked before it
    began. `has_room`: the budget keeps room for it.
    """

    number: int
    trial_id: int
    state: Literal["half_asked", "asked", "going_on", "paused", "complete", "stopped", "failed"]
    params: Mapping[str, Any]
    scores: Mapping[int, float]
    target: int
    cost: float
    seconds: float
    cpu_seconds: float
    saved: Mapping[str, float]
    keeps: bool = True
    num_stages: int = 1
    has_room: bool = False

    @property
    def reached(self) -> int:
        return max(self.scores, default=0)

    @property
    def score(self) -> float | None:
        return self.scores.get(self.reached)

    @property
    def spent(self) -> float:
        """Of `cost`, what it has come to. Nobody knows how far one came that failed."""
        if self.state == "failed":
            return self.cost
        return self.cost * self.reached / self.num_stages if self.reached else 0.0

    @property
    def is_over(self) -> bool:
        return self.state in {"complete", "stopped", "failed"}


def standing_of(trial: FrozenTrial, sign: int) -> Standing | None:
    """None for what is no trial of the study: waiting, refused, or a repeated point.

    `sign` is 1 where a higher value is better, else −1.
    """
    attrs, curve = attrs_of(trial), curve_of(trial)
    state: Any = {"COMPLETE": "complete", "FAIL": "failed"}.get(trial.state.name)
    target = int(attrs.get(PROMOTED, 0))
    if trial.state.name == "PRUNED" and curve:
        state = "stopped"
    if trial.state.name == "RUNNING":
        if PARAMS not in attrs:
            state = "half_asked"
        elif not curve:
            state = "asked"
        else:
            state = "going_on" if target > max(curve) else "paused"
    if state is None:
        return None
    return Standing(
        number=trial.number,
        trial_id=trial._trial_id,
        state=state,
        params=params_of(trial),
        scores={stage: sign * value for stage, value in curve.items()},
        target=target,
        cost=float(attrs.get(COST, 0.0)),
        seconds=float(attrs.get("seconds", 0.0)),
        cpu_seconds=float(attrs.get("cpu_seconds", 0.0)),
        saved=attrs.get("saved", {}),
        num_stages=int(attrs.get("num_stages", max([target, *curve], default=1))),
        keeps=bool(attrs.get(KEEPS, True)),
        has_room=bool(attrs.get(HAS_ROOM, False)),
    )


def winner_of(measured: Sequence[Standing]) -> Standing | None:
    """The best value of those that keep the constraints, of all where none does."""
    kept = [s for s in measured if s.keeps] or measured
    sound = [s for s in kept if s.score is not None]
    return max(sound, key=lambda s: (s.score, s.state == "complete", -s.number), default=None)


def attrs_of(trial: FrozenTrial) -> dict[str, Any]:
    """What the journal keeps of a trial, by name."""
    return {**trial.user_attrs, **trial.user_attrs.get(FACTS, {})}


def to_be_ended(paused: Sequence[Standing], complete: Sequence[Standing]) -> Standing | None:
    """The paused trial that is to be trained to its end although it was not promoted: the best one,
    while it is better than every complete one that was not shorter. (A shorter one has come to
    rest, which the paused one has not.) The longest are asked first.
    """
    for num_stages in sorted({each.num_stages for each in paused}, reverse=True):
        mine = [each for each in paused if each.num_stages == num_stages]
        winner = winner_of(mine + [each for each in complete if each.num_stages >= num_stages])
        if winner is not None and winner.state == "paused":
            return winner
    return None


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """The values of the keys, which need not be what Optuna was told."""
    return dict(trial.user_attrs.get(PARAMS, trial.params))


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """Stage → the metric's value at its end."""
    said = attrs_of(trial).get(CURVE)
    if said is None:  # written before trials had several stages
        values = [] if trial.values is None else list(trial.values)
        return {1: values[0]} if trial.state.name == "COMPLETE" and len(values) == 1 else {}
    return {int(stage): float(value) for stage, value in said.items()}


def paid_of(each: Standing, progress: Progress) -> tuple[float, dict[str, float]]:
    """CPU-seconds paid for the trial so far, and by lever what was not."""
    now = progress.cpu_seconds - progress.saved.get("stage_tree", 0.0)
    paid = each.cpu_seconds + max(0.0, now)
    saved = {
        lever: each.saved.get(lever, 0.0) + progress.saved.get(lever, 0.0)
        for lever in sorted({*each.saved, *progress.saved} - {"stage_tree"})
    }
    shared = progress.cpu_seconds - paid  # its own earlier rungs are no gift
    return paid, ({**saved, "stage_tree": shared} if shared > 1e-9 else saved)
