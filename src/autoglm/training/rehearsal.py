"""Which rows a model that has learnt most of them goes over again, beside those that are new to it.

Learning from the new rows alone forgets the others; a sample of these, learnt beside them, holds
what was known (experience replay; Rolnick et al., 2019).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.contracts.record import digest
from autoglm.datasets.dataset_version import load_rows
from autoglm.errors import AutoGLMError
from autoglm.observability.logging import get_logger
from autoglm.training.data import IGNORED, Encoded

# Of each label, if there are so many: a share of a rare one would be none.
LEAST_ROWS = 10


class Rehearsal:
    """Of a run on `dataset` whose start learnt from the training rows of `learnt`; None of a start
    that is a backbone, or of which nobody knows.
    """

    def __init__(self, dataset: DatasetVersion, learnt: DatasetVersion | None) -> None:
        self._dataset, self._learnt = dataset, learnt

    def share(self, training: Mapping[str, Any]) -> float:
        """Of the rows that the start has learnt; 1 where nobody can tell which these are."""
        share = float(training["rehearsal"])
        return share if share == 1 or self.known else 1.0

    def rows(self, data: Encoded, share: float) -> Encoded:
        """`data` with the training rows that are new to the start and `share` of the others."""
        return rehearsed(data, share, known=self.known, content=self._dataset.content_digest)

    @cached_property
    def known(self) -> frozenset[str]:
        """Names of the rows that the start learnt from as they are now."""
        if self._learnt is None:
            return frozenset()
        try:
            then, now = load_rows(self._learnt, "train"), load_rows(self._dataset)
        except AutoGLMError as error:
            get_logger().info("all rows are learnt from again", reason=error.message)
            return frozenset()
        says = {key: said for key, *said in zip(now.keys, now.inputs, now.answers, strict=True)}
        rows = zip(then.keys, then.inputs, then.answers, strict=True)
        return frozenset(key for key, *said in rows if says.get(key) == said)


def rehearsed(data: Encoded, share: float, *, known: Collection[str], content: str) -> Encoded:
    """`data` without the training rows with names in `known` but for `share` of these, of each
    label's; `data` itself where that leaves none out. For another `content` others are drawn:
    sooner or later all are gone over.
    """
    if share == 1:
        return data
    keys = data.keys
    assert keys is not None, "rows of a run have names"
    others, drawn = defaultdict[int, list[int]](list), list[int]()
    for row, stratum in zip(data.train, _strata(data), strict=True):
        (others[stratum] if keys[row] in known else drawn).append(row)
    offset = int(digest(content, "rehearsal", size=4), 16) / 2**32
    for rows in others.values():
        rows.sort(key=lambda row: hashlib.blake2b(keys[row].encode()).digest())
        num = max(math.ceil(share * len(rows)), min(len(rows), LEAST_ROWS))
        first = int(offset * len(rows))
        drawn += (rows[first:] + rows[:first])[:num]
    if len(drawn) == data.num_train:
        return data
    return data.chosen([*sorted(drawn), *data.validation], num_train=len(drawn))


def _strata(data: Encoded) -> Sequence[int]:
    """Of each training row its label; of several, the one that fewest rows have. Numbers and texts
    have none.
    """
    targets = data.targets
    has_one = isinstance(targets, Tensor) and targets.dim() == 1
    if isinstance(targets, Tensor) and has_one and not targets.is_floating_point():
        numbers: list[int] = targets[: data.num_train].tolist()
        return numbers
    if has_one or data.firsts is not None:
        return [0] * data.num_train
    labels = [_labels_of(targets[row]) for row in data.train]
    counts = Counter(label for row in labels for label in row)
    return [min(row, key=lambda label: (counts[label], label), default=-1) for row in labels]


def _labels_of(target: Tensor) -> set[int]:
    """Of a row of 0 and 1 per label, or of a label number per token."""
    if target.is_floating_point():
        return set(target.nonzero().flatten().tolist())
    return set(target.tolist()) - {IGNORED}
