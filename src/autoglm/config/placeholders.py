"""`${name}`, `${name:default}`, nested, `${env:X}`, `${file:path}`; cycles show their chain.

A default is only looked at when it is needed. `$${` is a literal `${`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoglm.config.masking import sounds_secret
from autoglm.config.paths import canonical
from autoglm.config.yaml_reader import Text
from autoglm.errors import ConfigError

MAX_DEPTH = 100
NOTE = "Set it, or give a default: ${name:default}. A literal ${ is written $${."


@dataclass(frozen=True, slots=True)
class Found:
    """What stands under a name: its raw value, its key, and whether that key is a secret."""

    value: Any
    key: str
    is_secret: bool = False


@dataclass(slots=True)
class Resolver:
    """Replaces placeholders. `lookup(name)` gives what some layer says of it, None for nothing.

    `is_secret` turns true when a file, a secret key or a variable that sounds secret took part;
    `asked` lists the keys that were looked up.
    """

    lookup: Callable[[str], Found | None]
    base: Path
    is_secret: bool = False
    asked: list[str] = field(default_factory=list)

    def resolve(self, value: Any, chain: tuple[str, ...] = ()) -> Any:
        """A text that is one placeholder keeps the type of what it names.

        Raises: ConfigError for a cycle, a missing name, an unclosed brace, nesting without end.
        """
        if isinstance(value, list):
            return [self.resolve(item, chain) for item in value]
        if isinstance(value, Mapping):
            return {key: self.resolve(inner, chain) for key, inner in value.items()}
        if not isinstance(value, str) or "${" not in value:
            return value
        if len(chain) > MAX_DEPTH:
            raise _refused("placeholders are nested without end", chain)
        pieces = self._pieces(value, chain)
        return pieces[0] if len(pieces) == 1 else "".join(map(str, pieces))

    def _pieces(self, value: str, chain: tuple[str, ...]) -> list[Any]:
        pieces: list[Any] = []
        position = 0
        while (start := value.find("${", position)) >= 0:
            if start > position and value[start - 1] == "$":
                pieces.append(value[position : start - 1] + "${")
                position = start + 2
                continue
            end = _closing(value, start, chain)
            pieces += [value[position:start]] if start > position else []
            pieces.append(self._one(value[start + 2 : end], chain))
            position = end + 1
        return pieces + ([value[position:]] if position < len(value) else [])

    def _one(self, inside: str, chain: tuple[str, ...]) -> Any:
        name, default = _split(inside)
        name = str(self.resolve(name, (*chain, "${…}"))) if "${" in name else name
        if name == "env":
            return self._variable(default or "", chain)
        if name == "file":
            return self._file(str(self.resolve(default or "", (*chain, "${…}"))), chain)
        if canonical(name) in [canonical(seen) for seen in chain]:
            raise ConfigError(
                f"placeholders go in a circle: {' → '.join((*chain, name))}.",
                code="config.cycle",
                next_step="Let one of them be a value.",
            )
        found = self.lookup(name)
        if found is not None:
            self.is_secret |= found.is_secret
            self.asked.append(found.key)
            return self.resolve(found.value, (*chain, name))
        return self._default(name, default, chain)

    def _variable(self, rest: str, chain: tuple[str, ...]) -> Any:
        name, default = _split(rest)
        name = str(self.resolve(name, (*chain, "${…}")))
        self.is_secret |= sounds_secret(name)
        if name in os.environ:
            return Text(os.environ[name])
        return self._default(f"env:{name}", default, chain)

    def _default(self, name: str, default: str | None, chain: tuple[str, ...]) -> Any:
        if default is None:
            raise _refused(f"${{{name}}} has no value", chain)
        found = self.resolve(default, (*chain, "${…}"))
        return Text(found) if isinstance(found, str) else found

    def _file(self, name: str, chain: tuple[str, ...]) -> Text:
        self.is_secret = True
        try:
            return Text((self.base / name).read_text(encoding="utf-8").rstrip("\n"))
        except OSError as error:
            reason = error.strerror
        except ValueError:  # bytes that are no text, or a path that cannot be one
            reason = "no UTF-8 text file"
        raise _refused(f"${{file:{name}}}: {reason}", chain)


def _refused(problem: str, chain: tuple[str, ...]) -> ConfigError:
    names = [name for name in chain if name != "${…}"]
    by = f" (asked by {' → '.join(names)})" if names and len(names) < MAX_DEPTH else ""
    return ConfigError(f"{problem}{by}.", code="config.placeholder", next_step=NOTE)


def _split(inside: str) -> tuple[str, str | None]:
    """At the first colon that stands in no inner placeholder; None: there is no default."""
    depth = index = 0
    while index < len(inside):
        if inside.startswith("${", index):
            depth, index = depth + 1, index + 1
        elif inside[index] == "}":
            depth -= 1
        elif inside[index] == ":" and depth == 0:
            return inside[:index], inside[index + 1 :]
        index += 1
    return inside, None


def _closing(value: str, start: int, chain: tuple[str, ...]) -> int:
    depth, index = 0, start
    while index < len(value):
        if value.startswith("$${", index):
            index += 3
            continue
        if value.startswith("${", index):
            depth, index = depth + 1, index + 2
            continue
        if value[index] == "}":
            depth -= 1
            if depth == 0:
                return index
        index += 1
    # The text itself is not repeated: it may be a password.
    raise _refused("a `${` is never closed", chain)
