"""Exact top-k attention: per query, a softmax over its `k` best keys only.

Self-contained (math and torch only): this very file is copied into exported model folders.

top_k_attention(q, k, v, num_kept=64, …)      → the pure function
top_k(module, query, key, value, mask, k=64)  → as transformers calls it; `attention: top_k`

Source: Zhao et al., "Explicit Sparse Transformer", 2019, arXiv:1912.11637.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_SCORES = 1 << 21  # scores that live at one time: 8 MiB in fp32


def top_k_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_kept: int,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend, per query, to its `num_kept` highest-scoring visible keys only.

    q (batch, head, query, dim); k, v (batch, key_head, key, dim), key_head divides head.
    mask (batch | 1, head | 1, query | 1, key): True may be seen, or float, added. bias, alike, is
    added too. `is_causal`: query i sees keys 0 … i. Gives (batch, head, query, dim). A query with
    fewer visible keys keeps them all, one that sees none gives zeros.

    Queries are taken in chunks, which backward computes again: beyond inputs, output and their
    gradients, memory is O(chunk · key), not O(query · key). With every key kept it is torch's SDPA.
    Raises: ValueError if `num_kept` < 1.
    """
    if num_kept < 1:
        raise ValueError(f"num_kept is {num_kept}, it must be at least 1.")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask, bias = _split(mask, bias)
    if torch.compiler.is_exporting():
        return _for_any_length(q, k, v, mask, bias, num_kept, is_causal, scale)
    if num_kept >= k.shape[2]:
        return _dense(q, k, v, mask, bias, is_causal, scale, dropout)
    # A seed of our own, drawn once: backward drops the same weights again whatever was drawn since.
    seed = int(torch.randint(2**62, ())) if dropout > 0 else 0
    how = _How(num_kept=num_kept, is_causal=is_causal, scale=scale, dropout=dropout, seed=seed)
    output: Tensor = _TopK.apply(q, k, v, mask, bias, how)  # type: ignore[no-untyped-call]
    return output


