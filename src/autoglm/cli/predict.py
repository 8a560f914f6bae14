"""`autoglm predict`: labels for texts, by the gateway if one lives, else by stable itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from autoglm.cli.options import AsJson, FolderOption, open_project, project_command
from autoglm.cli.output import number
from autoglm.errors import DataError, ServingError

BATCH = 256


class Answering(Protocol):
    def __call__(self, texts: Sequence[str]) -> list[Mapping[str, Any]]: ...


@project_command
def predict(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[DIR] [TEXT]...", show_default=False)
    ] = None,
    folder: FolderOption = Path(),
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="JSONL or CSV file; one answer per row, in order."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Label texts with the stable model.

    The first argument is the project's folder if it is one (else use -C).

    Examples:
      autoglm predict news "Shares fell on Friday"

      autoglm predict news --input new.jsonl --json

    """
    texts: list[Any] = list(arguments or [])
    if texts and (Path(texts[0]) / "autoglm.yaml").is_file():
        folder = Path(texts.pop(0))
    project = open_project(folder)
    _refuse_writing(project.settings.model.task)
    if input_file is not None:
        column = project.settings.data.input_column
        rows: Iterable[str | None] = _texts_of(input_file, column)
    elif texts:
        rows = texts
    else:
        raise DataError(
            "there is nothing to predict.",
            code="data.no_rows",
            next_step="Give TEXT arguments, or --input FILE.",
        )
    answering = _answering(project)
    if project.settings.data.image:
        answering = _of_images(answering)
    for batch in _batches(rows):
        for text, answer in zip(batch, _answers(batch, answering), strict=True):
            _print(text, answer, as_json)


def _refuse_writing(task: str) -> None:
    from autoglm.contracts.task import TASKS

    if TASKS[task].answers == "text":
        raise ServingError(
            f"autoglm predict cannot answer for {task} yet.",
            code="serving.cannot_serve",
            next_step="Open the folder that `autoglm train` wrote with transformers:"
            " AutoModelForCausalLM.from_pretrained(FOLDER).generate(…).",
        )


def _of_images(answering: Answering) -> Answering:
    """Asks for the file at a path: whoever calls this command says which file it is."""
    from autoglm.modeling.images import LONGEST_PATH, cell_of

    def image(value: str) -> str:
        path = Path(value)
        is_path = len(value) < LONGEST_PATH and path.is_file()
        return cell_of(path.name, path.parent) if is_path else value

    return lambda texts: answering([image(text) for text in texts])


def _print(text: str | None, answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
    elif answer["label"] is None:
        typer.echo(f"(no text)   [{answer['error']}]")
    else:
        label, score = answer["label"], answer["score"]
        said = " ".join(label) if isinstance(label, list) else label
        typer.echo(
            f"{said}  {number(score) + '  ' if score is not None else ''}{(text or '')[:80]}"
        )


def _answers(batch: Sequence[str | None], answering: Answering) -> Iterator[Mapping[str, Any]]:
    """One answer per row, in order; a row without text is answered by its error."""
    found = iter(answering([text for text in batch if text and text.strip()]))
    for text in batch:
        if text and text.strip():
            yield next(found)
        else:
            yield {"label": None, "score": None, "error": "data.empty_text"}


def _batches(rows: Iterable[str | None]) -> Iterator[list[str | None]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _answering(project: Any) -> Answering:
    owner = project.owner()
    if owner is not None and owner.address:
        from autoglm.cli.remote import predict_remotely

        address = owner.address
        return lambda texts: predict_remotely(address, texts)
    return _locally(project)


def _locally(project: Any) -> Answering:
    from autoglm.errors import StorageError
    from autoglm.modeling.onnx_model import OnnxModel

    try:
        stable = project.registry(read_only=True).resolve("stable")
    except StorageError as error:
        if error.code != "storage.missing":
            raise
        stable = None
    if stable is None:
        raise ServingError(
            f"{project.name} has no stable model version.",
            code="serving.no_model",
            next_step="Make one with `autoglm run`.",
        )
    classifier = OnnxModel(Path(stable.folder), threads=0)

    def answer(texts: Sequence[str]) -> list[Mapping[str, Any]]:
        return [answer.to_json() for answer in classifier.predict(list(texts))]

    return answer


def _texts_of(path: Path, column: str) -> Iterator[str | None]:
    """The text column of a file's rows. A row that is broken is an error that names its line."""
    from autoglm.streaming.file_import import read_rows

    for index, row in enumerate(read_rows(path), start=1):
        name = column if column in row else "text"
        if name not in row:
            raise DataError(
                f"{path}: row {index} has no column {column!r}; it has {', '.join(row)}.",
                code="data.no_such_column",
            )
        value = row[name]
        yield None if value is None else " ".join(value) if isinstance(value, list) else str(value)
