"""Processors that come with the product; a project names them in `data.processors`, in its order.

    data: {processors: [clean, {name: length, min: 3}, {name: label_map, map: {spam: junk}}]}

All are pure. What one of them refuses becomes a dead letter with its code and cause.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from autoglm.contracts.change_event import ChangeEvent
from autoglm.plugins.kinds import Processed
from autoglm.streaming.batches import Problem, values_of, with_text, without
from autoglm.streaming.config import DataConfig

_KINDS = {"text": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}
_BLANKS = re.compile(r"[^\S\n]+")
_NEWLINES = re.compile(r"\n\s*\n+")


class Clean:
    """Text as people mean it: Unicode NFC, no control characters, no runs of blanks.

    `unescape` turns `&amp;` into `&`, `lower` makes lower case.
    """

    def __init__(self, data: DataConfig, *, unescape: bool = False, lower: bool = False) -> None:
        self._column, self._unescape, self._lower = data.input_column, unescape, lower

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        rows = with_text(batch, self._column, self._cleaned)
        empty = [
            ("data.empty_text", f"nothing of column {self._column!r} is left after cleaning")
            if text == ""
            else None
            for text in values_of(rows, self._column)
        ]
        return without(rows, empty)

    def _cleaned(self, text: str) -> str:
        if self._unescape:
            text = html.unescape(text)
        text = unicodedata.normalize("NFC", text)
        if not text.isprintable():
            text = "".join(c for c in text if c in "\n\t" or not _is_control(c))
        text = _NEWLINES.sub("\n\n", _BLANKS.sub(" ", text)).strip()
        return text.lower() if self._lower else text


class Schema:
    """Rows that are not as promised become dead letters: data.schema.

    `required` columns hold a value; `types` are text, integer, number, boolean; `allowed` lists the
    values of a column; `pattern` is a regular expression for the whole text; `closed` refuses
    columns that none of these names. NULL passes unless it is required.
    """

    def __init__(
        self,
        *,
        required: Sequence[str] = (),
        types: Mapping[str, str] | None = None,
        allowed: Mapping[str, Sequence[Any]] | None = None,
        pattern: Mapping[str, str] | None = None,
        closed: bool = False,
    ) -> None:
        self._required, self._types, self._allowed = required, types or {}, allowed or {}
        wrong = [kind for kind in self._types.values() if kind not in _KINDS]
        if wrong:
            raise ValueError(f"types: {wrong[0]!r} is none of {', '.join(_KINDS)}")
        self._pattern = {name: _compiled(text) for name, text in (pattern or {}).items()}
        self._closed = closed
        self._known = {*required, *self._types, *self._allowed, *self._pattern}

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        return without(batch, [self._problem(e.row) if e.op == "upsert" else None for e in batch])

    def _problem(self, row: Mapping[str, Any]) -> Problem:
        cause = next(self._causes(row), None)
        return None if cause is None else ("data.schema", cause)

    def _causes(self, row: Mapping[str, Any]) -> Any:
        for name in self._required:
            if row.get(name) is None:
                yield f"column {name!r} has no value"
        for name, value in row.items():
            if self._closed and name not in self._known:
                yield f"column {name!r} is not in the schema"
            if value is None:
                continue
            kind = self._types.get(name)
            is_odd_bool = isinstance(value, bool) and kind != "boolean"
            if kind is not None and (is_odd_bool or not isinstance(value, _KINDS[kind])):
                yield f"column {name!r} holds {value!r:.60}, no {kind}"
            if name in self._allowed and value not in self._allowed[name]:
                yield f"column {name!r} holds {value!r:.60}, none of the allowed values"
            pattern = self._pattern.get(name)
            if pattern is not None and not pattern.fullmatch(str(value)):
                yield f"column {name!r} holds {value!r:.60}, not as {pattern.pattern}"


class Length:
    """Texts of `min` to `max` characters (`unit: words`: words) pass; others: data.length."""

    def __init__(
        self, data: DataConfig, *, min: int = 0, max: int | None = None, unit: str = "characters"
    ) -> None:
        if unit not in {"characters", "words"}:
            raise ValueError(f"unit: {unit!r} is neither characters nor words")
        if max is not None and max < min:
            raise ValueError(f"max {max} is below min {min}")
        self._column, self._min, self._max, self._unit = data.input_column, min, max, unit

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        return without(batch, [self._problem(text) for text in values_of(batch, self._column)])

    def _problem(self, text: Any) -> Problem:
        if not isinstance(text, str):
            return None
        count = len(text.split()) if self._unit == "words" else len(text)
        if count >= self._min and (self._max is None or count <= self._max):
            return None
        bound = f"at least {self._min}" if count < self._min else f"at most {self._max}"
        return "data.length", f"{count} {self._unit}; {bound} are asked"


class LabelMap:
    """Labels by other names: `map: {old: new}`. `other`: what becomes of labels that are not in it
    (and are no new name): `keep`, `dead` (data.unknown_label), or `wait` (as if unlabelled).
    """

    def __init__(self, data: DataConfig, *, map: Mapping[str, Any], other: str = "keep") -> None:
        if other not in {"keep", "dead", "wait"}:
            raise ValueError(f"other: {other!r} is none of keep, dead, wait")
        self._column, self._other = data.answer_column, other
        self._map = {str(old): new for old, new in map.items()}
        self._known = {*self._map, *(str(new) for new in self._map.values())}

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        found = without(batch, [self._problem(v) for v in values_of(batch, self._column)])
        if not self._changes(values_of(found.rows, self._column)):
            return found
        return Processed(rows=[self._mapped(event) for event in found.rows], dead=found.dead)

    def _problem(self, label: Any) -> Problem:
        if self._other != "dead" or label is None or str(label) in self._known:
            return None
        return "data.unknown_label", f"label {label!r:.60} is not in the map"

    def _changes(self, labels: Sequence[Any]) -> bool:
        return any(
            str(label) in self._map or (self._other == "wait" and str(label) not in self._known)
            for label in labels
            if label is not None
        )

    def _mapped(self, event: ChangeEvent) -> ChangeEvent:
        from dataclasses import replace

        label = event.row.get(self._column)
        if event.op != "upsert" or label is None:
            return event
        is_unknown = self._other == "wait" and str(label) not in self._known
        new = None if is_unknown else self._map.get(str(label), label)
        return replace(event, row={**event.row, self._column: new})


class Language:
    """Texts written in other scripts become dead letters: data.language.

    `scripts` are names as Unicode has them (latin, cyrillic, greek, han, hiragana, arabic, …);
    at least `min_share` of a text's letters are of one of them. It tells scripts apart, not the
    languages that share one; a text without letters passes.
    """

    def __init__(self, data: DataConfig, *, scripts: Sequence[str], min_share: float = 0.7) -> None:
        if isinstance(scripts, str) or not scripts:
            raise ValueError("scripts: a list of names, like [latin]")
        if not 0 < min_share <= 1:
            raise ValueError(f"min_share: {min_share} is not between 0 and 1")
        self._column, self._min_share = data.input_column, min_share
        self._scripts = tuple({"han": "CJK"}.get(s.lower(), s.upper()) for s in scripts)
        self._is_ours: dict[str, bool] = {}

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        return without(batch, [self._problem(text) for text in values_of(batch, self._column)])

    def _problem(self, text: Any) -> Problem:
        letters = [c for c in text if c.isalpha()] if isinstance(text, str) else []
        if not letters:
            return None
        share = sum(map(self._ours, letters)) / len(letters)
        if share >= self._min_share:
            return None
        wanted = ", ".join(script.lower() for script in self._scripts)
        return "data.language", f"{share:.0%} of the letters are {wanted}"

    def _ours(self, letter: str) -> bool:
        found = self._is_ours.get(letter)
        if found is None:
            found = unicodedata.name(letter, "").startswith(self._scripts)
            self._is_ours[letter] = found
        return found


def _is_control(character: str) -> bool:
    # Of the formatting characters only those that join letters mean something in a text.
    return unicodedata.category(character) in {"Cc", "Cf", "Cs"} and character not in "\u200c\u200d"


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern: {pattern!r}: {error}") from None
