"""The whole configuration of a project: one section per package that reads it.

files, environment, command line → imports, plugins.allow, config.centre   (a first look)
project's own files are executed, the centre is asked                      (only if any is named)
all layers → settings                                                      (config_loader.bind)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from annotated_types import Len

from autoglm.config.centre import Centre, Heard, centre_layer
from autoglm.config.config import CentreConfig, ConfigConfig
from autoglm.config.config_loader import Config, bind
from autoglm.config.layers import (
    PREFIX,
    Layer,
    command_line_layer,
    environment_layer,
    file_layer,
    frozen_layer,
    tree_layer,
)
from autoglm.config.live import LiveConfig
from autoglm.config.merging import default_of
from autoglm.config.paths import canonical, parse_path, squeezed
from autoglm.config.provenance import flat, shown
from autoglm.config.schema import Key, check_sections, is_secret, leaf_keys
from autoglm.contracts.record import digest, from_json, to_json
from autoglm.contracts.run_spec import ProjectFile, RunSpec
from autoglm.contracts.task import TASKS
from autoglm.errors import ConfigError, PluginError
from autoglm.evaluation.config import EvaluateConfig
from autoglm.evaluation.roles import objective
from autoglm.modeling.config import ModelConfig
from autoglm.plugins import project_files, registry, sections
from autoglm.plugins.config import PluginsConfig
from autoglm.registry.config import StorageConfig
from autoglm.release.config import ReleaseConfig
from autoglm.reuse.config import CacheConfig
from autoglm.search.config import SearchConfig
from autoglm.serving.config import ServingConfig
from autoglm.streaming.config import DataConfig, StreamingConfig
from autoglm.training.config import TrainingConfig
from autoglm.triggers.config import TriggerConfig

T = TypeVar("T")

FILE_NAME = "autoglm.yaml"
DEFAULT_PROFILE = "default"
# What `autoglm search apply` writes: a layer of its own, between the files and the profile's.
TUNED_NAME = "autoglm.tuned.yaml"
COPY = "remote_config.json"
# The layer of values that a program gives by `Project.with_values`.
PROGRAM = "Python"
# What changes which model comes out; the other sections only change how it is run and released.
LEARNING_SECTIONS = ("model", "data", "search", "training", "evaluate")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    project: Annotated[str, Len(1, 63), Key("Name that every record, line and metric carries.")]
    model: Annotated[ModelConfig, Key("What is adapted.")]
    data: Annotated[DataConfig, Key("Where rows come from and which columns count.")]
    streaming: Annotated[StreamingConfig, Key("How changes come from source to table.")] = field(
        default_factory=StreamingConfig
    )
    search: Annotated[SearchConfig, Key("How the best adaptation is looked for.")] = field(
        default_factory=SearchConfig
    )
    training: Annotated[TrainingConfig, Key("How one trial is trained.")] = field(
        default_factory=TrainingConfig
    )
    cache: Annotated[CacheConfig, Key("What is not computed twice.")] = field(
        default_factory=CacheConfig
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
sections.reserve([each.name for each in fields(Settings)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """Where the settings of one project are read from."""

    folder: Path
    profile: str = DEFAULT_PROFILE
    more_files: tuple[Path, ...] = ()
    assignments: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)  # a Python program's, the strongest

    @property
    def state(self) -> Path:
        return self.folder / ".autoglm" / self.profile

    def files(self) -> list[Path]:
        """Weakest first. A `.properties` file beside a YAML one is read if it is there, and so are
        the tuned values.

        Raises: ConfigError when the profile has no file.
        """
        main, plain, *profile = self._own()
        there = [path for path in profile if path.exists()]
        if profile and not there:
            raise ConfigError(
                f"profile {self.profile!r}: there is no {profile[0].name}, no {profile[1].name}.",
                code="config.missing_file",
                next_step=f"Write {profile[0]}; it may be empty.",
            )
        below = [path for path in (plain, self.tuned) if path.exists()]
        return [main, *below, *self.more_files, *there]

    def above(self) -> list[Layer]:
        """What is stronger than the environment and the centre."""
        said = [tree_layer(PROGRAM, self.values, place=PROGRAM)] if self.values else []
        return [command_line_layer(self.assignments), *said]

    def possible_files(self) -> list[Path]:
        """Every file that counts, or would if it were there."""
        return [*self._own(), self.tuned, *self.more_files]

    @property
    def tuned(self) -> Path:
        return self.folder / TUNED_NAME

    def _own(self) -> list[Path]:
        stem = FILE_NAME.removesuffix(".yaml")
        stems = [stem] + ([f"{stem}.{self.profile}"] if self.profile != DEFAULT_PROFILE else [])
        return [self.folder / f"{name}.{end}" for name in stems for end in ("yaml", "properties")]

    def file_layers(self) -> list[Layer]:
        """Two files of one name are told apart by their path."""
        paths = self.files()
        names = [path.name for path in paths]
        return [
            file_layer(path, name=str(path) if names.count(path.name) > 1 else "") for path in paths
        ]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _First:
    """What must be known before the rest can be read."""

    imports: tuple[str, ...] = ()
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    config: ConfigConfig = field(default_factory=ConfigConfig)


def load_settings(folder: Path, *, assignments: Sequence[str] = ()) -> Config[Settings]:
    """Settings of the project in `folder`, default profile. Raises: ConfigError."""
    return read_settings(Layers(folder=folder, assignments=tuple(assignments)))


def read_settings(where: Layers) -> Config[Settings]:
    """All layers, bound. Nothing is in force yet: the allow-list is the caller's to apply.

    Raises: ConfigError, PluginError from the project's own files.
    """
    files, above = where.file_layers(), where.above()
    first = _first([*files, _environment(), *above], where.folder)
    problem: PluginError | None = None
    heard: Heard | None = None
    with registry.considering(first.plugins.allow):
        problem = _execute(where, first.imports)
        heard = _ask_centre(where, first.config.centre, problem)
    if heard is not None:
        before = first.imports
        first = _first([*files, _environment(), heard.layer, *above], where.folder)
        if first.imports != before:
            problem = _execute(where, first.imports)
    with registry.considering(first.plugins.allow):
        remote = [] if heard is None else [heard.layer]
        config = _bound([*files, _environment(), *remote, *above], where, problem)
    if heard is not None:
        heard.keep(where.state / COPY)
    return config


def _bound(layers: Sequence[Layer], where: Layers, problem: PluginError | None) -> Config[Settings]:
    """`problem`: what is wrong with the project's own files. It is told when a key needed them."""
    left_out = registry.sections_left_out()
    reasons = {
        canonical(name): f"The section {name} of a plugin is left out: {why}"
        for name, why in left_out.items()
    }
    try:
        return bind(schema(), layers, base=where.folder, left_out=reasons)
    except ConfigError as error:
        if problem is None or error.code != "config.unknown_key":
            raise
        raise problem from error


