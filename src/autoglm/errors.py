"""The one error tree. `ValueError` is for bad calls, this tree for the world, `assert` for us.

    AutoGLMError                 code, retryable, next step
    ├── ConfigError              a value in force is missing, unknown or wrong config.*
    ├── DataError                the rows cannot be used as they are       data.*
    │   └── SourceError          the user's database or file cannot be read source.*
    │       └── SourceLockedError  somebody holds it; try again       source.locked
    ├── StorageError             disk, database or table refused           storage.*
    │   ├── FencedError          somebody newer owns this; stop            storage.fenced
    │   └── ConflictError        compare-and-set found another value       storage.conflict
    ├── OwnerError               another process owns the project          project.owned
    ├── ModelError               backbone, structure, export               model.*
    ├── TrainingError            a trial or its worker failed              training.*
    ├── CheckpointCorruptError   a checkpoint is not what it was           recovery.*
    ├── SearchError              no trial could be finished                search.*
    ├── ServingError             gateway or model worker                   serving.*
    ├── ReleaseError             rollout                                   release.*
    ├── PluginError              a plugin is broken or refused             plugin.*
    └── CancelledError           somebody asked us to stop; resumable      run.cancelled

Exit codes of the command line: 0 done, 1 the work failed, 2 a bad call (`exit_code`).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar


class AutoGLMError(Exception):
    """A failure with a stable code, what happened where, and what to do next."""

    code: ClassVar[str] = "autoglm.error"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        next_step: str = "",
        retryable: bool | None = None,
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        if code is not None:
            # A narrower code of the same family, so that callers can tell causes apart.
            self.code = code  # type: ignore[misc]
        if retryable is not None:
            self.retryable = retryable  # type: ignore[misc]
        if exit_code is not None:
            self.exit_code = exit_code  # type: ignore[misc]

    def __str__(self) -> str:
        step = f" {self.next_step}" if self.next_step else ""
        return f"{self.code}: {self.message}{step}"

    def __reduce__(self) -> tuple[object, ...]:
        return (from_document, (type(self).__name__, self.to_json()))

    def to_json(self) -> dict[str, object]:
        return {
            "code": self.code,
            "message": self.message,
            "next_step": self.next_step,
            "retryable": self.retryable,
        }


class ConfigError(AutoGLMError):
    code, exit_code = "config.invalid", 2


class DataError(AutoGLMError):
    code = "data.invalid"


class SourceError(DataError):
    code = "source.unreadable"


class SourceLockedError(SourceError):
    code, retryable = "source.locked", True


class StorageError(AutoGLMError):
    code, retryable = "storage.failed", True


class FencedError(StorageError):
    code, retryable = "storage.fenced", False


class ConflictError(StorageError):
    code, retryable = "storage.conflict", True


class OwnerError(AutoGLMError):
    code, exit_code = "project.owned", 2


class ModelError(AutoGLMError):
    code = "model.invalid"


class TrainingError(AutoGLMError):
    code = "training.failed"


class CheckpointCorruptError(AutoGLMError):
    code = "recovery.checkpoint_corrupt"


class SearchError(AutoGLMError):
    code = "search.failed"


class ServingError(AutoGLMError):
    code, retryable = "serving.failed", True


class ReleaseError(AutoGLMError):
    code = "release.failed"


class PluginError(AutoGLMError):
    code = "plugin.failed"


class CancelledError(AutoGLMError):
    code, retryable = "run.cancelled", True


def from_document(kind: str, document: Mapping[str, Any]) -> AutoGLMError:
    """The error that another process of ours wrote with `to_json`; `kind` is its class's name."""
    known: type[AutoGLMError] = globals().get(kind, AutoGLMError)
    return known(
        document["message"],
        code=document["code"],
        next_step=document["next_step"],
        retryable=document["retryable"],
    )


def from_system(error: BaseException) -> StorageError | None:
    """A full or read-only disk, however deep in `error`'s chain it lies; None for anything else."""
    cause: BaseException | None = error
    while cause is not None:
        line = (str(cause).splitlines() or [""])[0]
        number, words = getattr(cause, "errno", None), line.lower()
        if number in (errno.ENOSPC, errno.EDQUOT) or any(w in words for w in _FULL):
            return StorageError(
                f"no space left: {line}.",
                code="storage.full",
                next_step="Make room and run the command again: nothing half-written is used.",
            )
        if number in (errno.EROFS, errno.EACCES) or any(w in words for w in _READ_ONLY):
            return StorageError(
                f"no right to write: {line}.",
                code="storage.read_only",
                next_step="Check owner and mode of the folder.",
            )
        cause = cause.__cause__ or cause.__context__
    return None


# SQLite and Arrow tell a full disk in words of their own.
_FULL = ("disk is full", "no space left")
_READ_ONLY = ("readonly database", "read-only file system")
