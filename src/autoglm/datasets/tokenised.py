"""The tokens of a dataset version's rows, made once for all runs on them. No torch.

ids (tokens), words (tokens; -1: none), lengths (rows): see reuse.kept_arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoglm.reuse.kept_arrays import keep_arrays, read_arrays

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
    if (known := read_arrays(folder, key)) is not None:
        return _rows(known["ids"], known["words"], known["lengths"])
    made = [Tokens(e.ids, e.word_ids) for e in make()]
    words = [NO_WORD if w is None else w for row in made for w in row.word_ids]
    arrays: dict[str, Any] = {
        "ids": np.array([token for row in made for token in row.ids], np.int32),
        "words": np.array(words, np.int32),
        "lengths": np.array([len(row.ids) for row in made], np.int64),
    }
    keep_arrays(folder, key, arrays)
    return made


def _rows(ids: Any, words: Any, lengths: Any) -> list[Tokens]:
    ends = np.cumsum(lengths)[:-1]
    return [
        Tokens(row.tolist(), [None if w == NO_WORD else w for w in of.tolist()])
        for row, of in zip(np.split(ids, ends), np.split(words, ends), strict=True)
    ]