def _first(layers: Sequence[Layer], base: Path) -> _First:
    """A look at three sections; free when no layer speaks of them."""
    if not any(_speaks_of_first(layer) for layer in layers):
        return _First()
    return bind(_First, layers, base=base, whole=schema(), ignore_unknown=True).settings


def _speaks_of_first(layer: Layer) -> bool:
    names = ("imports", "plugins", "config")
    return any(canonical(leaf.path[0]) in names for leaf in layer.leaves) or any(
        squeezed(name.removeprefix(PREFIX)).startswith(names) for name in layer.variables
    )


def _execute(where: Layers, imports: Sequence[str]) -> PluginError | None:
    """Make the parts of the project's own files known; what is wrong with them is returned."""
    try:
        files = project_files.read_files(where.folder, imports)
        project_files.execute(files, where.state / "code")
    except PluginError as error:
        return error
    return None


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


def _ask_centre(where: Layers, config: CentreConfig, problem: PluginError | None) -> Heard | None:
    try:
        centre = open_centre(where, config)
    except PluginError as error:
        if problem is not None and error.code == "plugin.unknown":
            raise problem from error  # it would have come from the project's own files
        raise _bad_centre(config, error) from error
    if centre is None:
        return None
    try:
        copy = where.state / COPY
        return centre_layer(centre, name=config.kind, copy=copy, is_required=config.required)
    finally:
        centre.close()


def _bad_centre(config: CentreConfig, error: PluginError) -> PluginError:
    return PluginError(
        f"config.centre.kind = {config.kind!r}: {error.message}",
        code=error.code,
        next_step=error.next_step,
        exit_code=2,  # the configuration is wrong, no work was tried
    )


