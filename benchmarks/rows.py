"""Rows of the public data sets as benchmarks take them: training, validation and test apart."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# Validation rows of a set that has none.
NUM_VALIDATION = 500
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Three parts; `train` is shuffled by `seed`, the same rows for every side."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]

    @property
    def labels(self) -> list[str]:
        return sorted({name for row in self.train for name in names(row)})


def names(row: Row) -> list[str]:
    """The labels of a row, or its words' tags."""
    return list(row["tags"]) if "tags" in row else [row["label"]]


def has(folder: Path, name: str) -> bool:
    return (folder / name).is_dir()


def read(folder: Path, name: str, *, seed: int, num_train: int = 0, num_test: int = 0) -> Rows:
    """Official parts where there are; a set in one file is divided by its rows' digests.

    0 rows = all. The division does not depend on `seed`; the choice of `num_train` rows does.
    """
    parts = {path.stem: _lines(path) for path in sorted((folder / name).glob("*.jsonl"))}
    if "all" in parts:
        rows = sorted(parts["all"], key=_digest)
        rest, test = rows[: len(rows) * 4 // 5], rows[len(rows) * 4 // 5 :]
    else:
        rest, test = parts["train"], parts["test"]
    validation = parts.get("validation")
    if validation is None:
        rest = sorted(rest, key=_digest)
        validation, rest = rest[:NUM_VALIDATION], rest[NUM_VALIDATION:]
    random.Random(seed).shuffle(rest)
    return Rows(
        train=rest[: num_train or None], validation=validation, test=test[: num_test or None]
    )


def _lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _digest(row: Row) -> bytes:
    text = row.get("text") or " ".join(row["tokens"])
    return hashlib.blake2b(text.encode()).digest()


def encode(
    backbone: Path, rows: Sequence[Row], index: dict[str, int], *, max_length: int, prefix: str = ""
) -> tuple[list[list[int]], list[Any]]:
    """Token ids, and per row a label's number, or one per token (of a word: on its first)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(backbone / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    if not rows or "tags" not in rows[0]:
        found = tokenizer.encode_batch([prefix + row["text"] for row in rows])
        return [e.ids for e in found], [index.get(row["label"], -1) for row in rows]
    found = tokenizer.encode_batch([row["tokens"] for row in rows], is_pretokenized=True)
    targets = []
    for encoding, row in zip(found, rows, strict=True):
        words = encoding.word_ids
        firsts = [w is not None and w not in words[:i] for i, w in enumerate(words)]
        targets.append(
            [
                index.get(row["tags"][word], IGNORED) if is_first else IGNORED
                for word, is_first in zip(words, firsts, strict=True)
            ]
        )
    return [e.ids for e in found], targets


def score(rows: Sequence[Row], answers: Sequence[Any], labels: Sequence[str]) -> float:
    """Accuracy, or F1 of whole entities; a word that was cut off is nobody's.

    `answers`: per row a label's number, or (targets, numbers) per token.
    """
    if not rows or "tags" not in rows[0]:
        hits = [bool(row["label"] == labels[said]) for row, said in zip(rows, answers, strict=True)]
        return sum(hits) / max(1, len(hits))
    from autoglm.evaluation.metrics import OF_TAGS

    said = []
    for row, (targets, numbers) in zip(rows, answers, strict=True):
        tags = [labels[n] for t, n in zip(targets, numbers, strict=True) if t != IGNORED]
        said.append((*tags, *["O"] * (len(row["tags"]) - len(tags))))
    return float(OF_TAGS["entity_f1"]([tuple(row["tags"]) for row in rows], said) or 0.0)
