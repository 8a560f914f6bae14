"""Which dimensions of a space are asked; the others stand at one value, with the evidence.

by task     nothing reads it: kernel sizes without a convolution, layers where all of them learn
by prior    the project says so: `{dropout: 0.1}` freezes, `{lr: "loguniform(1e-5, 1e-4)"}` narrows
by condition  what it is asked for never holds, after the above took its parent out or narrowed it
by probe    heads trained over kept features (milliseconds a step) answer alike at both its ends
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autoglm.config.values import accepted
from autoglm.contracts.task import TASKS
from autoglm.contracts.trial import Removal
from autoglm.errors import SearchError, TrainingError
from autoglm.plugins.kinds import TrialRunner
from autoglm.search.conditions import Condition, can_hold
from autoglm.search.grids import common
from autoglm.search.space import Dimension, read_space, resolve, space_said
from autoglm.search.spellings import KINDS, refused

# Key, or the beginning of one → what it is of.
TAGS = {
    "model.conv.": "convolution",
    "model.recurrent.": "recurrence",
    "model.structure.lora_": "adapters",
    "model.structure.": "layers",
    "model.attention": "attention",
    "model.pooling": "pooling",
    "model.head": "head",
    "training.trainable_layers": "layers",
    "training.layer_decay": "layers",
    "training.": "training",
}
# What can be felt by a head that is trained on features which do not change.
PROBED = frozenset(
    f"training.{name}"
    for name in (
        "class_weights", "dropout", "ema", "label_smoothing", "weight_decay",
    )
)  # fmt: skip
# Scores and losses nearer to each other than this are one.
SAME_SCORE, SAME_LOSS = 0.005, 0.01
MOST_PROBED_VALUES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """`fixed` are values that stand in every trial in place of the project's own."""

    dimensions: tuple[Dimension, ...]
    removed: tuple[Removal, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)


def tag_of(key: str) -> str:
    """What a dimension is of. The longest beginning decides."""
    fitting = [start for start in TAGS if key.startswith(start)]
    return TAGS[max(fitting, key=len)] if fitting else ""


def tags_read(task: str, backbone: str) -> frozenset[str]:
    """What a task on this backbone can feel: `conv` reads images, `recurrent` sequences, any other
    name is a pretrained transformer. Tokens are answered for one by one, without a pooling, and
    texts by the backbone's own lm_head.
    """
    own = {"conv": {"convolution"}, "recurrent": {"recurrence"}}
    read = {"training", "head"} | own.get(backbone, {"attention", "layers", "adapters"})
    form = TASKS[task]
    if form.answers not in {"tags", "text"}:
        read.add("pooling")
    if form.answers == "text":
        read.discard("head")
    return frozenset(read)


def prune(
    space: str | Mapping[str, Any],
    keys: Mapping[str, Any],
    *,
    others: Mapping[str, Any],
    prior: Mapping[str, Any],
    task: str,
    backbone: str,
    own: Mapping[str, Any],
) -> Pruned:
    """The space without what task and prior take out, and what then is never asked. `keys` are read
    with this backbone, `others` with another one only; `own` are the project's values.

    Raises: as `read_space`; SearchError search.prior, and search.empty where nothing is left.
    """
    said = space_said(space)
    read = tags_read(task, backbone)
    removed: list[Removal] = []
    kept: dict[str, Any] = {}
    for name, plain in said.items():
        key = _key(name, keys, others)
        tag = tag_of(key)
        if key in keys and tag in read:
            kept[name] = plain
            continue
        told = f"nothing of {task} on {backbone} reads {tag or 'it'}"
        removed.append(Removal(key=key, by="task", value=own.get(key), evidence=told))
    gone = {removal.key for removal in removed}
    dimensions = read_space(kept, keys, gone) if kept or not said else ()
    dimensions, fixed, frozen = _by_prior(dimensions, prior, keys)
    removed += frozen
    dimensions, never = _by_condition(dimensions, {**own, **fixed}, removed)
    removed += never
    if said and not dimensions:
        raise refused(
            "nothing is left of the search space: "
            + "; ".join(f"{r.key}: {r.evidence}" for r in removed)
            + ".",
            "Add a dimension that counts, or take search.prior back.",
            "search.empty",
        )
    return Pruned(dimensions=dimensions, removed=tuple(removed), fixed=fixed)


def _key(name: str, keys: Collection[str], others: Collection[str]) -> str:
    try:
        return resolve(name, keys)
    except SearchError as error:
        if error.code != "search.unknown_key" or "ambiguous" in str(error):
            raise
        try:
            return resolve(name, others)
        except SearchError:
            raise error from None


def _by_prior(
    dimensions: Sequence[Dimension], prior: Mapping[str, Any], keys: Mapping[str, Any]
) -> tuple[tuple[Dimension, ...], dict[str, Any], list[Removal]]:
    found = {dimension.key: dimension for dimension in dimensions}
    fixed: dict[str, Any] = {}
    removed: list[Removal] = []
    for name, said in prior.items():
        key = resolve(name, keys)
        if key not in found:
            continue  # a prior is for every space of the project
        if _is_domain(said):
            (narrow,) = read_space({key: said}, keys)
            found[key] = _narrowed(found[key], narrow)
            continue
        try:
            fixed[key] = accepted(keys[key], said)
        except ValueError as error:
            raise _wrong_prior(f"{name}: the configuration refuses {said!r}: {error}") from error
        del found[key]
        removed.append(
            Removal(key=key, by="prior", value=fixed[key], evidence="search.prior says so")
        )
    return tuple(found[d.key] for d in dimensions if d.key in found), fixed, removed


