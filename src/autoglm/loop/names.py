"""Names in the configuration that only the plugins and the search space can judge."""

from __future__ import annotations

from datetime import UTC, datetime

from autoglm.errors import ConfigError, PluginError
from autoglm.loop.run_to_candidate import searchable_keys
from autoglm.plugins import project_files, registry
from autoglm.project import Project
from autoglm.search.space import read_space
from autoglm.triggers.cron import next_tick

# Steps of a run after which a `step` plugin may stand.
STEPS = ("search", "export", "evaluate", "register", "release")
NAMED = {
    "evaluate.metric": "evaluator",
    "model.head": "head",
    "search.sampler": "sampler",
    "training.optimizer": "optimizer",
    "training.schedule": "schedule",
}
LISTED = {"training.algorithms": "algorithm", "training.callbacks": "callback"}


def check_names(project: Project) -> None:
    """Raises: ConfigError, SearchError, PluginError for a name nobody answers to."""
    settings = project.settings
    project_files.execute(
        project_files.read_files(project.folder, settings.imports), project.state / "code"
    )
    if settings.trigger.cron:
        next_tick(settings.trigger.cron, settings.trigger.time_zone, datetime.now(UTC))
    read_space(settings.search.space, searchable_keys())
    for key, kind in NAMED.items():
        section, _, field = key.partition(".")
        _known(kind, getattr(getattr(settings, section), field), key)
    for key, kind in LISTED.items():
        section, _, field = key.partition(".")
        for name in getattr(getattr(settings, section), field):
            _known(kind, name, key)
    for name in settings.data.processors:
        _known("processor", name, "data.processors")
    for after, names in settings.plugins.steps.items():
        if after not in STEPS or not isinstance(names, list):
            raise ConfigError(
                f"plugins.steps.{after}: write STEP: [NAME, …], STEP one of {', '.join(STEPS)}.",
                code="config.wrong_value",
            )
        for name in names:
            _known("step", name, f"plugins.steps.{after}")


def _known(kind: str, name: str, key: str) -> None:
    known = registry.names(kind)
    if name in known:
        return
    raise PluginError(
        f"{key} = {name!r}: there is no {kind} of this name.",
        code="plugin.unknown",
        next_step=f"Known: {', '.join(known)}.",
    )
