"""What a cell of the user's columns means to a task.

tokens, tags, labels: a JSON list of texts, or texts between white space (labels: between
`separator`). A number may be written as text. An empty cell of labels waits; `[]` says "none".
"""

from __future__ import annotations

import json
import math
from typing import Any

from autoglm.contracts.task import TaskForm


def read_input(cell: str, form: TaskForm) -> Any:
    """A text, or the tokens of a row. Raises: ValueError with the cause."""
    return _texts(cell, None) if form.reads == "tokens" else cell


def read_answer(cell: str, form: TaskForm, separator: str = ",") -> Any:
    """A label, labels, a number, or tags (contracts.task). Raises: ValueError with the cause."""
    if form.answers == "number":
        try:
            number = float(cell)
        except ValueError:
            raise ValueError(f"{cell!r:.60} is no number") from None
        if not math.isfinite(number):
            raise ValueError(f"{cell!r:.60} is no finite number")
        return number
    if form.answers == "labels":
        return frozenset(_texts(cell, separator))
    return _texts(cell, None) if form.answers == "tags" else cell


def problem_of(
    text: str, answer: Any, form: TaskForm, separator: str = ","
) -> tuple[str, str] | None:
    """(code, cause) of a row that no model can learn from; None when it can be used. An answer of
    None, or an empty one, waits.
    """
    try:
        read = read_input(text, form)
    except ValueError as error:
        return "data.bad_input", str(error)
    if form.reads == "tokens" and not read:
        return "data.empty_text", "the row has no token"
    if form.answers in {"label", "text"} or not str("" if answer is None else answer).strip():
        return None
    try:
        found = read_answer(str(answer), form, separator)
    except ValueError as error:
        return "data.bad_answer", str(error)
    if form.answers == "tags" and len(found) != len(read):
        return "data.bad_answer", f"{len(read)} tokens, but {len(found)} tags"
    return None


def _texts(cell: str, separator: str | None) -> tuple[str, ...]:
    if not cell.lstrip().startswith("["):
        return tuple(part for raw in cell.split(separator) if (part := raw.strip()))
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError) as error:
        # Tokens may begin with a bracket: white space still divides them.
        if separator is None and not cell.rstrip().endswith("]"):
            return tuple(cell.split())
        raise ValueError(f"{cell!r:.60} is no JSON list: {error}") from None
    if not isinstance(found, list) or not all(isinstance(each, (str, int)) for each in found):
        raise ValueError(f"{cell!r:.60} is no list of texts")
    return tuple(map(str, found))
