"""Feed-forward units, heads and the hidden width: weights cut or grown along their axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoglm.modeling.surgery.families import Axes
from autoglm.modeling.surgery.importance import Importance
from autoglm.modeling.surgery.plan import Plan

# Axes that hold the same units several times over, one block behind the other.
BLOCKS = {"2ff": 2, "qkv": 3}


@dataclass(frozen=True, slots=True)
class Pick:
    """Along one axis: the old units that stay, in order, and how many new ones follow."""

    kept: Tensor
    num_new: int = 0


@dataclass(kw_only=True, slots=True)
class Widths:
    """How each axis changes. `per_layer`: of each old layer; `repeats`: of the hidden width."""

    per_layer: list[Mapping[str, Pick]]
    hidden: Pick | None
    repeats: int
    draw: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def resize(self, weight: Tensor, axes: Axes, layer: int) -> Tensor:
        """The weight with every axis changed; `layer` is the old layer's number, -1 outside."""
        picks = self.per_layer[layer] if layer >= 0 else {}
        for dim, axis in enumerate(axes):
            if axis in picks:
                weight = _units(weight, dim, picks[axis], BLOCKS.get(axis, 1), self.draw)
        for dim, axis in enumerate(axes):
            if axis in {"hidden", "reads"}:
                weight = self._hidden(weight, dim, is_read=axis == "reads")
        return weight

    def _hidden(self, weight: Tensor, dim: int, *, is_read: bool) -> Tensor:
        if self.hidden is not None:
            return weight.index_select(dim, self.hidden.kept)
        if self.repeats == 1:
            return weight
        repeats = [self.repeats if d == dim else 1 for d in range(weight.ndim)]
        if not is_read:
            return weight.repeat(repeats)
        # A reader takes unequal shares of the copies: with equal ones all copies would have the
        # same gradient and stay copies for ever (Net2Net, arXiv:1511.05641, section 2.1.1).
        shares = torch.rand(len(weight), self.repeats, generator=self.draw, dtype=torch.float64)
        shares = (shares + 0.5) / (shares + 0.5).sum(1, keepdim=True)
        parts = [weight.double() * share[:, None] for share in shares.T]
        return torch.cat(parts, dim=1).to(weight.dtype)


def widths(plan: Plan, importance: Importance | None) -> Widths:
    """`importance` is needed where something is pruned. More and fewer may be mixed."""
    old = plan.old
    cut = plan.hidden < old.hidden
    assert importance is not None or not plan.is_pruning
    return Widths(
        per_layer=[_of_layer(plan, importance, layer) for layer in range(old.layers)],
        hidden=Pick(_best(importance.hidden, plan.hidden)) if cut and importance else None,
        repeats=max(1, plan.hidden // old.hidden),
    )


def _of_layer(plan: Plan, importance: Importance | None, layer: int) -> Mapping[str, Pick]:
    """Each layer keeps its own best units and groups of heads."""
    old, picks = plan.old, dict[str, Pick]()
    if plan.feed_forward != old.feed_forward:
        scores = importance.feed_forward[layer] if importance else None
        picks["ff"] = picks["2ff"] = _pick(scores, old.feed_forward, plan.feed_forward)
    if plan.heads != old.heads:
        heads = importance.heads[layer] if importance else None
        scores = None if heads is None else heads.view(old.key_heads, -1).sum(1)
        groups = _pick(scores, old.key_heads, plan.heads // old.group)
        picks["kv"] = picks["qkv"] = _spread(groups, old.head_size)
        picks["q"] = _spread(groups, old.head_size * old.group)
        if old.group > 1:
            del picks["qkv"]
    return picks


def _pick(scores: Tensor | None, num_old: int, num_new: int) -> Pick:
    if num_new >= num_old:
        return Pick(torch.arange(num_old), num_new - num_old)
    assert scores is not None
    return Pick(_best(scores, num_new))


def _best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _spread(pick: Pick, size: int) -> Pick:
    """From groups to their values, `size` of them each."""
    kept = (pick.kept[:, None] * size + torch.arange(size)).flatten()
    return Pick(kept, pick.num_new * size)


def _units(weight: Tensor, dim: int, pick: Pick, blocks: int, draw: torch.Generator) -> Tensor:
    parts = [_grown(part, dim, pick, draw) for part in weight.chunk(blocks, dim)]
    return torch.cat(parts, dim)


def _grown(part: Tensor, dim: int, pick: Pick, draw: torch.Generator) -> Tensor:
    """New units read as widely as the old ones do, at random, and nothing reads them yet."""
    part = part.index_select(dim, pick.kept)
    if not pick.num_new:
        return part
    shape = [pick.num_new if d == dim else size for d, size in enumerate(part.shape)]
    if dim == 0 and part.ndim == 2:
        new = torch.randn(shape, generator=draw) * part.float().std()
    else:
        new = torch.zeros(shape)
    return torch.cat([part, new.to(part.dtype)], dim)
