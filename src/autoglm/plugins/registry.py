"""Parts by `kind:name`, from the entry-point group `autoglm.plugins` or `register`; lazy.

The product's own parts come by the same door. A broken plugin stops nobody but who asks for it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import Distribution, EntryPoint
from typing import Any, overload

from autoglm.errors import PluginError
from autoglm.plugins.context import API_VERSION
from autoglm.plugins.entries import entries_of
from autoglm.plugins.kinds import KINDS
from autoglm.plugins.sections import same_key, section_problem

GROUP = "autoglm.plugins"
OURS = "open-autoglm"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One line of `autoglm plugins`: `problem` is empty for a sound part."""

    kind: str
    name: str
    origin: str
    problem: str
    is_loaded: bool


@dataclass(kw_only=True, slots=True)
class _Registered:
    part: Any
    origin: str


_registered: dict[str, _Registered] = {}
_allowed: tuple[str, ...] = ()
_considered: ContextVar[tuple[str, ...] | None] = ContextVar("considered", default=None)
_origin = "register"


def allow(names: tuple[str, ...]) -> None:
    """Only these (`kind:name`, or a distribution's name) may be used; empty: all. Ours always."""
    global _allowed
    _allowed = names


@contextmanager
def considering(names: tuple[str, ...]) -> Iterator[None]:
    """Inside, and in this thread alone, `names` stand for the allow-list: a configuration that
    is only being read changes nothing for those who work with the one in force.
    """
    token = _considered.set(names)
    try:
        yield
    finally:
        _considered.reset(token)


def _is_allowed(key: str, source: str) -> bool:
    considered = _considered.get()
    names = _allowed if considered is None else considered
    return source == OURS or not names or bool({key, source} & set(names))


def _is_named(key: str, source: str) -> bool:
    """Allowed by its own name, and not because everything is."""
    considered = _considered.get()
    return bool({key, source} & set(_allowed if considered is None else considered))


@overload
def register(kind: Any, name: str, part: Any, *, replace: bool = ...) -> Any: ...
@overload
def register(kind: str, name: str, *, replace: bool = ...) -> Callable[[Any], Any]: ...
@overload
def register(kind: Any, *, replace: bool = ...) -> Any: ...


def register(kind: Any, name: str = "", part: Any = None, *, replace: bool = False) -> Any:
    """Make a part known as `kind:name` in this process.

    `register(kind, name, part)`, `@register(kind, name)` over a class or function, or
    `register(plugin)` for an object with `name`, `kind` and `api_version`.
    Raises: PluginError plugin.duplicate, plugin.unknown_kind, plugin.wrong_version,
    plugin.missing_method.
    """
    if not isinstance(kind, str):
        _register(str(kind.kind), str(kind.name), kind, replace)
        return kind
    if part is None:
        return lambda made: _register(kind, name, made, replace)
    return _register(kind, name, part, replace)


def _register(kind: str, name: str, part: Any, replace: bool) -> Any:
    key = f"{kind}:{name}"
    check(kind, name, part)
    known = _registered.get(key)
    others = [_distribution(entry) for entry in _entry_points().get(key, [])]
    allowed = [source for source in others if _is_allowed(key, source)]
    if (known is not None or allowed) and not replace:
        first = known.origin if known is not None else allowed[0]
        raise PluginError(
            f"{key} is registered twice: by {first} and by {_origin}.",
            code="plugin.duplicate",
            next_step="Give one of them another name, or pass replace=True.",
        )
    _registered[key] = _Registered(part=part, origin=_origin)
    return part


@contextmanager
def registering_from(origin: str) -> Iterator[None]:
    """What is registered inside comes from `origin`; what came from there before is forgotten."""
    global _origin
    for key in [k for k, r in _registered.items() if r.origin == origin]:
        del _registered[key]
    before, _origin = _origin, origin
    try:
        yield
    finally:
        _origin = before


