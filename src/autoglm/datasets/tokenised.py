"""The tokens of a dataset version's rows, made once for all runs on them. No torch.

    FOLDER/KEY.SHA.safetensors      ids (tokens), words (tokens; -1: none), lengths (rows)

KEY names rows and tokenizer, SHA the content: a damaged file is a miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoglm.observability.logging import get_logger

# Of a project's dataset versions the last few are trained on again.
KEPT = 8
NO_WORD = -1


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row as the tokenizer said it: token ids, and the number of the word that each is of."""

    ids: list[int]
    word_ids: list[int | None]


def tokenised(folder: Path | None, key: str, make: Callable[[], Sequence[Any]]) -> Sequence[Tokens]:
    """The rows' tokens from `folder`, or from `make` (encodings of the tokenizer) and kept there.

    Without a folder, or room in it, they are made each time.
    """
    if folder is None:
        return [Tokens(e.ids, e.word_ids) for e in make()]
    for path in folder.glob(f"{key}.*.safetensors"):
        known = _read(path)
        if known is not None:
            return known
    made = [Tokens(e.ids, e.word_ids) for e in make()]
    try:
        _write(folder, key, made)
    except OSError as error:
        get_logger().warning("tokens are not kept", cause=str(error))
    return made


def _read(path: Path) -> list[Tokens] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.name.split(".")[1]:
            raise ValueError("its content is not what its name says")
        arrays = load(content)
        ids, words, lengths = arrays["ids"], arrays["words"], arrays["lengths"]
        os.utime(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        get_logger().warning("kept tokens dropped", file=path.name, cause=str(error))
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return None
    ends = np.cumsum(lengths)[:-1]
    return [
        Tokens(row.tolist(), [None if w == NO_WORD else w for w in of.tolist()])
        for row, of in zip(np.split(ids, ends), np.split(words, ends), strict=True)
    ]


def _write(folder: Path, key: str, rows: Sequence[Tokens]) -> None:
    from safetensors.numpy import save

    words = [NO_WORD if w is None else w for row in rows for w in row.word_ids]
    content = save(
        {
            "ids": np.array([token for row in rows for token in row.ids], np.int32),
            "words": np.array(words, np.int32),
            "lengths": np.array([len(row.ids) for row in rows], np.int64),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".{uuid.uuid4().hex}.part"
    staging.write_bytes(content)
    staging.rename(folder / f"{key}.{hashlib.sha256(content).hexdigest()}.safetensors")
    newest = sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in newest[KEPT:]:
        path.unlink(missing_ok=True)
