"""Dense attention in plain words, fp32: what the probe holds an attention against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one attention function was called with: q (batch, head, query, dim), k and v
    (batch, key_head, key, dim), mask (batch, 1, query, key) or None, and the rest by name.
    """

    module: Any
    layer: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    rest: Mapping[str, Any]

    @property
    def output_shape(self) -> tuple[int, ...]:
        batch, heads, num_queries, _ = self.query.shape
        return batch, num_queries, heads, self.value.shape[-1]

    @property
    def position_bias(self) -> Tensor | None:
        return self.rest.get("position_bias")

    def with_rest(self, **changed: Any) -> Call:
        return replace(self, rest={**self.rest, **changed})

    def in_fp32(self) -> Call:
        rest = {k: _fp32(v) if isinstance(v, Tensor) else v for k, v in self.rest.items()}
        return replace(
            self,
            query=_fp32(self.query),
            key=_fp32(self.key),
            value=_fp32(self.value),
            mask=None if self.mask is None else _fp32(self.mask),
            rest={**rest, "dropout": 0.0},
        )

    def drawn(self) -> Call:
        """The same shapes and mask with normal numbers: a fresh model's scores are all near 0,
        which would hide a wrong scale.
        """
        generator = torch.Generator().manual_seed(0)

        def like(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=generator).to(x)

        bias = {} if self.position_bias is None else {"position_bias": like(self.position_bias)}
        drawn = self.with_rest(**bias)
        return replace(drawn, query=like(self.query), key=like(self.key), value=like(self.value))


def _fp32(x: Tensor) -> Tensor:
    return x.detach().float() if x.is_floating_point() else x.detach()


def dense(call: Call) -> tuple[Tensor, Tensor]:
    """(batch, query, head, dim), and which queries see anything (batch, query, head, 1).

    Knows grouped heads, masks, causality, `position_bias`, `softcap` and sinks (`s_aux`).
    """
    group = call.query.shape[1] // call.key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (call.key, call.value))
    scale = call.rest.get("scaling")
    scores = call.query @ key.mT * (call.query.shape[-1] ** -0.5 if scale is None else scale)
    softcap, sinks = call.rest.get("softcap"), call.rest.get("s_aux")
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if call.position_bias is not None:
        scores = scores + call.position_bias
    seen = visible(call)
    if call.mask is not None and call.mask.dtype != torch.bool:
        scores = scores + call.mask
    scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        sink = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = weights.masked_fill(~seen, 0.0)
    sees = seen.any(-1, keepdim=True).expand(*scores.shape[:3], 1)
    return (weights @ value).transpose(1, 2), sees.transpose(1, 2)


def visible(call: Call) -> Tensor:
    """(batch or 1, head or 1, query, key): which keys a query may see."""
    num_queries, num_keys = call.query.shape[2], call.key.shape[2]
    if call.mask is not None:
        is_bool = call.mask.dtype == torch.bool
        seen = call.mask if is_bool else call.mask > torch.finfo(call.mask.dtype).min / 2
        return seen[..., :num_keys].expand(*seen.shape[:2], num_queries, num_keys)
    everything = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device=call.query.device)
    is_causal = call.rest.get("is_causal")
    if is_causal is None:
        is_causal = getattr(call.module, "is_causal", False)
    return everything.tril() if is_causal and num_queries > 1 else everything
