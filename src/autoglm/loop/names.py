"""Names in the configuration that only the plugins and the search space can judge."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from autoglm.config.config_loader import Config
from autoglm.config.provenance import flat
from autoglm.contracts.task import METRICS_OF, TASKS
from autoglm.errors import ConfigError, ModelError, PluginError, SearchError
from autoglm.evaluation.roles import MEASURED, read_roles
from autoglm.evaluation.slices import read_slices
from autoglm.loop.run_to_candidate import pruned_space, searchable_keys
from autoglm.modeling.attention.options import (
    BUILT_IN,
    check_options,
    options_in_source,
    options_of,
)
from autoglm.modeling.backbone_ref import resolve_backbone
from autoglm.modeling.backbones.own import OWN
from autoglm.plugins import project_files, registry
from autoglm.plugins.kinds import KINDS
from autoglm.search.constraints import read_constraints
from autoglm.settings import Layers, Settings, metric_of
from autoglm.triggers.cron import next_tick

# Steps of a run after which a `step` plugin may stand.
STEPS = ("search", "export", "evaluate", "register", "release")
NAMED = {
    "model.head": "head",
    "search.sampler": "sampler",
    "training.optimizer": "optimizer",
    "training.schedule": "schedule",
}
# Of these 0 is no size to reckon with.
SIZES = tuple(
    f"model.structure.{name}"
    for name in ("num_layers", "feed_forward", "num_heads", "hidden_size", "max_positions")
)
LISTED = {
    "data.processors": "processor",
    "training.algorithms": "algorithm",
    "training.callbacks": "callback",
}


# Kinds that the control process uses too. The others may load torch, which it must not.
LIGHT = ("evaluator", "processor", "sampler", "step")


def check_names(
    settings: Settings, where: Layers, *, kinds: Collection[str] = tuple(KINDS)
) -> None:
    """Whether every part that the configuration names is there and sound; those of others are
    loaded if their kind is one of `kinds`.

    Raises: ConfigError, SearchError, PluginError, ModelError of the backbone.
    """
    project_files.execute(
        project_files.read_files(where.folder, settings.imports), where.state / "code"
    )
    if settings.trigger.cron:
        next_tick(settings.trigger.cron, settings.trigger.time_zone, datetime.now(UTC))
    searched = _check_space(settings, kinds)
    _check_task(settings)
    _check_unused(settings, searched)
    _sound("evaluator", metric_of(settings), "evaluate.metric", kinds)
    for name, times in Counter(settings.search.objectives).items():
        _sound("evaluator", name, "search.objectives", kinds)
        if times > 1:
            raise ConfigError(
                f"search.objectives names {name} {times} times.",
                code="config.wrong_value",
                next_step="Name each evaluator once.",
            )
    for role in read_roles(settings.evaluate.metrics):
        if role.name not in MEASURED:
            _check_metric(settings, role.name, f"evaluate.metrics.{role.name}")
            _sound("evaluator", role.name, f"evaluate.metrics.{role.name}", kinds)
    read_slices(settings.evaluate.slices, TASKS[settings.model.task])
    for key, kind in NAMED.items():
        section, _, field = key.partition(".")
        _sound(kind, getattr(getattr(settings, section), field), key, kinds)
    _check_attention(settings.model.attention, "model.attention", kinds)
    _sound("source", settings.data.source.kind, "data.source.kind", kinds)
    _sound("broker", settings.streaming.broker.kind, "streaming.broker.kind", kinds)
    for key, kind in LISTED.items():
        section, _, field = key.partition(".")
        for said in getattr(getattr(settings, section), field):
            name = said if isinstance(said, str) else str(said.get("name", ""))
            _sound(kind, name, key, kinds)
    for after, names in settings.plugins.steps.items():
        if after not in STEPS or not isinstance(names, list):
            raise ConfigError(
                f"plugins.steps.{after}: write STEP: [NAME, …], STEP one of {', '.join(STEPS)}.",
                code="config.wrong_value",
                next_step="As in plugins: {steps: {evaluate: [my-step]}}.",
            )
        for name in names:
            _sound("step", str(name), f"plugins.steps.{after}", kinds)
    if "backbone" in kinds:
        _check_backbone(settings.model.backbone, where)


def _check_space(settings: Settings, kinds: Collection[str]) -> set[str]:
    """Whether the space and its constraints can be read, and name parts that are there; the keys
    that are searched.
    """
    if isinstance(settings.search.space, str):
        _sound("space", settings.search.space, "search.space", ("space", *kinds))
    keys = searchable_keys(settings.model.backbone)
    dimensions = pruned_space(settings, flat(settings)).dimensions
    searched = {dimension.key for dimension in dimensions}
    for constraint in read_constraints(settings.search.constraints, keys):
        for key in {*constraint.keys.values()} - searched:
            if key in SIZES and not getattr(settings.model.structure, key.rpartition(".")[2]):
                raise _unsaid(constraint.text, key)
    for dimension in dimensions:
        if dimension.key in NAMED:
            for name in dimension.choices:
                _sound(NAMED[dimension.key], str(name), f"search.space.{dimension.key}", kinds)
        if dimension.key == "model.attention":
            for choice in dimension.choices:
                _check_attention(choice, f"search.space.{dimension.key}", kinds)
    return searched


def _unsaid(text: str, key: str) -> SearchError:
    return SearchError(
        f"search.constraints: {text!r}: {key} is 0, which stands for the backbone's own size.",
        code="search.constraint",
        next_step=f"Set {key} to the size that is meant.",
        exit_code=2,
    )


def _check_task(settings: Settings) -> None:
    """Whether columns and backbone are those that the task wants, and the metric one it has."""
    name, form = settings.model.task, TASKS[settings.model.task]
    for column in (form.reads, "tags" if form.answers == "tags" else "label"):
        if not getattr(settings.data, column):
            raise ConfigError(
                f"model.task = {name!r} needs data.{column}.",
                code="config.wrong_value",
                next_step=f"Name the column in data.{column}, or choose another model.task.",
            )
    backbone = settings.model.backbone
    if (backbone == "conv") != (form.reads == "image") and backbone in OWN:
        reads = "images" if backbone == "conv" else "texts"
        raise ConfigError(
            f"model.backbone = {backbone!r} reads {reads}, model.task = {name!r} does not.",
            code="config.wrong_value",
            next_step="Choose another model.backbone; docs/backbones.md lists them.",
        )
    for metric in settings.search.objectives:
        _check_metric(settings, metric, "search.objectives")
    _check_metric(settings, metric_of(settings), "evaluate.metric")


def _check_attention(said: str | Mapping[str, Any], key: str, kinds: Collection[str]) -> None:
    """Whether its name and its options are known; of ours, without loading torch."""
    name = said if isinstance(said, str) else str(said.get("name", ""))
    options = {} if isinstance(said, str) else {k: v for k, v in said.items() if k != "name"}
    _sound("attention", name, key, kinds)
    if not options:
        return
    try:
        if name in BUILT_IN:
            check_options(name, options, ())
        elif registry.is_ours("attention", name):
            check_options(name, options, options_in_source(registry.place_of("attention", name)))
        elif "attention" in kinds:
            check_options(name, options, options_of(registry.get("attention", name)))
    except PluginError as error:
        raise _wrong(
            f"{key}: {error.message}", code=error.code, next_step=error.next_step
        ) from error


def _check_backbone(ref: str, where: Layers) -> None:
    """Whether its folder is there. A package's weights may have to be converted: not here."""
    if ref in OWN or ref.startswith("package:"):
        return
    try:
        resolve_backbone(ref, where.folder)
    except ModelError as error:
        raise ModelError(
            f"model.backbone: {error.message}",
            code=error.code,
            next_step=error.next_step,
            exit_code=2,
        ) from error


