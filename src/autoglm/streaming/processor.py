"""The default processor: what can be learnt from passes, what cannot becomes a dead letter."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from autoglm.clock import Clock, SystemClock
from autoglm.contracts.change_event import ChangeEvent, DeadLetter
from autoglm.contracts.event_columns import EventColumns
from autoglm.contracts.task import TASKS, TaskForm
from autoglm.datasets.cells import problem_of
from autoglm.errors import AutoGLMError, CancelledError, DataError, PluginError
from autoglm.modeling.images import cell_of
from autoglm.plugins.kinds import Processed, Processor

# Of a text that is too long only the beginning is kept as evidence.
RAW_BYTES = 65_536
# At least one character that Python's `strip` would leave (RE2 knows fewer of its blanks).
HAS_LETTERS = r"[^\s\v\x1c-\x1f\x{85}\p{Z}]"


ATTEMPTS = 3
FIRST_PAUSE = timedelta(milliseconds=100)


class ProcessorChain:
    """Port Processor: one after the other; what became dead in one is not seen by the next.

    One that raises is called again, ever later; then its batch is halved until the events that it
    cannot take stand alone: those become dead letters, the others pass. Errors of ours that are
    not worth another try stop the chain, and so does one that returns another number of events than
    it was given and does not say `changes_number`.
    """

    def __init__(
        self,
        processors: Sequence[Processor],
        *,
        attempts: int = ATTEMPTS,
        clock: Clock | None = None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._processors, self._attempts = processors, attempts
        self._clock, self._cancel = clock or SystemClock(), cancel or threading.Event()

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        rows, dead = _apart(batch)
        for processor in self._processors:
            if not len(rows):
                break
            found = self._patiently(processor, rows)
            rows, dead = found.rows, [*dead, *found.dead]
        return Processed(rows=rows, dead=dead)

    def _patiently(self, processor: Processor, rows: Sequence[ChangeEvent]) -> Processed:
        pause = FIRST_PAUSE.total_seconds()
        for _attempt in range(self._attempts - 1):
            found = _tried(processor, rows)
            if isinstance(found, Processed):
                return found
            if self._clock.wait(self._cancel, pause):
                raise CancelledError("processing was stopped.", next_step="The next call goes on.")
            pause *= 2
        return self._halved(processor, rows)

    def _halved(self, processor: Processor, rows: Sequence[ChangeEvent]) -> Processed:
        found = _tried(processor, rows)
        if isinstance(found, Processed):
            return found
        if len(rows) == 1:
            name = getattr(processor, "name", type(processor).__name__)
            cause = f"processor {name}: {type(found).__name__}: {found}"
            letter = dead_letter(rows[0], "plugin.failed", cause[:1000])
            return Processed(rows=[], dead=[letter])
        middle = len(rows) // 2
        halves = [self._halved(processor, part) for part in (rows[:middle], rows[middle:])]
        return Processed(
            rows=[row for half in halves for row in half.rows],
            dead=[letter for half in halves for letter in half.dead],
        )


def _tried(processor: Processor, rows: Sequence[ChangeEvent]) -> Processed | Exception:
    try:
        found = processor.process(rows)
        _check_number(processor, found, len(rows))
        return found
    except AutoGLMError as error:
        if not error.retryable or isinstance(error, CancelledError):
            raise
        return error
    except Exception as error:
        return error


def _check_number(processor: Processor, found: Processed, num_rows: int) -> None:
    """Raises: PluginError plugin.lost_rows when rows went, or came, without a word."""
    num_found = len(found.rows) + len(found.dead)
    if num_found == num_rows or getattr(processor, "changes_number", False):
        return
    name = getattr(processor, "name", type(processor).__name__)
    raise PluginError(
        f"processor {name} was given {num_rows:,} events and returned {len(found.rows):,} rows and"
        f" {len(found.dead):,} dead letters.",
        code="plugin.lost_rows",
        next_step="Make dead letters of what it refuses; or say `changes_number = True` in its"
        " class, if it is meant to drop or to multiply rows.",
    )


def dead_letter(event: ChangeEvent, code: str, cause: str) -> DeadLetter:
    """What is kept of an event that nothing could use."""
    return DeadLetter(
        project=event.project,
        key=event.key.encode("utf-8", "backslashreplace").decode(),
        raw=json.dumps(dict(event.row) if event.op == "upsert" else None)[:RAW_BYTES],
        cause=cause.encode("utf-8", "backslashreplace").decode(),
        code=code,
        partition=event.partition,
        offset=event.offset,
        traceparent=event.traceparent,
        version=event.version,
        source=event.source,
        committed_at=event.committed_at,
    )


def _apart(batch: Sequence[ChangeEvent]) -> tuple[Sequence[ChangeEvent], list[DeadLetter]]:
    """Rows, and letters of what was no row already when the source read it."""
    if isinstance(batch, EventColumns):
        import pyarrow.compute as pc

        has_dead = bool(pc.any(pc.equal(batch.table["_op"], "dead")).as_py())
    else:
        has_dead = any(event.op == "dead" for event in batch)
    if not has_dead:
        return batch, []
    rows = [event for event in batch if event.op != "dead"]
    return rows, [_found_dead(event) for event in batch if event.op == "dead"]


def _found_dead(event: ChangeEvent) -> DeadLetter:
    letter = dead_letter(event, str(event.row["code"]), str(event.row["cause"]))
    raw = str(event.row["raw"]).encode("utf-8", "backslashreplace").decode()
    return replace(letter, raw=raw[:RAW_BYTES])


class RowProcessor:
    """Port Processor. A row without a label passes: it waits in the table until its label comes."""

    def __init__(
        self,
        *,
        text: str,
        label: str,
        max_text_bytes: int,
        form: TaskForm = TASKS["text-classification"],
        label_separator: str = ",",
        base: Path = Path(),
    ) -> None:
        self._text, self._label, self._max_text_bytes = text, label, max_text_bytes
        self._form, self._separator, self._base = form, label_separator, base

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        if isinstance(batch, EventColumns) and self._is_plain(batch):
            return self._whole(batch)
        return self._one_by_one(batch)

    def _is_plain(self, batch: EventColumns) -> bool:
        """Whether all that can be wrong with a row is its text."""
        import pyarrow as pa

        columns = batch.table.column_names
        return (
            self._form.reads == "text"
            and self._form.answers in {"label", "text"}
            and {self._text, self._label} <= set(columns)
            and pa.types.is_string(batch.table[self._text].type)
        )

    def _whole(self, batch: EventColumns) -> Processed:
        """What looks wrong from afar is judged one by one; the rest passes as it lies there."""
        import pyarrow.compute as pc

        text = batch.table[self._text]
        has_letters = pc.match_substring_regex(text, HAS_LETTERS)
        is_short = pc.less_equal(pc.binary_length(text), self._max_text_bytes)
        is_fine = pc.fill_null(pc.and_(has_letters, is_short), False)
        is_fine = pc.or_(is_fine, pc.equal(batch.table["_op"], "delete"))
        if pc.all(is_fine).as_py():
            return Processed(rows=batch, dead=[])
        judged = self._one_by_one(batch.filter(pc.invert(is_fine)))
        if judged.rows:
            return self._one_by_one(batch)
        return Processed(rows=batch.filter(is_fine), dead=judged.dead)

    def _one_by_one(self, batch: Sequence[ChangeEvent]) -> Processed:
        rows, dead = [], []
        for event in batch:
            event, problem = self._with_image(event)
            if problem is None and not _is_utf8(event.key):  # of a delete too
                problem = "data.not_utf8", "the key is not UTF-8"
            if problem is None and event.op == "upsert":
                problem = self._problem(event)
            if problem is None:
                rows.append(self._typed(event))
            else:
                dead.append(dead_letter(event, *problem))
        return Processed(rows=rows, dead=dead)

    def _with_image(self, event: ChangeEvent) -> tuple[ChangeEvent, tuple[str, str] | None]:
        """A path becomes the image: what was learnt from must not change with a file."""
        value = event.row.get(self._text)
        if self._form.reads != "image" or event.op != "upsert" or not isinstance(value, str):
            return event, None
        try:
            row = {**event.row, self._text: cell_of(value, self._base)}
        except DataError as error:
            return event, (error.code, error.message)
        return replace(event, row=row), None

    def _typed(self, event: ChangeEvent) -> ChangeEvent:
        """Numbers to learn are stored as such: 4, 4.5 and "4.5" are one column."""
        if self._form.answers != "number" or event.op != "upsert":
            return event
        answer = event.row[self._label]
        is_there = answer is not None and str(answer).strip()
        return replace(event, row={**event.row, self._label: float(answer) if is_there else None})

    def _problem(self, event: ChangeEvent) -> tuple[str, str] | None:
        """(code, cause), None when the row can be used."""
        for name in (self._text, self._label):
            if name not in event.row:
                return "data.no_such_column", f"the row has no column {name!r}"
        text = event.row[self._text]
        if text is None or (isinstance(text, str) and not text.strip()):
            return "data.empty_text", f"column {self._text!r} is empty"
        if not isinstance(text, str):
            return "data.not_text", f"column {self._text!r} is {type(text).__name__}, not text"
        try:
            size = len(text.encode("utf-8"))
            json.dumps(dict(event.row), ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            return "data.not_utf8", f"invalid UTF-8 at character {error.start}"
        if size > self._max_text_bytes:
            return (
                "data.text_too_long",
                f"column {self._text!r} has {size:,} bytes; data.max_text_bytes is"
                f" {self._max_text_bytes:,}",
            )
        return problem_of(text, event.row[self._label], self._form, self._separator)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
