"""Which rows a model that knows most of them goes over again, beside those that changed.

Learning from the changed rows alone forgets the others; a sample of these, learnt beside them,
holds what was known (experience replay; Rolnick et al., 2019).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from autoglm.contracts.dataset_version import DatasetVersion
from autoglm.datasets.columns import rows_since
from autoglm.errors import DataError
from autoglm.modeling.images import Pixels
from autoglm.observability.logging import get_logger
from autoglm.reuse.keys import row_key
from autoglm.training.data import Encoded

# Of each label, if there are so many: a share of a rare one would be none.
LEAST_ROWS = 10


class Rehearsal:
    """Of a run of `dataset` whose rows have the names `keys`, and whose start learnt from the
    dataset version `learnt`; None of a start that learnt none.
    """

    def __init__(self, dataset: DatasetVersion, learnt: int | None, keys: Sequence[str]) -> None:
        self._dataset, self._learnt, self._keys = dataset, learnt, keys

    def share(self, training: Mapping[str, Any]) -> float:
        """Of the rows that the start has learnt; 1 where it is not known which these are."""
        said = training["rehearsal"]
        if not said or self._learnt is None or self._changed is None:
            return 1.0
        return float(said)

    def said(self, training: Mapping[str, Any]) -> tuple[float, ...]:
        """By which a trial's rows are told from those of others; empty where it has them all."""
        share = self.share(training)
        return () if share == 1 or self._learnt is None else (share, self._learnt)

    def rows(self, data: Encoded, share: float) -> Encoded:
        """`data` with the training rows that changed and `share` of each label's others. They are
        drawn by what they say: from a later version the same rows are drawn again.
        """
        if share == 1:
            return data
        assert self._changed is not None, "all rows where nobody can tell"
        assert data.keys is not None, "rows of a run have names"
        known, drawn = defaultdict[Hashable, list[int]](list), list[int]()
        for row, label in zip(data.train, _labels(data), strict=True):
            (drawn if data.keys[row] in self._changed else known[label]).append(row)
        for rows in known.values():
            num = max(math.ceil(share * len(rows)), min(len(rows), LEAST_ROWS))
            drawn += sorted(rows, key=lambda row: _name(data.ids, row))[:num]
        return data.chosen([*sorted(drawn), *data.validation], num_train=len(drawn))

    @cached_property
    def _changed(self) -> frozenset[str] | None:
        """Names of the rows that are new or others since the start learnt."""
        assert self._learnt is not None
        try:
            found = rows_since(self._dataset, self._learnt, self._keys)
        except DataError as error:
            get_logger().info("all rows are learnt from again", reason=error.message)
            return None
        return frozenset(self._keys[place] for place in found)


def _labels(data: Encoded) -> Sequence[Hashable]:
    """Of the training rows, where each has one."""
    targets = data.targets
    if isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point():
        labels: list[int] = targets[: data.num_train].tolist()
        return labels
    return [0] * data.num_train


def _name(ids: Sequence[Any], row: int) -> bytes:
    if not isinstance(ids, Pixels):
        return row_key(ids[row])
    return hashlib.blake2b(ids.group(row)).digest()
