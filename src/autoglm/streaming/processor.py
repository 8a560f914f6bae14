"""The default processor: what can be learnt from passes, what cannot becomes a dead letter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autoglm.contracts.change_event import ChangeEvent, DeadLetter
from autoglm.contracts.task import TASKS, TaskForm
from autoglm.datasets.cells import problem_of
from autoglm.errors import AutoGLMError, DataError, PluginError
from autoglm.modeling.images import cell_of
from autoglm.plugins.kinds import Processed, Processor

# Of a text that is too long only the beginning is kept as evidence.
RAW_BYTES = 65_536


class ProcessorChain:
    """Port Processor: one after the other; what became dead in one is not seen by the next."""

    def __init__(self, processors: Sequence[Processor]) -> None:
        self._processors = processors

    def process(self, batch: Sequence[ChangeEvent]) -> Processed:
        rows = [event for event in batch if event.op != "dead"]
        dead = [_found_dead(event) for event in batch if event.op == "dead"]
        for processor in self._processors:
            try:
                found = processor.process(rows)
            except AutoGLMError:
                raise
            except Exception as error:
                name = type(processor).__name__
                raise PluginError(
                    f"processor {name}: {type(error).__name__}: {error}.", code="plugin.failed"
                ) from error
            rows, dead = list(found.rows), [*dead, *found.dead]
        return Processed(rows=rows, dead=dead)


def _found_dead(event: ChangeEvent) -> DeadLetter:
    """What was no row when the source read it."""
    return DeadLetter(
        project=event.project,
        key=event.key.encode("utf-8", "backslashreplace").decode(),
        raw=str(event.row["raw"]).encode("utf-8", "backslashreplace").decode()[:RAW_BYTES],
        cause=str(event.row["cause"]),
        code=str(event.row["code"]),
        partition=event.partition,
        offset=event.offset,
        traceparent=event.traceparent,
    )


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
        rows, dead = [], []
        for event in batch:
            event, problem = self._with_image(event)
            if problem is None and event.op == "upsert":
                problem = self._problem(event)
            if problem is None:
                rows.append(self._typed(event))
            else:
                dead.append(self._dead(event, *problem))
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

    def _dead(self, event: ChangeEvent, code: str, cause: str) -> DeadLetter:
        return DeadLetter(
            project=event.project,
            key=event.key.encode("utf-8", "backslashreplace").decode(),
            raw=json.dumps(dict(event.row))[:RAW_BYTES],
            cause=cause,
            code=code,
            partition=event.partition,
            offset=event.offset,
            traceparent=event.traceparent,
        )
