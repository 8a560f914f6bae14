"""Which keys block attention reads.

Self-contained (torch only): what an exported model folder needs of it is written into that folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MANY = 16  # blocks; more of them are chosen by topk
BITS = 7  # for a block's number; few enough blocks leave the same bits of a score, however many


@dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """What was asked for; `is_masked_causally` when the mask itself hides what is to come."""

    block_size: int
    num_blocks: int
    is_causal: bool = False
    is_masked_causally: bool = False
    scale: float = 1.0
    dropout: float = 0.0
    seed: int = 0


def choose_blocks(q: Tensor, k: Tensor, mask: Tensor | None, how: How) -> Tensor:
    """The blocks that each query reads: (batch, head, query, num_blocks) of block numbers.

    Its own block is among them; the number of blocks stands where it sees fewer. `mask` is boolean.
    """
    batch, heads, num_queries, _ = q.shape
    total = math.ceil(k.shape[2] / how.block_size)
    boxes = _boxes(k, mask, how.block_size).repeat_interleave(heads // k.shape[1], 1)
    kind = torch.int16 if total < 2**15 else torch.int32
    chosen = torch.empty(*q.shape[:3], min(how.num_blocks, total), dtype=kind, device=q.device)
    step = max(1, (1 << 20) // (batch * heads * total))
    if mask is not None and (mask.shape[2] > 1 or how.is_causal):
        step = max(1, min(step, (1 << 23) // (mask.shape[0] * mask.shape[1] * k.shape[2])))
    numbers = torch.arange(total, device=q.device)[:, None]
    ahead = 0 if how.is_causal else max(0, k.shape[2] - num_queries)
    for start in range(0, num_queries, step):
        end = min(start + step, num_queries)
        signs = [q[:, :, start:end].clamp(min=0), q[:, :, start:end].clamp(max=0)]
        scores = boxes @ torch.cat(signs, -1).mT  # (batch, head, block, query)
        places = torch.arange(start, end, device=q.device)
        own = (places + ahead).clamp(max=k.shape[2] - 1) // how.block_size
        visible = None
        if mask is not None:
            seen = mask if mask.shape[-2] == 1 else mask[..., start:end, :]
            if how.is_causal:
                seen = seen & (torch.arange(k.shape[2], device=q.device) <= places[:, None])
            visible = blocks_of(seen, how.block_size, 0).any(-1).mT
            if how.is_masked_causally:
                # The last key it sees is itself, also in a static cache with an empty tail.
                own = (visible * numbers).amax(-2, keepdim=True)
        if how.is_causal:
            before = numbers <= own
            visible = before if visible is None else visible & before
        own = own.expand(batch, heads, 1, end - start)
        chosen[:, :, start:end] = _best(scores, own, visible, chosen.shape[-1]).mT
    return chosen


def _best(scores: Tensor, own: Tensor, visible: Tensor | None, num: int) -> Tensor:
    """(batch, head, num, query): `own` and the blocks of the highest scores (…, block, query).

    A block's number stands in the last bits of its score, which makes the highest score name its
    block: on a CPU a few passes for the highest take half as long as topk. Of blocks whose scores
    differ in these bits alone, the later one is better. A score of NaN is as good as an infinite.
    """
    total = scores.shape[2]
    numbers = torch.arange(total, dtype=torch.int32, device=scores.device)[:, None]
    low = (1 << max(BITS, (total - 1).bit_length())) - 1
    never, highest, infinite = -(2**31), 2**31 - 1, float("inf")
    bits = scores.float().nan_to_num_(infinite, infinite, -infinite).contiguous().view(torch.int32)
    # As whole numbers in the order of the scores: with a number in its last bits, an infinite score
    # would be NaN, and 0 so small that a CPU may take it for 0.
    ranked = bits.clamp(-1, 0).bitwise_and_(highest).bitwise_xor_(bits)
    ranked.bitwise_and_(~low).bitwise_or_(numbers)
    ranked.scatter_(2, own, (own | (highest & ~low)).int())
    if visible is not None:
        ranked.masked_fill_(~visible, never)
    if num > MANY or not ranked.is_cpu:
        best = ranked.topk(num, dim=2).values
        return (best & low).masked_fill_(best == never, total)
    found = []
    for _ in range(num):
        best = ranked.amax(2, keepdim=True)
        block = best & low
        found.append(block.masked_fill(best == never, total))
        ranked.scatter_(2, block.long(), never)
    return torch.cat(found, 2)


def _boxes(k: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """(batch, key_head, block, 2 · dim): a block's highest and lowest in each dimension, over the
    keys that any query may see.
    """
    seen = k.new_ones(1, 1, k.shape[2], dtype=torch.bool)
    if mask is not None:
        seen = mask.any(dim=(1, 2)).expand(-1, k.shape[2])[:, None]
    seen = blocks_of(seen, block_size, 0)[..., None]  # (batch, 1, block, key, 1)
    low = high = key_blocks(k, block_size).view(*k.shape[:2], -1, block_size, k.shape[-1])
    if not seen.all():
        high, low = (low.masked_fill(~seen, fill) for fill in (float("-inf"), float("inf")))
    return torch.cat([high.amax(3), low.amin(3)], -1).masked_fill(~seen.any(3), 0)


def blocks_of(x: Tensor, block_size: int, fill: float) -> Tensor:
    """(…, key) → (…, block, key in block), filled up at the end."""
    missing = -x.shape[-1] % block_size
    if missing:
        x = F.pad(x, (0, missing), value=fill)
    return x.reshape(*x.shape[:-1], -1, block_size)


def key_blocks(x: Tensor, block_size: int) -> Tensor:
    """(batch, key_head, key, dim) → (batch · key_head · block, key in block, dim)."""
    missing = -x.shape[2] % block_size
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    return x.reshape(-1, block_size, x.shape[-1])


def mask_for_any_length(q: Tensor, k: Tensor, mask: Tensor | None, how: How) -> Tensor:
    """(batch, head, query, key): True where a query reads a key. `mask` is boolean. For a graph
    that is drawn once for all lengths: no loop and no branch on a length.
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
    own = queries
    if not how.is_causal:  # the last queries are the last keys'; no branch on their numbers
        own = torch.maximum(queries, num_keys - 1 - queries.flip(0))
    own = (own[:, None] // block_size).clamp(max=visible.shape[-1] - 1)
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
