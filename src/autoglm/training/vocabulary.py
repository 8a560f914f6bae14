"""The word table of a trial, cut to the tokens that its rows hold.

A token that no row holds has no gradient; all that an optimizer does to it is decay, by the same
factor for all such tokens. So the trial learns a table of the tokens that occur, and one row more,
of ones, that nobody looks up: it is decayed like the rest and ends as their factor. Half of a small
encoder's numbers are in that table, and a step reads each of them seven times.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification


def decays_idle_rows(make: Any) -> Any:
    """Marks an optimizer that multiplies a row which never had a gradient by a number that depends
    on no value of it: it may be handed a cut table. One without the mark gets the whole.
    """
    make.decays_idle_rows = True
    return make


class Vocabulary:
    """`numbers` (table rows): the new number of each token, -1 where no row holds it."""

    def __init__(self, name: str, whole: Tensor, used: Tensor) -> None:
        self._name, self._whole, self._used = name, whole.cpu(), used
        self.numbers = torch.full((len(whole),), -1)
        self.numbers[used] = torch.arange(len(used))

    def of(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows of token ids by their new numbers."""
        known = self.numbers.tolist()
        return [[known[token] for token in row] for row in rows]

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights` with the table as long as it was; a set without it comes back as it is."""
        if self._name not in weights:
            return dict(weights)
        cut = weights[self._name]
        table = self._whole * cut[-1]
        table[self._used] = cut[:-1]
        return {**weights, self._name: table}


def cut_vocabulary(
    model: AutoGLMForSequenceClassification, rows: Sequence[Sequence[int]], *, optimizer: Any
) -> Vocabulary | None:
    """Cut the table of `model` in place. None without rows, or where it must stay whole: frozen,
    read by another part too, not a plain table, or `optimizer` (what makes it) is not known to
    leave idle rows be.
    """
    if not rows:
        return None
    while isinstance(optimizer, functools.partial):
        optimizer = optimizer.func
    table = model.backbone.get_input_embeddings()
    if type(table) is not nn.Embedding or not getattr(optimizer, "decays_idle_rows", False):
        return None
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is table.weight]
    pad = int(getattr(model.backbone.config, "pad_token_id", 0) or 0)
    used = torch.tensor(sorted({pad, *(token for row in rows for token in row)}))
    if len(names) != 1 or not table.weight.requires_grad or len(used) + 1 >= table.num_embeddings:
        return None
    vocabulary = Vocabulary(names[0], table.weight.detach(), used)
    words = table.weight.detach()
    cut = torch.cat([words[used], torch.ones(1, table.embedding_dim).to(words)])
    short = nn.Embedding(len(cut), cut.shape[1], _weight=cut)
    if table.padding_idx is not None and table.padding_idx in used:
        short.padding_idx = int(vocabulary.numbers[table.padding_idx])
    model.backbone.set_input_embeddings(short)
    return vocabulary
