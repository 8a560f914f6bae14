"""Which keys block attention reads, for a graph that is drawn once for all lengths.

Self-contained (torch only): what an exported model folder needs of it is written into that folder.
No loop and no branch on a length; the choice is that of `block_top_k.choose_blocks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_for_any_length(q: Tensor, k: Tensor, mask: Tensor | None, how: Any) -> Tensor:
    """(batch, head, query, key): True where a query reads a key. `mask` is boolean, `how` what was
    asked of the attention (block_size, num_blocks, is_causal, is_masked_causally).
    """
    block_size, num_blocks = how.block_size, how.num_blocks
    num_keys, infinite = k.shape[2], float("inf")
    keys, queries = (torch.arange(x.shape[2], device=q.device) for x in (k, q))
    seen = (keys >= 0)[None, None, None] if mask is None else mask
    missing = block_size - 1 - (num_keys - 1) % block_size
    by_any = F.pad(seen.any(dim=(1, 2)), (0, missing))[:, None]
    by_any = torch.unflatten(by_any, -1, (-1, block_size))[..., None]
    blocks = torch.unflatten(F.pad(k, (0, 0, 0, missing)), 2, (-1, block_size))
    high = blocks.masked_fill(~by_any, -infinite).amax(3)
    low = blocks.masked_fill(~by_any, infinite).amin(3)
    boxes = torch.cat([high, low], -1).masked_fill(~by_any.any(3), 0)
    if how.is_causal:
        seen = seen & (keys <= queries[:, None])
    visible = torch.unflatten(F.pad(seen, (0, missing)), -1, (-1, block_size)).any(-1)
    numbers = torch.arange(visible.shape[-1], device=q.device)
    own = (queries[:, None] // block_size).clamp(max=visible.shape[-1] - 1)
    if how.is_masked_causally:
        own = (visible * numbers).amax(-1, keepdim=True)
    signs = torch.cat([q.clamp(min=0), q.clamp(max=0)], -1)
    scores = signs @ boxes.repeat_interleave(q.shape[1] // k.shape[1], 1).mT
    scores = scores.masked_fill(numbers == own, infinite)
    scores = scores.masked_fill(~visible, -infinite)
    # Blocks that nobody sees stand behind the real ones: there are always enough to choose.
    wide = F.pad(scores, (0, num_blocks), value=-infinite)
    best, chosen = wide.topk(num_blocks, dim=-1)
    read = torch.zeros_like(wide).scatter(-1, chosen, (best > -infinite).to(wide.dtype)) > 0
    read = read[..., : visible.shape[-1]].repeat_interleave(block_size, -1)
    return read[..., :num_keys] & seen
