"""`{lr: loguniform(1e-4, 1e-2)}` in braces, where YAML would end a word at a comma or a bracket."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import yaml

_OPENS = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\(")


def quote_calls(text: str) -> str:
    """`text` with quotes around every call that stands as a plain word inside braces or brackets.

    Lines stay where they are. What is not YAML is left for the reader to refuse.
    """
    if not any(bracket in text for bracket in "{[") or _OPENS.search(text) is None:
        return text
    while calls := list(_calls(text)):
        parts, behind = [], 0
        for start, end in calls:
            parts += [text[behind:start], "'", text[start:end].replace("'", "''"), "'"]
            behind = end
        text = "".join([*parts, text[behind:]])
        # Once more: what was no YAML before the calls were quoted may have hidden others.
    return text


def _calls(text: str) -> Iterator[tuple[int, int]]:
    """Where each begins and ends, up to the first place that cannot be read."""
    depth, behind = 0, 0
    with contextlib.suppress(yaml.YAMLError):
        for token in yaml.scan(text, Loader=yaml.CSafeLoader):
            if isinstance(token, (yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)):
                depth += 1
            elif isinstance(token, (yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)):
                depth -= 1
            elif depth and isinstance(token, yaml.ScalarToken) and token.plain:
                start = token.start_mark.index
                end = _end(text, start)
                if start >= behind and end is not None:
                    behind = end
                    yield start, end


def _end(text: str, start: int) -> int | None:
    """Behind the bracket that closes the call at `start`; None when there is no call."""
    match = _OPENS.match(text, start)
    if match is None:
        return None
    depth, quote = 0, ""
    for position in range(match.end() - 1, len(text)):
        sign = text[position]
        if sign == "\n":
            return None
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
            if depth == 0:
                return position + 1
    return None