def _by_condition(
    dimensions: Sequence[Dimension], own: Mapping[str, Any], before: Sequence[Removal]
) -> tuple[tuple[Dimension, ...], list[Removal]]:
    """Without those whose condition no longer holds anywhere. What they depend on comes first, so
    one that depends on such a one is seen as well.
    """
    why = {removal.key: removal for removal in before}
    kept: dict[str, Dimension] = {}
    removed: list[Removal] = []
    for dimension in dimensions:
        parents = [(condition, kept.get(condition.key)) for condition in dimension.when]
        missed = next((c for c, parent in parents if not _may_hold(c, parent, own)), None)
        if missed is None:
            kept[dimension.key] = dimension
            continue
        cause = why.get(missed.key)
        stays = f"that stays at {own.get(missed.key)!r}" + (f" (by {cause.by})" if cause else "")
        narrowed = kept.get(missed.key)
        reason = f"no point of {narrowed} is" if narrowed is not None else stays
        evidence = f"asked when {missed}; {reason}"
        value = own.get(dimension.key)
        removal = Removal(key=dimension.key, by="condition", value=value, evidence=evidence)
        why[dimension.key] = removal
        removed.append(removal)
    return tuple(kept.values()), removed


def _may_hold(condition: Condition, parent: Dimension | None, own: Mapping[str, Any]) -> bool:
    if parent is None:
        return condition.holds(own)
    return can_hold(condition, parent) or (bool(parent.when) and condition.holds(own))


def _is_domain(said: Any) -> bool:
    if isinstance(said, Mapping):
        return len(said) == 1 and next(iter(said)) in KINDS
    called = re.match(r"(?:tune\.)?(\w+)\(", said) if isinstance(said, str) else None
    return called is not None and called[1] in KINDS


def _narrowed(wide: Dimension, narrow: Dimension) -> Dimension:
    """What both hold. Raises: SearchError search.prior where that is nothing."""
    if wide.choices:
        both = tuple(value for value in wide.choices if narrow.holds(value))
        if not both:
            raise _wrong_prior(f"{wide.key}: no point of the space ({wide}) is in {narrow}")
        return replace(wide, choices=both)
    if narrow.choices:
        both = tuple(value for value in narrow.choices if wide.holds(value))
        if not both:
            raise _wrong_prior(f"{wide.key}: no point of {narrow} is in the space ({wide})")
        return replace(narrow, choices=both, when=wide.when)
    found = common(wide, narrow)
    if found is None:
        raise _wrong_prior(f"{wide.key}: {narrow} and the space ({wide}) have nothing in common")
    return found


def by_probe(
    pruned: Pruned,
    runner: TrialRunner,
    *,
    metric: str,
    own: Mapping[str, Any],
    cancel: threading.Event,
) -> Pruned:
    """The space without dimensions that a head over kept features does not feel: of the others at
    the project's values, each is set to its ends (a choice to each value), and score and loss of
    the validation rows are compared. Costs a few head-only trials.
    """
    own = {**own, **pruned.fixed}
    # What another one waits for acts through that one too, which a head alone does not show.
    parents = {condition.key for d in pruned.dimensions for condition in d.when}
    probed = [
        d for d in pruned.dimensions
        if d.key in PROBED and d.key not in parents and not d.when and _ends(d)
    ]  # fmt: skip
    if len(pruned.dimensions) == len(probed):
        probed = probed[1:]  # something is left to be asked
    if not probed or "training.trainable_layers" not in own:
        return pruned
    base = {**pruned.fixed, "training.trainable_layers": 0}
    removed: list[Removal] = []
    for dimension in probed:
        found = [_scored(runner, {**base, dimension.key: v}, cancel) for v in _ends(dimension)]
        spans = [_span([f.get(name) for f in found if f]) for name in (metric, "loss")]
        if len([f for f in found if f]) < len(found) or None in spans:
            continue
        score, loss = spans
        least = min(abs(f["loss"]) for f in found)
        if not loss:
            continue  # the head that it began with was the best: nothing was trained
        if score <= SAME_SCORE and loss <= SAME_LOSS * least:
            ends = " and ".join(f"{value}" for value in _ends(dimension))
            evidence = (
                f"heads over kept features at {ends}: {metric} differs by {score:.4f}, the loss by"
                f" {loss / max(least, 1e-12):.1%}"
            )
            value = own.get(dimension.key)
            removed.append(Removal(key=dimension.key, by="probe", value=value, evidence=evidence))
    gone = {removal.key for removal in removed}
    return replace(
        pruned,
        dimensions=tuple(d for d in pruned.dimensions if d.key not in gone),
        removed=(*pruned.removed, *removed),
    )


def _ends(dimension: Dimension) -> tuple[Any, ...]:
    if not dimension.choices:
        return (dimension.point(dimension.low), dimension.point(dimension.high))
    return dimension.choices if 1 < len(dimension.choices) <= MOST_PROBED_VALUES else ()


def _scored(
    runner: TrialRunner, params: Mapping[str, Any], cancel: threading.Event
) -> Mapping[str, float]:
    """Metrics of a trial; empty where it failed, which is for the study to find out."""
    try:
        chain = runner.plan(params)
        return runner.advance(chain, chain.num_steps, cancel=cancel).metrics
    except (TrainingError, SearchError) as error:
        if error.retryable:
            raise
        return {}


def _span(values: Iterable[float | None]) -> Any:
    known = [v for v in values if v is not None and v == v]
    return max(known) - min(known) if len(known) > 1 else None


def _wrong_prior(what: str) -> SearchError:
    return refused(f"search.prior.{what}.", "See docs/search.md.", "search.prior")