def top_k(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    k: int = 64,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`top_k_attention` as transformers calls attention; gives (batch, query, head, dim), None."""
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"top_k does not know {name}, which this model needs.")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    num_queries = query.shape[2]
    is_causal = is_causal and attention_mask is None and num_queries > 1
    if is_causal:  # an empty static cache: what lies behind the queries was not written yet
        key, value = key[:, :, :num_queries], value[:, :, :num_queries]
        position_bias = None if position_bias is None else position_bias[..., :num_queries]
    output = top_k_attention(
        query,
        key,
        value,
        num_kept=k,
        mask=attention_mask,
        bias=position_bias,
        is_causal=is_causal,
        scale=scaling,
        dropout=dropout if module.training else 0.0,
    )
    return output.transpose(1, 2).contiguous(), None


top_k.everything = {"k": 2**31 - 1}  # type: ignore[attr-defined]


def _split(mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What may be seen (bool), and what is added (float, finite or -inf)."""
    if mask is None or mask.dtype == torch.bool:
        return mask, bias
    # Eager masks say "never" with the lowest number, which would make a blind query see everything.
    seen = mask > torch.finfo(mask.dtype).min / 2
    return seen, mask if bias is None else mask + bias


def _for_any_length(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    num_kept: int,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """The same for a graph that is drawn once for all lengths: no loop, no branch on a length."""
    groups, num_keys = q.shape[1] // k.shape[1], k.shape[2]
    k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
    scores = q @ k.mT * scale
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if is_causal:
        places = torch.arange(num_keys, device=q.device)
        scores = scores.masked_fill(
            places > torch.arange(q.shape[2], device=q.device)[:, None], float("-inf")
        )
    # Keys that nobody sees stand behind the real ones, so that there are always enough to choose.
    best, kept = F.pad(scores, (0, num_kept), value=float("-inf")).topk(num_kept, dim=-1)
    weights = best.softmax(-1).masked_fill(best == float("-inf"), 0.0)
    dense = torch.zeros_like(F.pad(scores, (0, num_kept))).scatter(-1, kept, weights)
    return dense[..., :num_keys] @ v


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    is_causal: bool,
    scale: float,
    dropout: float,
) -> Tensor:
    if is_causal and (mask is not None or bias is not None):
        before = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask, is_causal = before if mask is None else mask & before, False
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=is_causal, scale=scale, enable_gqa=is_grouped
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _How:
    num_kept: int
    is_causal: bool
    scale: float
    dropout: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    """Queries [start, end): kept keys and their weights, (batch, head, query, kept)."""

    start: int
    end: int
    kept: Tensor
    weights: Tensor  # before dropout; 0 for a kept key that may not be seen
    dropped: Tensor | None  # what dropout multiplies them with


class _TopK(torch.autograd.Function):
    """Saves its inputs only."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        how: _How,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, mask, bias)
        ctx.how = how
        output = q.new_empty(*q.shape[:3], v.shape[-1])
        # embedding_bag is a fused "gather rows, weigh, add up": no (query, kept, dim) is made.
        rows = v.reshape(-1, v.shape[-1])
        first_row = _first_rows(q, k)
        for chunk in _chunks(q, k, mask, bias, how):
            weights = chunk.weights if chunk.dropped is None else chunk.weights * chunk.dropped
            bags = F.embedding_bag(
                (chunk.kept + first_row).flatten(0, 2),
                rows,
                per_sample_weights=weights.flatten(0, 2),
                mode="sum",
            )
            output[:, :, chunk.start : chunk.end] = bags.view(*weights.shape[:3], -1)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, bias = ctx.saved_tensors
        how: _How = ctx.how
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dbias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[4] else None
        for chunk in _chunks(q, k, mask, bias, how):
            here = slice(chunk.start, chunk.end)
            grad_out = _grouped(grad[:, :, here], k.shape[1])
            dense = (grad_out @ v.mT).view(*chunk.kept.shape[:3], -1)
            dweights = dense.gather(-1, chunk.kept)
            weights = chunk.weights
            if chunk.dropped is not None:
                dweights = dweights * chunk.dropped
                weights = weights * chunk.dropped
            dense.zero_().scatter_(-1, chunk.kept, weights)
            dv.add_(_grouped(dense, k.shape[1]).mT @ grad_out)

            mean = (dweights * chunk.weights).sum(-1, keepdim=True)
            dscores = chunk.weights * (dweights - mean)
            dense.zero_().scatter_(-1, chunk.kept, dscores)
            if dbias is not None:
                _add_reduced(dbias, dense, here)
            dense = _grouped(dense, k.shape[1])
            dq[:, :, here] = (dense @ k).view_as(dq[:, :, here]).mul_(how.scale)
            dk.add_(dense.mT @ _grouped(q[:, :, here], k.shape[1]), alpha=how.scale)
        return dq, dk, dv, None, dbias, None


def _chunks(
    q: Tensor, k: Tensor, mask: Tensor | None, bias: Tensor | None, how: _How
) -> Iterator[_Chunk]:
    """The kept keys of every query; the same in forward and in backward."""
    batch, heads, num_queries, _ = q.shape
    step = max(1, CHUNK_SCORES // (batch * heads * k.shape[2]))
    positions = torch.arange(max(num_queries, k.shape[2]), device=q.device)
    generator = torch.Generator(q.device).manual_seed(how.seed) if how.dropout > 0 else None
    for start in range(0, num_queries, step):
        end = min(start + step, num_queries)
        scores = (_grouped(q[:, :, start:end], k.shape[1]) @ k.mT).mul_(how.scale)
        scores = scores.view(batch, heads, end - start, k.shape[2])
        if bias is not None:
            scores += _rows(bias, start, end)
        if mask is not None:
            scores.masked_fill_(~_rows(mask, start, end), float("-inf"))
        if how.is_causal:
            later = positions[: k.shape[2]] > positions[start:end, None]
            scores.masked_fill_(later, float("-inf"))
        best, kept = scores.topk(how.num_kept, dim=-1, sorted=False)
        # A softmax over nothing is NaN; a query that sees nothing weighs nothing.
        weights = best.softmax(-1).masked_fill_(best == float("-inf"), 0.0)
        dropped = None
        if generator is not None:
            drawn = torch.rand(weights.shape, generator=generator, device=q.device)
            dropped = (drawn >= how.dropout).to(weights.dtype).div_(1 - how.dropout)
        yield _Chunk(start=start, end=end, kept=kept, weights=weights, dropped=dropped)


def _grouped(x: Tensor, key_heads: int) -> Tensor:
    """(batch, head, query, n) → (batch, key_head, group · query, n)."""
    batch, heads, num_queries, size = x.shape
    return x.reshape(batch, key_heads, heads // key_heads * num_queries, size)


def _rows(x: Tensor, start: int, end: int) -> Tensor:
    """Queries [start, end) of a mask or bias; one that all queries share stays as it is."""
    return x if x.dim() < 2 or x.shape[-2] == 1 else x[..., start:end, :]


def _first_rows(q: Tensor, k: Tensor) -> Tensor:
    """(batch, head, 1, 1): where a head's keys begin among the rows of all key heads."""
    batch, heads, key_heads = q.shape[0], q.shape[1], k.shape[1]
    head = torch.arange(heads, device=q.device) // (heads // key_heads)
    lane = torch.arange(batch, device=q.device)[:, None] * key_heads + head
    return (lane * k.shape[2])[:, :, None, None]


def _add_reduced(total: Tensor, part: Tensor, here: slice) -> None:
    """Add `part` (batch, head, some queries, key) to a gradient of a broadcast shape."""
    rows = total if total.shape[-2] == 1 else total[..., here, :]
    rows += part.sum_to_size(rows.shape)
