"""Which units a backbone needs: one pass over rows of token ids, no labels, no gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from autoglm.modeling.surgery.families import Family
from autoglm.modeling.surgery.plan import Sizes
from autoglm.observability.logging import get_logger

ROWS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """`feed_forward`: (layer, unit). `heads`: (layer, head). `hidden`: (hidden,)."""

    feed_forward: Tensor
    heads: Tensor
    hidden: Tensor


def measure(
    backbone: Any, family: Family, sizes: Sizes, sample: Sequence[Sequence[int]]
) -> Importance:
    """From the rows of `sample`; from the weights alone, and the log says so, when it is empty.

    A unit: mean |activation| times the norm of its column in the output projection. A head: mean
    norm of what it adds to the stream. A value of the stream: mean |activation| over layers, each
    layer counted alike. Source: Muralidharan et al., "Compact Language Models via Pruning and
    Knowledge Distillation", 2024, arXiv:2407.14679, section 2.2 (heads and width in that spirit).
    """
    if not any(sample):
        get_logger().warning(
            "pruned by weight norms only", reason="no rows were given to measure activations on"
        )
        return _of_weights(backbone, family, sizes)
    layers = list(backbone.get_submodule(family.layers_path))
    units = [_UnitSum(layer.get_submodule(family.feed_forward_out)) for layer in layers]
    heads = [_HeadSum(layer.get_submodule(family.attention_out), sizes) for layer in layers]
    # What enters each layer; what leaves the last one is not read by any.
    stream = [_StreamSum() for _ in layers]
    with ExitStack() as stack:
        for layer, unit, head, value in zip(layers, units, heads, stream, strict=True):
            stack.enter_context(_watching(unit.module, unit))
            stack.enter_context(_watching(head.module, head))
            stack.enter_context(_watching(layer, value))
        _run(backbone, sample)
    return Importance(
        feed_forward=torch.stack([unit.total * unit.norms for unit in units]),
        heads=torch.stack([head.total for head in heads]),
        hidden=torch.stack([value.total / value.total.mean() for value in stream]).sum(0),
    )


@torch.no_grad()
def _run(backbone: Any, sample: Sequence[Sequence[int]]) -> None:
    """Rows of one length together: a pad would be counted as a token."""
    device = next(backbone.parameters()).device
    rows = sorted((list(row) for row in sample if row), key=len)
    for _, same in groupby(rows, key=len):
        alike = list(same)
        for start in range(0, len(alike), ROWS_AT_ONCE):
            backbone(input_ids=torch.tensor(alike[start : start + ROWS_AT_ONCE], device=device))


@contextmanager
def _watching(module: nn.Module, sum_: Any) -> Iterator[None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        sum_.add(x.detach().flatten(0, -2).float())

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _StreamSum:
    total = torch.zeros(())

    def add(self, x: Tensor) -> None:
        self.total = self.total + x.abs().sum(0).cpu()


class _UnitSum(_StreamSum):
    def __init__(self, module: Any) -> None:
        self.module = module
        self.norms = module.weight.detach().float().norm(dim=0).cpu()


class _HeadSum:
    total = torch.zeros(())

    def __init__(self, module: Any, sizes: Sizes) -> None:
        self.module = module
        weight = module.weight.detach().float().unflatten(1, (sizes.heads, sizes.head_size))
        # |W x|² is x' (W'W) x: a head's share of the output costs head size², not hidden.
        self._gram = torch.einsum("ohd,ohe->hde", weight, weight)

    def add(self, x: Tensor) -> None:
        parts = x.view(len(x), *self._gram.shape[:2])
        squares = torch.einsum("thd,hde,the->th", parts, self._gram, parts)
        self.total = self.total + squares.clamp_min(0).sqrt().sum(0).cpu()


def _of_weights(backbone: Any, family: Family, sizes: Sizes) -> Importance:
    layers = list(backbone.get_submodule(family.layers_path))
    outs = [layer.get_submodule(family.feed_forward_out).weight for layer in layers]
    heads = [layer.get_submodule(family.attention_out).weight for layer in layers]
    split = (sizes.heads, sizes.head_size)
    return Importance(
        feed_forward=torch.stack([w.detach().float().norm(dim=0).cpu() for w in outs]),
        heads=torch.stack(
            [w.detach().float().unflatten(1, split).norm(dim=(0, 2)).cpu() for w in heads]
        ),
        hidden=backbone.get_input_embeddings().weight.detach().float().abs().mean(0).cpu(),
    )
