"""The whole configuration of a project: one section per package that reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from annotated_types import Len

from autoglm.config.centre import Centre, centre_layer
from autoglm.config.config import CentreConfig, ConfigConfig
from autoglm.config.config_loader import Config, bind
from autoglm.config.layers import (
    PREFIX,
    Layer,
    command_line_layer,
    environment_layer,
    file_layer,
    tree_layer,
)
from autoglm.config.live import LiveConfig
from autoglm.config.schema import Key, check_sections
from autoglm.contracts.record import digest, from_json, to_json
from autoglm.contracts.run_spec import ProjectFile
from autoglm.errors import ConfigError
from autoglm.evaluation.config import EvaluateConfig
from autoglm.modeling.config import ModelConfig
from autoglm.plugins import project_files, registry
from autoglm.plugins.config import PluginsConfig
from autoglm.registry.config import StorageConfig
from autoglm.release.config import ReleaseConfig
from autoglm.search.config import SearchConfig
from autoglm.serving.config import ServingConfig
from autoglm.streaming.config import DataConfig
from autoglm.training.config import TrainingConfig
from autoglm.triggers.config import TriggerConfig

T = TypeVar("T")

FILE_NAME = "autoglm.yaml"
DEFAULT_PROFILE = "default"
# What changes which model comes out; the other sections only change how it is run and released.
LEARNING_SECTIONS = ("model", "data", "search", "training", "evaluate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    project: Annotated[str, Len(1, 63), Key("Name that every record, line and metric carries.")]
    model: Annotated[ModelConfig, Key("What is adapted.")]
    data: Annotated[DataConfig, Key("Where rows come from and which columns count.")]
    search: Annotated[SearchConfig, Key("How the best adaptation is looked for.")] = field(
        default_factory=SearchConfig
    )
    training: Annotated[TrainingConfig, Key("How one trial is trained.")] = field(
        default_factory=TrainingConfig
    )
    evaluate: Annotated[EvaluateConfig, Key("What counts as better.")] = field(
        default_factory=EvaluateConfig
    )
    trigger: Annotated[TriggerConfig, Key("What starts a run.")] = field(
        default_factory=TriggerConfig
    )
    release: Annotated[ReleaseConfig, Key("How a candidate gets traffic.")] = field(
        default_factory=ReleaseConfig
    )
    serving: Annotated[ServingConfig, Key("Gateway and model workers.")] = field(
        default_factory=ServingConfig
    )
    storage: Annotated[StorageConfig, Key("What may lie on disk.")] = field(
        default_factory=StorageConfig
    )
    imports: Annotated[
        tuple[str, ...],
        Key("Python files of the project that register parts, read again for each run.", True),
    ] = ()
    plugins: Annotated[PluginsConfig, Key("Which parts of others may be used, and when.")] = field(
        default_factory=PluginsConfig
    )
    config: Annotated[ConfigConfig, Key("Where values come from.")] = field(
        default_factory=ConfigConfig
    )


check_sections(Settings)


@dataclass(frozen=True, kw_only=True, slots=True)
class _First:
    """What must be known before the rest can be read."""

    imports: tuple[str, ...] = ()
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    config: ConfigConfig = field(default_factory=ConfigConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """Where the settings of one project are read from."""

    folder: Path
    profile: str = DEFAULT_PROFILE
    more_files: tuple[Path, ...] = ()
    assignments: tuple[str, ...] = ()

    @property
    def state(self) -> Path:
        return self.folder / ".autoglm" / self.profile

    def files(self) -> list[Path]:
        """Weakest first. A `.properties` file beside a YAML one is read if it is there."""
        stem = FILE_NAME.removesuffix(".yaml")
        plain = self.folder / f"{stem}.properties"
        found = [self.folder / FILE_NAME, *([plain] if plain.exists() else []), *self.more_files]
        if self.profile != DEFAULT_PROFILE:
            ways = [self.folder / f"{stem}.{self.profile}.{end}" for end in ("yaml", "properties")]
            there = [path for path in ways if path.exists()]
            if not there:
                raise ConfigError(
                    f"profile {self.profile!r}: there is no {ways[0].name}, no {ways[1].name}.",
                    code="config.missing_file",
                    next_step=f"Write {ways[0]}; it may be empty.",
                )
            found += there
        return found


def schema() -> type[Settings]:
    """Settings, with the sections that plugins declare."""
    declared = registry.sections()
    return _with_sections(tuple((name, made) for name, (made, _) in sorted(declared.items())))


@cache
def _with_sections(sections: tuple[tuple[str, Any], ...]) -> type[Settings]:
    if not sections:
        return Settings
    fields = [(n, s, field(default_factory=s)) for n, s in sections]
    return make_dataclass("Settings", fields, bases=(Settings,), frozen=True, kw_only=True)


def load_settings(folder: Path, *, assignments: Sequence[str] = ()) -> Config[Settings]:
    """Settings of the project in `folder`, default profile. Raises: ConfigError."""
    return read_settings(Layers(folder=folder, assignments=tuple(assignments)))


def read_settings(
    where: Layers, *, trial: Mapping[str, Any] | None = None, trial_name: str = ""
) -> Config[Settings]:
    """All layers, bound. `trial`: a trial's parameters, the strongest layer of all.

    Raises: ConfigError, PluginError from the project's own files.
    """
    files = [file_layer(path) for path in where.files()]
    above = [command_line_layer(where.assignments)]
    if trial is not None:
        above.append(tree_layer(trial_name, trial, place=trial_name))
    first = bind(_First, [*files, _environment(), above[0]], ignore_unknown=True).settings
    registry.allow(first.plugins.allow)
    remote = _remote(where, first.config.centre)
    try:
        layers = [*files, _environment(), *remote, *above]
        return bind(schema(), layers, base=where.folder)
    except ConfigError as error:
        if error.code != "config.unknown_key" or not first.imports:
            raise
    # A section of the project's own files, perhaps: only now is it worth their import.
    project_files.execute(
        project_files.read_files(where.folder, first.imports), where.state / "code"
    )
    layers = [*files, _environment(), *remote, *above]
    return bind(schema(), layers, base=where.folder)


def _environment() -> Layer:
    prefixes = {PREFIX: ""}
    prefixes |= {prefix: name for name, (_, prefix) in registry.sections().items() if prefix}
    return environment_layer(os.environ, prefixes)


def open_centre(where: Layers, config: CentreConfig) -> Centre | None:
    """The remote centre's driver. Raises: PluginError for an unknown kind."""
    if not config.kind:
        return None
    made: Centre = registry.get("config_centre", config.kind)(config, where.profile)
    return made


