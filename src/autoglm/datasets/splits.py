"""Which part of the data a text belongs to: by its hash, so duplicates stay together and a text
never moves when others come or go; or by its time and bounds that do not move.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_RANGE = float(2**64)


def split_of(text: str, *, validation: float, test: float) -> Split:
    """The split of `text`, alike for texts that differ in case and white space only.

    `validation` and `test` are shares; the rest is for training. Raises: ValueError.
    """
    return split_all([text], validation=validation, test=test)[0]


def split_all(texts: Iterable[str], *, validation: float, test: float) -> list[Split]:
    """`split_of` for each text, in order."""
    if validation < 0 or test < 0 or validation + test >= 1:
        raise ValueError(f"validation={validation} and test={test} leave nothing to train on")
    below_test, below_validation = test * _RANGE, (test + validation) * _RANGE
    blake2b, from_bytes = hashlib.blake2b, int.from_bytes
    splits: list[Split] = []
    for text in texts:
        normal = _normal(text)
        at = from_bytes(blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        splits.append(
            "test" if at < below_test else "validation" if at < below_validation else "train"
        )
    return splits


def split_by_time(
    texts: Sequence[str], times: Sequence[Any], *, validation_from: str, test_from: str
) -> list[Split]:
    """Train before `validation_from`, validation before `test_from`, else test. Texts that differ
    in case and white space only go with the oldest of them; one without a time is trained on.

    Raises: ValueError for a time that is none.
    """
    bounds = moment_of(validation_from), moment_of(test_from)
    assert bounds[0] is not None, "checked where the configuration is read"
    assert bounds[1] is not None, "as above"
    oldest: dict[str, float] = {}
    for text, time in zip(texts, times, strict=True):
        moment = _seconds(time)
        normal = _normal(text)
        oldest[normal] = min(moment, oldest.get(normal, math.inf))
    first, second = (bound.timestamp() for bound in bounds if bound is not None)
    found: list[Split] = []
    for text in texts:
        moment = oldest[_normal(text)]
        found.append("train" if moment < first else "validation" if moment < second else "test")
    return found


def split_by_column(
    texts: Sequence[str], said: Sequence[Split | None], by_hash: Sequence[Split]
) -> list[Split]:
    """What is said of a text, else its hash. Texts that differ in case and white space only go
    together into the most held out part that is said of one: what tests is not learnt from.
    """
    normals = list(map(_normal, texts))
    found: dict[str, Split] = {}
    for normal, part in zip(normals, said, strict=True):
        if part is not None:
            found[normal] = max(part, found.get(normal, part), key=SPLITS.index)
    return [found.get(normal, split) for normal, split in zip(normals, by_hash, strict=True)]


def moment_of(text: str) -> datetime | None:
    """An ISO date or time, in UTC where it names no zone; None of anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _seconds(time: Any) -> float:
    """Since 1970. Numbers are that already; nothing is before all."""
    if time is None or (isinstance(time, str) and not time.strip()):
        return -math.inf
    if isinstance(time, (int, float)) and not isinstance(time, bool):
        return float(time)
    if isinstance(time, datetime):
        time = time.isoformat()
    moment = moment_of(str(time).strip())
    if moment is None:
        raise ValueError(f"{time!r:.60} is no ISO date or time")
    return moment.timestamp()


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
