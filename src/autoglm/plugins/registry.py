"""Parts by `kind:name`, from the entry-point group `autoglm.plugins` or `register`; lazy.

The product's own parts come by the same door. A broken plugin stops nobody but who asks for it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, overload

from autoglm.errors import PluginError
from autoglm.plugins.context import API_VERSION
from autoglm.plugins.kinds import KINDS

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
_origin = "register"


def allow(names: tuple[str, ...]) -> None:
    """Only these (`kind:name`, or a distribution's name) may be used; empty: all. Ours always."""
    global _allowed
    _allowed = names


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
    if known is not None and not replace and not (known.origin == _origin != "register"):
        raise PluginError(
            f"{key} is registered twice: by {known.origin} and by {_origin}.",
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
    version = getattr(part, "api_version", API_VERSION)
    if version != API_VERSION:
        raise PluginError(
            f"{kind}:{name} is written for plugin API {version}, this is {API_VERSION}.",
            code="plugin.wrong_version",
            next_step="Install a version of it that fits.",
        )
    wanted = KINDS[kind]
    missing = [m for m in wanted.needs if not hasattr(part, m) and not _makes(part, m)]
    if missing or (not wanted.needs and not callable(part)):
        lacks = ", ".join(missing) or "a call"
        raise PluginError(
            f"{kind}:{name} lacks {lacks}; a {kind} is {wanted.what}.",
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
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "?"


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
    if len({_distribution(e) for e in entries}) > 1:
        raise PluginError(
            f"{key} comes from {' and from '.join(sorted(_distribution(e) for e in entries))}.",
            code="plugin.duplicate",
            next_step="Uninstall one of them.",
        )
    return _loaded(kind, name, entries[0])


def _loaded(kind: str, name: str, entry: EntryPoint) -> Any:
    key, source = f"{kind}:{name}", _distribution(entry)
    if _allowed and source != OURS and not {key, source} & set(_allowed):
        raise PluginError(
            f"{key} of {source} is not in plugins.allow.",
            code="plugin.not_allowed",
            next_step=f"Add {key!r} or {source!r} to plugins.allow.",
        )
    try:
        part = entry.load()
    except Exception as error:
        raise PluginError(
            f"{key} of {source} cannot be loaded: {type(error).__name__}: {error}.",
            code="plugin.broken",
        ) from error
    check(kind, name, part)
    return part


def survey(*, load_ours: bool = False) -> list[Found]:
    """Every part that is there; those of others are loaded to see whether they are sound."""
    found = []
    for key, record in _registered.items():
        kind, _, name = key.partition(":")
        found.append(Found(kind=kind, name=name, origin=record.origin, problem="", is_loaded=True))
    for key, entries in _entry_points().items():
        kind, _, name = key.partition(":")
        for entry in entries:
            is_tried = load_ours or _distribution(entry) != OURS
            problem = ""
            if is_tried:
                try:
                    get(kind, name)
                except PluginError as error:
                    problem = f"{error.code}: {error.message}"
            found.append(
                Found(
                    kind=kind,
                    name=name,
                    origin=_distribution(entry),
                    problem=problem,
                    is_loaded=is_tried and not problem,
                )
            )
    return sorted(found, key=lambda f: (f.kind, f.name))


def sections() -> dict[str, tuple[Any, str]]:
    """Config sections that plugins declare: name → (dataclass, environment prefix or `""`).

    A section that cannot be loaded is left out; `survey` says why.
    """
    found = {}
    for name in names("section"):
        try:
            section = get("section", name)
        except PluginError:
            continue
        found[name] = (section, str(getattr(section, "env_prefix", "")))
    return found