def _remote(where: Layers, config: CentreConfig) -> list[Layer]:
    centre = open_centre(where, config)
    if centre is None:
        return []
    try:
        layer, _revision = centre_layer(
            centre,
            name=config.kind,
            copy=where.state / "remote_config.json",
            is_required=config.required,
        )
    finally:
        centre.close()
    return [layer]


def live_settings(
    where: Layers,
    current: Config[Settings],
    *,
    on_change: Callable[[Config[Settings], list[str]], None],
    alarm: Callable[[ConfigError], None],
) -> LiveConfig[Settings]:
    """Settings that follow files and centre; `alarm` hears of every change that was refused."""
    live = LiveConfig(current, lambda: read_settings(where), on_change=on_change, on_refused=alarm)

    def watch() -> Iterator[str]:
        centre = open_centre(where, live.current.settings.config.centre)
        assert centre is not None, "only watched when there is one"
        try:
            yield from centre.watch("")
        finally:
            centre.close()

    live.start(where.files(), watch if current.settings.config.centre.kind else None)
    return live


def snapshot(settings: Settings) -> dict[str, Any]:
    """The frozen tree that a run keeps (durations in seconds)."""
    tree: dict[str, Any] = to_json(settings)
    return tree


def from_snapshot(tree: Mapping[str, Any]) -> Settings:
    return from_json(schema(), tree)


def section_of(settings: Settings, wanted: type[T]) -> T:
    """The section of this class, wherever it stands. Raises: LookupError."""
    pending: list[Any] = [settings]
    while pending:
        section = pending.pop(0)
        if type(section) is wanted:
            found: T = section
            return found
        pending += [v for f in fields(section) if is_dataclass(v := getattr(section, f.name))]
    if any(made is wanted for made, _prefix in registry.sections().values()):
        return wanted()  # declared after these settings were read: nobody has set anything of it
    raise LookupError(f"{wanted.__name__} is no section of these settings")


def inject(factory: Callable[..., T], settings: Settings, **arguments: Any) -> T:
    """Call `factory` with each parameter whose annotation is a section's class filled in."""
    sections: dict[str, Any] = {}
    takes = getattr(factory, "__init__", factory) if isinstance(factory, type) else factory
    for name, annotation in get_type_hints(takes).items():
        if name not in arguments and name != "return" and is_dataclass(annotation):
            sections[name] = section_of(settings, annotation)  # type: ignore[arg-type]
    return factory(**sections, **arguments)


def learning_digest(settings: Settings, files: Sequence[ProjectFile] = ()) -> str:
    """Digest of what decides which model comes out of given rows: settings, and the project's
    own code.
    """
    tree = snapshot(settings)
    data = {
        k: v
        for k, v in tree["data"].items()
        if k in {"text", "label", "max_length", "min_rows", "split"}
    }
    learning = {**{name: tree[name] for name in LEARNING_SECTIONS}, "data": data}
    own = {name: section for name, section in tree.items() if name in registry.sections()}
    return digest(learning, own, {file.name: file.digest for file in files})
