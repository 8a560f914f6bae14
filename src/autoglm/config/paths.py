"""Names of keys: `labels[a.b]`, `release.steps[0]`, and the spelling that makes them one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

_PART = re.compile(r"\[([^\[\]]*)\]|([^.\[\]]+)")


@cache
def canonical(name: str) -> str:
    """`data-source`, `dataSource`, `DATA_SOURCE` → `datasource`. Dots stay: they part levels."""
    return name.lower().replace("-", "").replace("_", "")


@cache
def squeezed(key: str) -> str:
    """A dotted key as an environment name spells it: without any mark between its parts."""
    return canonical(key).replace(".", "")


def canonical_path(key: str) -> tuple[str, ...]:
    """The parts of a key in any spelling, level by level. Raises: ValueError for no key."""
    return tuple(canonical(part) for part in parse_path(key))


def parse_path(text: str) -> tuple[str, ...]:
    """`search.space[a.b].uniform` → its parts; what stands in brackets is taken as it is.

    Raises: ValueError for an empty part or a bracket without its other half.
    """
    parts: list[str] = []
    position = 0
    while position < len(text):
        if parts and text[position] == ".":
            position += 1
        match = _PART.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not a key")
        parts.append(match[1] if match[1] is not None else match[2].strip())
        position = match.end()
        if position < len(text) and text[position] not in ".[":
            raise ValueError(f"{text!r} is not a key")
    if not parts or "" in parts or text.endswith("."):
        raise ValueError(f"{text!r} is not a key")
    return tuple(parts)


def format_path(parts: Sequence[str]) -> str:
    """The inverse of `parse_path`: parts with a dot or a bracket stand in brackets."""
    text = ""
    for part in parts:
        if not part or set(part) & set(".[]"):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def nearest(name: str, options: Iterable[str]) -> str:
    """The option most like `name`, `""` when none is."""
    import difflib  # some milliseconds of import that only a mistake needs

    found = difflib.get_close_matches(name, list(options), n=1)
    return found[0] if found else ""


def variable(prefix: str, key: str) -> str:
    """The environment name of a dotted key."""
    return prefix + re.sub(r"[^A-Za-z0-9]+", "_", key).strip("_").upper()
