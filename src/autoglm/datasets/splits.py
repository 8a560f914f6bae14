"""Which part of the data a text belongs to: by its hash, so duplicates stay together and a text
never moves when others come or go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

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
        normal = " ".join(text.casefold().split())
        at = from_bytes(blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest())
        splits.append(
            "test" if at < below_test else "validation" if at < below_validation else "train"
        )
    return splits
