"""`${name}`, `${name:default}`, nested, `${env:X}`, `${file:path}`; cycles show their chain."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoglm.config.paths import canonical
from autoglm.config.yaml_reader import Text
from autoglm.errors import ConfigError

Lookup = Callable[[str], tuple[bool, Any]]


def _nobody(_path: str) -> None:
    return None


def resolve(
    value: Any,
    lookup: Lookup,
    *,
    base: Path,
    chain: tuple[str, ...] = (),
    on_file: Callable[[str], None] = _nobody,
) -> Any:
    """Replace placeholders in `value`. A text that is one placeholder keeps the value's type.

    `lookup(name)` says whether some layer has the key, and its raw value. `on_file` hears of each
    `${file:…}`: what came from one is a secret.
    Raises: ConfigError for a cycle, a missing name, an unclosed brace.
    """
    if isinstance(value, list):
        return [resolve(item, lookup, base=base, chain=chain, on_file=on_file) for item in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    start = value.index("${")
    end = _closing(value, start, chain)
    found = _one(value[start + 2 : end], lookup, base, chain, on_file)
    if start == 0 and end == len(value) - 1:
        return found
    rest = resolve(value[end + 1 :], lookup, base=base, chain=chain, on_file=on_file)
    return f"{value[:start]}{found}{rest}"


def _one(
    inside: str,
    lookup: Lookup,
    base: Path,
    chain: tuple[str, ...],
    on_file: Callable[[str], None],
) -> Any:
    if "${" in inside:
        inside = str(resolve(inside, lookup, base=base, chain=chain, on_file=on_file))
    name, colon, default = inside.partition(":")
    if name == "env":
        variable, has_default, default = default.partition(":")
        if variable in os.environ:
            return Text(os.environ[variable])
        return Text(default) if has_default else _missing(f"env:{variable}", chain)
    if name == "file":
        path = base / default
        on_file(default)
        try:
            return Text(path.read_text(encoding="utf-8").rstrip("\n"))
        except OSError as error:
            raise ConfigError(
                f"${{file:{default}}}: {error.strerror}.", code="config.placeholder"
            ) from error
    if canonical(name) in [canonical(seen) for seen in chain]:
        raise ConfigError(
            f"placeholders go in a circle: {' → '.join((*chain, name))}.", code="config.cycle"
        )
    is_known, raw = lookup(name)
    if is_known:
        return resolve(raw, lookup, base=base, chain=(*chain, name), on_file=on_file)
    return Text(default) if colon else _missing(name, chain)


def _missing(name: str, chain: tuple[str, ...]) -> Any:
    by = f" (asked by {' → '.join(chain)})" if chain else ""
    raise ConfigError(
        f"${{{name}}} has no value{by}.",
        code="config.placeholder",
        next_step="Set it, or give a default: ${name:default}.",
    )


def _closing(value: str, start: int, chain: tuple[str, ...]) -> int:
    depth, index = 0, start
    while index < len(value):
        if value.startswith("${", index):
            depth, index = depth + 1, index + 2
            continue
        if value[index] == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    raise ConfigError(f"{value!r}: `${{` is never closed.", code="config.placeholder")