def _check_metric(settings: Settings, metric: str, key: str) -> None:
    """Whether it says something of the task's answers, when a study can hear it."""
    if metric in MEASURED:
        raise ConfigError(
            f"{key} = {metric!r}: it is measured of the exported model, when the search is over.",
            code="config.wrong_value",
            next_step=f"Bound it: evaluate.metrics: {{{metric}: {{at_most: …}}}}, or report it.",
        )
    known = TASKS[settings.model.task].metrics
    if metric not in known and any(metric in names for names in METRICS_OF.values()):
        raise ConfigError(
            f"{key} = {metric!r} says nothing of {settings.model.task}.",
            code="config.wrong_value",
            next_step=f"Known for it: {', '.join(known)}.",
        )


# What means nothing for answers of a form, with the value that says so; and why.
UNUSED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "text": (
        "answers by the backbone's own lm_head, at each token",
        {
            "model.head": "linear",
            "model.pooling": "auto",
            "model.structure.hidden_size": 0,
            "training.class_weights": "none",
        },
    ),
    "number": (
        "answers a number, there are no labels",
        {"training.class_weights": "none", "training.label_smoothing": 0.0},
    ),
}


def _check_unused(settings: Settings, searched: Collection[str]) -> None:
    why, keys = UNUSED.get(TASKS[settings.model.task].answers, ("", {}))
    for key, unused in keys.items():
        said: Any = settings
        for name in key.split("."):
            said = getattr(said, name)
        if said != unused or key in searched:
            where = "search.space names it" if key in searched else f"{key} = {said!r}"
            raise ConfigError(
                f"{where}: {settings.model.task} {why}, and {key} has no part in it.",
                code="config.wrong_value",
                next_step=f"Leave {key} out.",
            )


def check_served(settings: Settings) -> None:
    """Whether what a run would make can be put into service, told before anything is trained.

    Raises: ConfigError release.cannot_serve.
    """
    if TASKS[settings.model.task].answers == "text":
        raise ConfigError(
            f"autoglm run cannot serve {settings.model.task} yet.",
            code="release.cannot_serve",
            next_step="Use autoglm train, and autoglm evaluate.",
        )


def judge(where: Layers) -> Callable[[Config[Settings]], None]:
    """The judgement of `config check` for a tree that is about to be in force in this process."""
    return lambda config: check_names(config.settings, where, kinds=LIGHT)


def _sound(kind: str, name: str, key: str, kinds: Collection[str]) -> None:
    known = registry.names(kind)
    if name not in known:
        raise _wrong(
            f"{key} = {name!r}: there is no {kind} of this name.",
            code="plugin.unknown",
            next_step=_nearest(name, known),
        )
    try:
        # Of ours the tests know that they are sound, and they may take seconds to load.
        if not registry.is_ours(kind, name) and kind in kinds:
            registry.get(kind, name)
    except PluginError as error:
        raise _wrong(
            f"{key} = {name!r}: {error.message}", code=error.code, next_step=error.next_step
        ) from error


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known) or 'none'}."


def _wrong(message: str, *, code: str, next_step: str) -> PluginError:
    """The configuration is wrong, no work was tried: a bad call."""
    return PluginError(message, code=code, next_step=next_step, exit_code=2)