def check(kind: str, name: str, part: Any) -> None:
    """Whether `part` can stand for `kind`. Raises: PluginError naming what is wrong."""
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        raise PluginError(
            f"{kind}:{name}: there is no kind {kind!r}.",
            code="plugin.unknown_kind",
            next_step=f"Did you mean {near[0]}?" if near else f"Kinds: {', '.join(KINDS)}.",
        )
    if kind == "section" and (problem := section_problem(name, part)):
        raise PluginError(
            f"section:{name} cannot be a section: {problem}.",
            code="plugin.bad_section",
            next_step="A section is a frozen, keyword-only dataclass whose fields have defaults.",
        )
    version = getattr(part, "api_version", API_VERSION)
    if version != API_VERSION:
        raise PluginError(
            f"{kind}:{name} is written for plugin API {version}, this is {API_VERSION}.",
            code="plugin.wrong_version",
            next_step="Install a version of it that fits.",
        )
    wanted = KINDS[kind]
    missing = [m for m in wanted.needs if not hasattr(part, m) and not _makes(part, m)]
    is_object = isinstance(part, Mapping) if kind == "space" else hasattr(part, "sample_relative")
    is_made = kind in {"space", "sampler"} and is_object
    if missing or (not wanted.needs and not callable(part) and not is_made):
        lacks = ", ".join(missing) or "a call"
        raise PluginError(
            f"{kind}:{name} lacks {lacks}; what stands for {kind} is {wanted.what}.",
            code="plugin.missing_method",
            next_step="See docs/reference/plugins.md for the smallest one.",
        )


def _makes(part: Any, member: str) -> bool:
    """A factory function says by its return annotation what it makes."""
    if not inspect.isfunction(part):
        return False
    made = part.__annotations__.get("return")
    return made is None or isinstance(made, str) or hasattr(made, member)


@cache
def _entry_points() -> dict[str, list[EntryPoint]]:
    return entries_of(GROUP)


def _distribution(entry: EntryPoint) -> str:
    return _name_of(entry.dist) if entry.dist is not None else "?"


@cache
def _name_of(distribution: Distribution) -> str:
    """It is parsed out of a file, each time it is asked for."""
    return distribution.name


def names(kind: str) -> list[str]:
    """Names known under a kind, without loading anything."""
    keys = {*_registered, *_entry_points()}
    return sorted(k.partition(":")[2] for k in keys if k.startswith(kind + ":"))


def get(kind: str, name: str) -> Any:
    """The part, imported on first use. Raises: PluginError plugin.unknown, plugin.broken,
    plugin.not_allowed, plugin.duplicate, and what `check` raises.
    """
    key = f"{kind}:{name}"
    if key in _registered:
        return _registered[key].part
    entries = _entry_points().get(key, [])
    if not entries:
        known = names(kind)
        near = difflib.get_close_matches(name, known, n=1)
        raise PluginError(
            f"there is no {key}.",
            code="plugin.unknown",
            next_step=f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}.",
        )
    return _loaded(kind, name, _chosen(key, entries))


def is_ours(kind: str, name: str) -> bool:
    """Whether `get` would give the product's own part; loads nothing. Raises: PluginError."""
    key = f"{kind}:{name}"
    entries = _entry_points().get(key, [])
    return key not in _registered and bool(entries) and _distribution(_chosen(key, entries)) == OURS


def place_of(kind: str, name: str) -> str:
    """`module:attribute` of a part of an installed package; loads nothing."""
    key = f"{kind}:{name}"
    return _chosen(key, _entry_points()[key]).value


