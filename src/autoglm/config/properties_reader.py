"""`.properties` as Java writes them: `key=value`, `key: value`, continued lines, escapes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from autoglm.config.paths import parse_path
from autoglm.config.yaml_reader import Leaf, Text, refuse_long
from autoglm.errors import ConfigError

_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def read_properties(text: str, *, name: str) -> list[Leaf]:
    """Leaves in file order; values are texts that the field's type reads.

    Raises: ConfigError naming the line for a broken key, a double key, too large input.
    """
    refuse_long(text, name)
    leaves: dict[tuple[str, ...], Leaf] = {}
    for line, logical in _logical_lines(text):
        key, value = _split(logical)
        try:
            path = parse_path(_unescape(key, f"{name}:{line}"))
        except ValueError as error:
            raise ConfigError(
                f"{name}:{line}: {error}.",
                code="config.broken",
                next_step="Write section.key = value; a map key with dots stands in brackets.",
            ) from error
        if path in leaves:
            raise ConfigError(
                f"{name}:{line}: `{key}` stands twice, first in line {leaves[path].line}.",
                code="config.duplicate_key",
                next_step="Keep one of them.",
            )
        text_value = Text(_unescape(value, f"{name}:{line}"))
        leaves[path] = Leaf(path, text_value, line, is_entry=True)
    return list(leaves.values())


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    pending, first = "", 0
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.rstrip("\r").lstrip(" \t\f")
        if not pending and (not line or line[0] in "#!"):
            continue
        first = first if pending else number
        stripped = line.rstrip("\\")
        if (len(line) - len(stripped)) % 2:  # an odd number of backslashes: it goes on
            pending += line[:-1]
            continue
        yield first, pending + line
        pending = ""
    if pending:
        yield first, pending


def _split(line: str) -> tuple[str, str]:
    index, is_escaped = 0, False
    while index < len(line) and (is_escaped or line[index] not in "=: \t\f"):
        is_escaped = not is_escaped and line[index] == "\\"
        index += 1
    rest = line[index:].lstrip(" \t\f")
    if rest[:1] in {"=", ":"}:
        rest = rest[1:].lstrip(" \t\f")
    return line[:index], rest


def _unescape(text: str, place: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1].startswith("u"):
            if len(match[1]) < 5:
                raise ConfigError(
                    f"{place}: `\\u` needs four digits.",
                    code="config.broken",
                    next_step="Write it like \\u00e4, or a lone backslash twice.",
                )
            return chr(int(match[1][1:], 16))
        return _ESCAPES.get(match[1], match[1])

    # Surrogate pairs are two escapes of one character.
    decoded = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", one, text, flags=re.DOTALL)
    return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