def live_settings(
    where: Layers,
    current: Config[Settings],
    *,
    on_change: Callable[[Config[Settings], list[str]], None],
    alarm: Callable[[ConfigError], None],
    judge: Callable[[Config[Settings]], None] | None = None,
) -> LiveConfig[Settings]:
    """Settings that follow files and centre; `alarm` hears of every change that was refused.

    `judge` knows what the layers below cannot: names of parts, the search space (loop.names).
    """
    live = LiveConfig(
        current,
        lambda: read_settings(where),
        on_change=on_change,
        on_refused=alarm,
        judge=judge,
    )

    def watch() -> Iterator[str]:
        centre = open_centre(where, live.current.settings.config.centre)
        assert centre is not None, "only watched when there is one"
        try:
            yield from centre.watch("")
        finally:
            centre.close()

    live.start(where.possible_files, watch if current.settings.config.centre.kind else None)
    return live


def metric_of(settings: Settings) -> str:
    """The evaluator that picks and gates: the project's, or the task's own. Raises: ConfigError
    when evaluate.metric and evaluate.metrics contradict each other.
    """
    said = objective(settings.evaluate.metric, settings.evaluate.metrics)
    return TASKS[settings.model.task].metric if said == "auto" else said


def snapshot(settings: Settings) -> dict[str, Any]:
    """The frozen tree that a run keeps (durations in seconds)."""
    tree: dict[str, Any] = to_json(settings)
    return tree


def from_snapshot(tree: Mapping[str, Any]) -> Settings:
    return from_json(schema(), tree)


def freeze(config: Config[Settings]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The tree that a run keeps, and the keys whose value it does not keep, being secret.

    In their place stands what people may see; `unfreeze` reads them from the layers again.
    """
    tree, secrets = snapshot(config.settings), []
    for key, value in flat(config.settings).items():
        visible = shown(config, key, value)
        if visible != value:
            secrets.append(key)
            _put(tree, key, visible)
    return tree, tuple(secrets)


def completed(spec: RunSpec) -> RunSpec:
    """A spec of an earlier version, with the defaults of the keys that its sections did not know
    yet.
    """
    kind: Any = schema()
    tree = _copied(spec.config)
    for key in leaf_keys(kind):
        *parents, last = key.split(".")
        place = tree if parents and parents[0] in tree else {}
        for name in parents:
            place = place.setdefault(name, {})
        if last not in place:
            place[last] = to_json(default_of(kind, key))
    return replace(spec, config=tree)


def unfreeze(spec: RunSpec, config: Config[Settings]) -> RunSpec:
    """The run's spec with its secrets as the layers say them now; for memory, never for a disk."""
    spec = completed(spec)
    if not spec.secrets:
        return spec
    values, tree = flat(config.settings), _copied(spec.config)
    for key in spec.secrets:
        if key in values:
            _put(tree, key, values[key])
    return replace(spec, config=tree)


def _copied(tree: Any) -> Any:
    return {k: _copied(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = parse_path(key)
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value


def run_settings(
    spec: RunSpec, config: Config[Settings], *, trial: Mapping[str, Any], name: str
) -> Config[Settings]:
    """What a trial of a run was made with: the run's frozen tree, and `trial` on top of it.

    `config` is the one in force, of which only the secrets are taken.
    """
    frozen = frozen_layer(f"run {spec.run_id}", unfreeze(spec, config).config)
    layers = [frozen, tree_layer(name, trial, place=name)]
    found = bind(schema(), layers, ignore_unknown=True)
    return replace(found, secrets=found.secrets | frozenset(spec.secrets) & config.secrets)


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
    own code. A secret teaches nothing, and a digest of it could be guessed at: it is left out.
    """
    tree, made = snapshot(settings), type(settings)
    for key, annotation in leaf_keys(made).items():  # type: ignore[arg-type]
        if is_secret(annotation):
            *parents, last = key.split(".")
            reduce(lambda node, name: node[name], parents, tree).pop(last)
    data = {
        k: v
        for k, v in tree["data"].items()
        if k in {"text", "label", "max_length", "min_rows", "split"}
    }
    learning = {**{name: tree[name] for name in LEARNING_SECTIONS}, "data": data}
    own = {name: section for name, section in tree.items() if name in registry.sections()}
    return digest(learning, own, {file.name: file.digest for file in files})
