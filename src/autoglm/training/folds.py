"""Rows of one fold: its own validate, all others are learnt from."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

from torch import Tensor

from autoglm.errors import TrainingError
from autoglm.modeling.images import Pixels
from autoglm.reuse.keys import row_key
from autoglm.training.data import Encoded


def folded(data: Encoded, fold: str, *, seed: int) -> Encoded:
    """`data` as `fold` sees it (`2/5`: the second of five): training and validation rows together,
    dealt anew; rows that are alike stay together.

    Raises: TrainingError training.folds when a fold would be empty.
    """
    number, of = map(int, fold.split("/"))
    ids, targets = data.ids, data.targets
    groups = [ids.group(i) for i in range(len(ids))] if isinstance(ids, Pixels) else []
    groups = groups or [row_key(row) for row in ids]
    strata: Sequence[Hashable] = [0] * len(groups)
    if isinstance(targets, Tensor) and targets.dim() == 1 and not targets.is_floating_point():
        strata = targets.tolist()
    fold_of = dealt(groups, strata, of, seed=seed)
    empty = set(range(of)) - set(fold_of)
    if empty:
        raise TrainingError(
            f"{len(set(groups))} different rows are too few for {of} folds.",
            code="training.folds",
            next_step="Set search.folds to fewer, or add rows.",
        )
    train = [row for row, fold in enumerate(fold_of) if fold != number - 1]
    validation = [row for row, fold in enumerate(fold_of) if fold == number - 1]
    chosen = data.chosen([*train, *validation], num_train=len(train))
    return replace(chosen, half="all")


def dealt(groups: Sequence[bytes], strata: Sequence[Hashable], num: int, *, seed: int) -> list[int]:
    """Fold of each row. A group is in one fold; each stratum (of a group, its first row's) is
    spread evenly, and so are all rows. It depends on their names and the seed, not on their order.
    """
    rows_of: dict[bytes, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    drawn = sorted(rows_of, key=lambda group: hashlib.blake2b(b"%d/%b" % (seed, group)).digest())
    sizes, of_stratum = Counter[int](), Counter[tuple[Hashable, int]]()
    fold_of = [0] * len(groups)
    for group in drawn:
        rows, stratum = rows_of[group], strata[min(rows_of[group])]
        fold = min(range(num), key=lambda f: (of_stratum[stratum, f], sizes[f], f))
        sizes[fold] += len(rows)
        of_stratum[stratum, fold] += len(rows)
        for row in rows:
            fold_of[row] = fold
    return fold_of