def _chosen(key: str, entries: list[EntryPoint]) -> EntryPoint:
    """The entry that counts: what is not allowed does not stand in the way of what is, and a part
    of ours gives way to one that plugins.allow names.

    Raises: PluginError plugin.duplicate, plugin.not_allowed.
    """
    allowed = [entry for entry in entries if _is_allowed(key, _distribution(entry))]
    named = [entry for entry in allowed if _is_named(key, _distribution(entry))]
    found = [entry for entry in named if _distribution(entry) != OURS] or allowed
    if not found:
        source = _distribution(entries[0])
        raise PluginError(
            f"{key} of {source} is not in plugins.allow.",
            code="plugin.not_allowed",
            next_step=f"Add {key!r} or {source!r} to plugins.allow.",
        )
    sources = sorted({_distribution(entry) for entry in found})
    if len(sources) > 1:
        raise PluginError(
            f"{key} comes from {' and from '.join(sources)}.",
            code="plugin.duplicate",
            next_step="Uninstall one of them, or name the one that counts in plugins.allow.",
        )
    return found[0]


def _loaded(kind: str, name: str, entry: EntryPoint) -> Any:
    key, source = f"{kind}:{name}", _distribution(entry)
    try:
        part = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a module that leaves is a broken one
        raise PluginError(
            f"{key} of {source} cannot be loaded: {type(error).__name__}: {error}.",
            code="plugin.broken",
            next_step=f"Correct or uninstall {source}.",
        ) from error
    try:
        check(kind, name, part)
    except PluginError:
        raise
    except Exception as error:  # its attributes may be code
        raise PluginError(
            f"{key} of {source} cannot be looked at: {type(error).__name__}: {error}.",
            code="plugin.broken",
            next_step=f"Correct or uninstall {source}.",
        ) from error
    return part


def survey(*, load_ours: bool = False) -> list[Found]:
    """Every part that is there; those of others are loaded to see whether they are sound."""
    found = []
    for key, record in _registered.items():
        kind, _, name = key.partition(":")
        found.append(Found(kind=kind, name=name, origin=record.origin, problem="", is_loaded=True))
    for key, entries in _entry_points().items():
        found += [_surveyed(key, entry, entries, load_ours) for entry in entries]
    left_out = sections_left_out()
    found = [
        replace(f, problem=left_out[f.name])
        if f.kind == "section" and not f.problem and f.name in left_out
        else f
        for f in found
    ]
    return sorted(found, key=lambda f: (f.kind, f.name))


def _surveyed(key: str, entry: EntryPoint, entries: list[EntryPoint], load_ours: bool) -> Found:
    kind, _, name = key.partition(":")
    source, problem = _distribution(entry), ""
    is_tried = load_ours or source != OURS
    try:
        counts = _chosen(key, entries)
        if _distribution(counts) != source:
            is_allowed = _is_allowed(key, source)
            why = f"{_distribution(counts)}'s counts" if is_allowed else "not in plugins.allow"
            problem = f"plugin.not_used: {why}"
        elif is_tried:
            _loaded(kind, name, entry)
    except PluginError as error:
        problem = f"{error.code}: {error.message}"
    is_loaded = is_tried and not problem
    return Found(kind=kind, name=name, origin=source, problem=problem, is_loaded=is_loaded)


def sections() -> dict[str, tuple[Any, str]]:
    """Config sections that plugins declare: name → (dataclass, environment prefix or `""`).

    A section that cannot be used is left out; `sections_left_out` and `survey` say why.
    """
    return _gathered()[0]


def sections_left_out() -> dict[str, str]:
    """Section → why it cannot be used."""
    return _gathered()[1]


def _gathered() -> tuple[dict[str, tuple[Any, str]], dict[str, str]]:
    found, problems = {}, {}
    for name in names("section"):
        try:
            section = get("section", name)
        except PluginError as error:
            problems[name] = f"{error.code}: {error.message}"
            continue
        found[name] = (section, str(getattr(section, "env_prefix", "")))
    prefixes = [prefix for _, prefix in found.values() if prefix]
    for name, other in same_key(list(found)).items():
        problems[name] = f"plugin.duplicate: section:{name} and section:{other} are one key."
    for name, (_section, prefix) in found.items():
        if prefixes.count(prefix) > 1:
            problems[name] = f"plugin.duplicate: two sections declare env_prefix {prefix}."
    return {name: made for name, made in found.items() if name not in problems}, problems
