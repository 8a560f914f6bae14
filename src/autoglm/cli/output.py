"""One JSON document on standard output, or something for people; errors end with their code."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer

from autoglm.errors import AutoGLMError, from_system

P = ParamSpec("P")
R = TypeVar("R")


def print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they need to be; nothing is wrapped or cut, so that it can be grepped."""
    cells = [[str(c) for c in row] for row in [headers, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    for row in cells:
        line = "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def print_pairs(pairs: Mapping[str, object]) -> None:
    width = max(len(name) for name in pairs)
    for name, value in pairs.items():
        typer.echo(f"  {name.ljust(width)}  {value}")


def number(value: float | None, digits: int = 3) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError("unreachable")


def fail(error: AutoGLMError, *, as_json: bool) -> NoReturn:
    """Say what, where and what next; leave with the error's exit code."""
    if as_json:
        print_json({"status": "failed", "error": error.to_json()})
    typer.echo(f"error [{error.code}] {error.message}", err=True)
    if error.next_step:
        typer.echo(f"  next: {error.next_step}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    raise typer.Exit(error.exit_code)


def _broken(error: Exception) -> AutoGLMError:
    """Nobody foresaw it: the traceback goes to a file, since it tells a user nothing."""
    handle, path = tempfile.mkstemp(prefix="autoglm-", suffix=".traceback")
    with os.fdopen(handle, "w", errors="backslashreplace") as stream:
        traceback.print_exception(error, file=stream)
    message = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return AutoGLMError(
        message.encode("utf-8", "backslashreplace").decode(),
        code="autoglm.broken",
        next_step=f"Please report it with {path}, which has the traceback.",
    )


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turn typed errors of a command into its exit code and message."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.get("as_json", False))
        try:
            return function(*args, **kwargs)
        except AutoGLMError as error:
            fail(error, as_json=as_json)
        except KeyboardInterrupt:
            typer.echo("stopped.", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader went away (`| head`): not our failure, and nothing more to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except typer.Exit:
            raise
        except Exception as error:
            fail(from_system(error) or _broken(error), as_json=as_json)

    return wrapped
