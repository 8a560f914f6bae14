"""Block-sparse attention: per query, dense attention inside its best blocks of keys only.

Self-contained (torch only, and `block_choice.py`): it is written into exported model folders.

Each query reads its own block and the best others, by the highest score that any key in the block's
bounding box could have (Tang et al., "Quest", 2024, arXiv:2406.10774). What it reads never depends
on a later one: causal models stay causal, and a key-value cache gives the same answers. The work is
sorted by key block (Lu et al., "MoBA", 2025, arXiv:2502.13189) and cut into tiles of equal size for
one batched flash kernel; the parts of a query are merged by their logsumexp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from autoglm.modeling.attention.block_choice import (
    How,
    blocks_of,
    choose_blocks,
    key_blocks,
    mask_for_any_length,
)

TILES = (256, 128)  # queries in a tile: more are quicker, but leave more of the last one empty
SLOTS_AT_A_TIME = 16384
ROWS_AT_A_TIME = 16384  # queries whose parts wait to be merged


def block_top_k_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_size: int = 128,
    num_blocks: int = 8,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    is_masked_causally: bool = False,
) -> Tensor:
    """Attend, per query, to the keys of its own block and of the `num_blocks - 1` best others.

    q (batch, head, query, dim); k, v (batch, key_head, key, dim), key_head divides head.
    mask (batch | 1, head | 1, query | 1, key): True may be seen, or float, added. bias, alike, is
    added too. `is_causal`: query i sees keys 0 … i. Gives (batch, head, query, dim); zeros for a
    query that sees nothing. With every block kept it is torch's SDPA.

    Cost: O(query · num_blocks · block_size); memory beyond inputs, output and their gradients: two
    bytes per query and block, and constant buffers. A bias that learns costs O(query · key).
    Raises: ValueError if `block_size` or `num_blocks` < 1.
    """
    if block_size < 1 or num_blocks < 1:
        raise ValueError(f"block_size {block_size} and num_blocks {num_blocks} must be at least 1.")
    how = How(
        block_size=block_size,
        num_blocks=num_blocks,
        is_causal=is_causal,
        is_masked_causally=is_masked_causally,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        dropout=dropout,
        # Drawn once: backward drops the same weights again.
        seed=int(torch.randint(2**62, ())) if dropout > 0 else 0,
    )
    mask, bias = _split(mask, bias)
    if torch.compiler.is_exporting():
        read = mask_for_any_length(q, k, mask, how)
        return _dense(q, k, v, read, bias, how)
    if num_blocks * block_size >= k.shape[2] or q.numel() == 0:
        return _dense(q, k, v, mask, bias, how)
    chosen = choose_blocks(q.detach(), k.detach(), mask, how)
    if bias is not None and bias.requires_grad and torch.is_grad_enabled():
        # Only a gradient of the whole (query, key) bias needs the whole matrix.
        mask = _as_mask(chosen, mask, how, k.shape[2])
        return _dense(q, k, v, mask, bias, how)
    output: Tensor = _Blocks.apply(q, k, v, mask, bias, chosen, how)  # type: ignore[no-untyped-call]
    return output


def block_top_k(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    block_size: int = 128,
    num_blocks: int = 8,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`block_top_k_attention` as transformers calls attention; (batch, query, head, dim), None."""
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ValueError(f"block_top_k does not know {name}, which this model needs.")
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", False))
    num_queries, is_masked = query.shape[2], attention_mask is not None
    is_causal_alone = is_causal and not is_masked and num_queries > 1
    if is_causal_alone:  # an empty static cache: what lies behind the queries was not written yet
        key, value = key[:, :, :num_queries], value[:, :, :num_queries]
        position_bias = None if position_bias is None else position_bias[..., :num_queries]
    output = block_top_k_attention(
        query,
        key,
        value,
        block_size=block_size,
        num_blocks=num_blocks,
        mask=attention_mask,
        bias=position_bias,
        is_causal=is_causal_alone,
        is_masked_causally=is_causal and is_masked,
        scale=scaling,
        dropout=dropout if module.training else 0.0,
    )
    return output.transpose(1, 2).contiguous(), None


block_top_k.everything = {"num_blocks": 2**31 - 1}  # type: ignore[attr-defined]


def _as_mask(chosen: Tensor, mask: Tensor | None, how: How, num_keys: int) -> Tensor:
    """(batch, head, query, key): True where a query reads a key."""
    total = math.ceil(num_keys / how.block_size)
    is_chosen = torch.zeros(*chosen.shape[:3], total + 1, dtype=torch.bool, device=chosen.device)
    is_chosen.scatter_(-1, chosen.long(), True)
    read = is_chosen[..., :total].repeat_interleave(how.block_size, -1)[..., :num_keys]
    return read if mask is None else read & mask


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Everything as rows: q (row, dim), k and v (block, key, dim), mask and bias (row, key)."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: _Rows | None
    bias: _Rows | None
    shape: tuple[int, int, int, int, int]  # batch, heads, queries, key heads, keys
    how: How

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, added: Sequence[Tensor | None], how: How) -> Self:
        mask, bias = (None if x is None else _Rows.of(x, how.block_size) for x in added)
        k_blocks, v_blocks = (key_blocks(x, how.block_size) for x in (k, v))
        shape = (*q.shape[:3], k.shape[1], k.shape[2])
        return cls(q.reshape(-1, q.shape[-1]), k_blocks, v_blocks, mask, bias, shape, how)

    def num_slots(self, chosen: Tensor) -> int:
        """Enough for any layout's slots: one buffer for all of them leaves no holes in memory."""
        batch, heads, num_queries, key_heads, _ = self.shape
        num_rows = min(ROWS_AT_A_TIME, len(self.q))
        lanes = min(num_rows // (heads // key_heads * num_queries) + 2, batch * key_heads)
        groups = lanes * (len(self.k) // (batch * key_heads))
        num_parts = num_rows * chosen.shape[-1]
        # A group that is read leaves less than a small tile empty.
        return num_parts + min(groups, num_parts) * TILES[1] + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """A mask or bias of a broadcast shape, cut into blocks: (batch · head · query · block, key)."""

    blocks: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, block_size: int) -> _Rows:
        cut = blocks_of(x, block_size, 0)
        return cls(blocks=cut.reshape(-1, block_size), shape=tuple(cut.shape[:4]))

    def take(self, batch: Tensor, head: Tensor, query: Tensor, block: Tensor) -> Tensor:
        """(tile, 1, query, key): the pieces that the tiles' queries have over their blocks."""
        at = torch.zeros_like(batch)
        for index, size in zip((batch, head, query), self.shape[:3], strict=True):
            at = at * size + (index if size > 1 else 0)
        at = at * self.shape[3] + block
        return self.blocks.index_select(0, at.flatten()).view(*at.shape, -1).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Some rows' reading, sorted by block of keys and cut into tiles: the large ones, the small."""

    start: int
    end: int
    block_of_tile: tuple[Tensor, Tensor]  # (tile,) of each size
    row_of_slot: Tensor  # (slot,); an empty slot repeats its tile's first
    is_empty: Tensor  # (slot,)
    slot_of_part: Tensor  # (row, num_blocks): where a row's nth reading stands; else the last
    is_read: Tensor  # (row, num_blocks): False where a row reads fewer blocks


def _layouts(chosen: Tensor, inputs: _Inputs) -> Iterator[_Layout]:
    """All rows but where none reads anything; the same in forward and in backward."""
    _, heads, num_queries, key_heads, num_keys = inputs.shape
    total = math.ceil(num_keys / inputs.how.block_size)
    flat = chosen.flatten(0, 2)
    rows_of_lane = heads // key_heads * num_queries  # rows that read the same head of keys
    for start in range(0, len(flat), ROWS_AT_A_TIME):
        end = min(start + ROWS_AT_A_TIME, len(flat))
        first_lane, last_lane = start // rows_of_lane, (end - 1) // rows_of_lane
        lane = torch.arange(start, end, device=flat.device) // rows_of_lane - first_lane
        num_groups = (last_lane - first_lane + 1) * total
        is_read = flat[start:end] < total
        group = (lane[:, None] * total + flat[start:end]).masked_fill_(~is_read, num_groups)
        if is_read.any():
            kind = torch.int16 if num_groups < 2**15 else torch.int32  # shorter ones sort quicker
            yield _layout(group.flatten().to(kind), num_groups, is_read, start, first_lane * total)


def _layout(
    group: Tensor, num_groups: int, is_read: Tensor, start: int, first_block: int
) -> _Layout:
    """Tiles of the parts of each group; the last group (nothing is read) gets none."""
    order = group.sort(stable=True).indices
    counts = torch.bincount(group, minlength=num_groups + 1)[:num_groups]
    large, small = TILES
    num_large = (counts + small - 1) // large  # what a large one would leave half empty is small's
    in_large = torch.minimum(counts, num_large * large)
    num_small = (counts - in_large + small - 1) // small
    groups = torch.arange(num_groups, device=group.device)
    blocks = tuple(groups.repeat_interleave(n) for n in (num_large, num_small))
    first_small = large * len(blocks[0])
    num_slots = first_small + small * len(blocks[1])
    # Each group's parts stand in order, in a run of large and a run of small tiles.
    first_slots = [_starts(num_large * large), _starts(num_small * small) + first_small]
    runs = torch.stack([in_large, counts - in_large], 1).flatten()
    moved = torch.stack(first_slots, 1).flatten() - _starts(runs)
    slot = moved.repeat_interleave(runs)
    slot += torch.arange(len(slot), device=slot.device)
    order = order[: len(slot)]

    row_of_slot = group.new_full((num_slots,), -1, dtype=torch.long)
    row_of_slot[slot] = torch.div(order, is_read.shape[1], rounding_mode="floor")
    is_empty = row_of_slot < 0
    for size, rows in ((large, row_of_slot[:first_small]), (small, row_of_slot[first_small:])):
        tiles = rows.view(-1, size)  # of the same tile: another sample's NaN stays there
        tiles.copy_(torch.where(tiles < 0, tiles[:, :1], tiles))
    row_of_slot += start
    slot_of_part = group.new_full((is_read.numel(),), num_slots, dtype=torch.long)
    slot_of_part[order] = slot
    slot_of_part, end = slot_of_part.view(is_read.shape), start + len(is_read)
    here = (blocks[0] + first_block, blocks[1] + first_block)
    return _Layout(start, end, here, row_of_slot, is_empty, slot_of_part, is_read)


def _starts(sizes: Tensor) -> Tensor:
    return sizes.cumsum(0) - sizes


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Some tiles: q (tile, 1, slot, dim), k and v (tile, 1, key, dim), what is added to scores."""

    slots: slice
    rows: Tensor
    blocks: Tensor
    is_empty: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    added: Tensor | None
    dropped: Tensor | None


def _tiles(layout: _Layout, inputs: _Inputs) -> Iterator[_Tiles]:
    how = inputs.how
    generator = torch.Generator(inputs.q.device) if how.dropout > 0 else None
    first = 0
    for size, blocks_of_size in zip(TILES, layout.block_of_tile, strict=True):
        for blocks in torch.split(blocks_of_size, max(1, SLOTS_AT_A_TIME // size)):
            slots = slice(first, first + len(blocks) * size)
            rows = layout.row_of_slot[slots]
            dropped = None
            if generator is not None:
                generator.manual_seed(how.seed + layout.start * 1009 + first)
                shape = (len(blocks), 1, size, how.block_size)
                drawn = torch.rand(shape, generator=generator, device=rows.device)
                dropped = (drawn >= how.dropout).to(inputs.q.dtype).div_(1 - how.dropout)
            first = slots.stop
            if len(blocks):
                q = inputs.q.index_select(0, rows).view(len(blocks), 1, size, -1)
                k, v = (x.index_select(0, blocks).unsqueeze(1) for x in (inputs.k, inputs.v))
                added = _added(rows.view(-1, size), blocks, inputs)
                is_empty = layout.is_empty[slots].view(-1, size)
                yield _Tiles(slots, rows, blocks, is_empty, q, k, v, added, dropped)


def _added(rows: Tensor, blocks: Tensor, inputs: _Inputs) -> Tensor | None:
    """Bias and -inf, (tile, 1, slot, key); None where every key may be seen as it is."""
    _, heads, num_queries, _, num_keys = inputs.shape
    how, dtype = inputs.how, inputs.q.dtype
    is_whole = num_keys % how.block_size == 0
    if is_whole and not how.is_causal and inputs.mask is None and inputs.bias is None:
        return None
    batch, query = rows // num_queries // heads, rows % num_queries
    head = rows // num_queries % heads
    block = (blocks % math.ceil(num_keys / how.block_size))[:, None]
    keys = block * how.block_size + torch.arange(how.block_size, device=rows.device)
    if inputs.bias is None:
        shape = (len(rows), 1, rows.shape[1], how.block_size)
        added = torch.zeros(shape, dtype=dtype, device=rows.device)
    else:
        added = inputs.bias.take(batch, head, query, block).to(dtype)
    if inputs.mask is not None:
        added.masked_fill_(~inputs.mask.take(batch, head, query, block), float("-inf"))
    if how.is_causal:
        added.masked_fill_((keys[:, None] > query[:, :, None])[:, None], float("-inf"))
    elif not is_whole:
        added.masked_fill_((keys >= num_keys)[:, None, None], float("-inf"))
    return added


class _Blocks(torch.autograd.Function):
    """Saves its inputs, its output, the choice and one number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *more: Any) -> Tensor:
        mask, bias, chosen, how = more
        inputs = _Inputs.of(q, k, v, (mask, bias), how)
        output = q.new_zeros(len(inputs.q), v.shape[-1])
        logsumexp = q.new_empty(len(inputs.q), dtype=torch.promote_types(q.dtype, torch.float32))
        parts = q.new_empty(inputs.num_slots(chosen), v.shape[-1])
        for layout in _layouts(chosen, inputs):
            sums = logsumexp.new_empty(len(layout.is_empty) + 1)
            for tiles in _tiles(layout, inputs):
                part, part_sum = _attend(tiles, how)
                parts[tiles.slots] = part.reshape(-1, v.shape[-1])
                sums[tiles.slots] = part_sum.reshape(-1)
            sums = sums.take(layout.slot_of_part).masked_fill_(~layout.is_read, float("-inf"))
            sums = sums.T.contiguous()  # (num_blocks, row): rows side by side are quicker
            total = torch.logsumexp(sums, 0, out=logsumexp[layout.start : layout.end])
            # A row that reads nothing weighs nothing, where a softmax over nothing would be NaN.
            weights = sums.sub_(total).exp_().T.masked_fill(~layout.is_read, 0.0).to(q.dtype)
            output[layout.start : layout.end] = _merged(parts, layout, weights)
        ctx.save_for_backward(q, k, v, mask, bias, chosen, output, logsumexp)
        ctx.how = how
        return output.view(*q.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, bias, chosen, output, logsumexp = ctx.saved_tensors
        how: How = ctx.how
        inputs = _Inputs.of(q, k, v, (mask, bias), how)
        grad, dq = grad.reshape(output.shape), torch.zeros_like(inputs.q)
        dk, dv = torch.zeros_like(inputs.k), torch.zeros_like(inputs.v)
        parts = q.new_empty(inputs.num_slots(chosen), q.shape[-1])
        for layout in _layouts(chosen, inputs):
            for tiles in _tiles(layout, inputs):
                sums = logsumexp.index_select(0, tiles.rows).view(tiles.is_empty.shape)
                # exp(score - inf) is 0: an empty slot gives nothing to its block's gradients.
                sums = sums.masked_fill(tiles.is_empty, float("inf")).unsqueeze(1)
                out, grad_out = (
                    x.index_select(0, tiles.rows).view(*tiles.q.shape[:3], -1)
                    for x in (output, grad)
                )
                part, dk_tiles, dv_tiles = _attend_backward(tiles, out, grad_out, sums, how)
                parts[tiles.slots] = part.reshape(-1, q.shape[-1])
                _add_up(dk, tiles.blocks, dk_tiles)
                _add_up(dv, tiles.blocks, dv_tiles)
            dq[layout.start : layout.end] = _merged(parts, layout, layout.is_read.to(q.dtype))
        dk, dv = (x.view(*k.shape[:2], -1, x.shape[-1])[:, :, : k.shape[2]] for x in (dk, dv))
        return dq.view(q.shape), dk, dv, None, None, None, None


def _merged(parts: Tensor, layout: _Layout, weights: Tensor) -> Tensor:
    """(row, dim): a row's parts, weighed and added up; embedding_bag need not gather them first."""
    parts[len(layout.is_empty)] = 0  # what was not read: no row's NaN times 0
    return F.embedding_bag(layout.slot_of_part, parts, per_sample_weights=weights, mode="sum")


def _add_up(sums: Tensor, blocks: Tensor, parts: Tensor) -> None:
    """Adds each tile's part (tile, 1, key, dim) to its block's sum. Tiles stand in order of their
    blocks, so embedding_bag adds them up at once: index_add_ would wait for all cores at each tile,
    and a product with who-belongs-where would carry a NaN into all blocks.
    """
    here, counts = torch.unique_consecutive(blocks, return_counts=True)
    tiles = torch.arange(len(blocks), device=blocks.device)
    added = F.embedding_bag(tiles, parts.reshape(len(blocks), -1), _starts(counts), mode="sum")
    sums[here] = sums.index_select(0, here) + added.view(-1, *sums.shape[1:])


def _is_flash(tiles: _Tiles) -> bool:
    """Whether torch's CPU flash kernel can be called, with a logsumexp of our own in backward."""
    return tiles.q.is_cpu and tiles.dropped is None and tiles.q.shape[-1] == tiles.v.shape[-1]


def _scores(tiles: _Tiles, how: How) -> Tensor:
    scores = (tiles.q @ tiles.k.mT).mul_(how.scale)
    return scores if tiles.added is None else scores.add_(tiles.added)


def _attend(tiles: _Tiles, how: How) -> tuple[Tensor, Tensor]:
    """Dense attention inside the tiles, and the logsumexp of their scores."""
    if _is_flash(tiles):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, sums = flash(tiles.q, tiles.k, tiles.v, attn_mask=tiles.added, scale=how.scale)
        return output, sums
    scores = _scores(tiles, how)
    sums = scores.logsumexp(-1)
    weights = scores.sub_(sums.unsqueeze(-1)).exp_()
    if tiles.dropped is not None:
        weights *= tiles.dropped
    return weights @ tiles.v, sums


def _attend_backward(
    tiles: _Tiles, output: Tensor, grad: Tensor, sums: Tensor, how: How
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v; `output` and `sums` are the whole rows', so shares add up to theirs."""
    if _is_flash(tiles):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found: tuple[Tensor, Tensor, Tensor] = flash(
            grad, tiles.q, tiles.k, tiles.v, output, sums, 0.0, False,
            attn_mask=tiles.added, scale=how.scale,
        )  # fmt: skip
        return found
    weights = _scores(tiles, how).sub_(sums.unsqueeze(-1)).exp_()
    dweights = grad @ tiles.v.mT
    kept = weights
    if tiles.dropped is not None:
        kept, dweights = weights * tiles.dropped, dweights.mul_(tiles.dropped)
    dscores = weights * (dweights - (grad * output).sum(-1, keepdim=True))
    dq, dk = (dscores @ tiles.k).mul_(how.scale), (dscores.mT @ tiles.q).mul_(how.scale)
    return dq, dk, kept.mT @ grad


def _split(mask: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What may be seen (bool), and what is added (float); one row where all queries share it."""
    if mask is not None and mask.shape[2] > 1 and mask.stride(2) == 0:
        mask = mask[:, :, :1]
    if mask is None or mask.dtype == torch.bool:
        return mask, bias
    # Eager masks say "never" with the lowest number, which would make a blind query see everything.
    seen = mask > torch.finfo(mask.dtype).min / 2
    return seen, mask if bias is None else mask + bias


def _dense(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, how: How
) -> Tensor:
    is_causal = how.is_causal
    if is_causal and (mask is not None or bias is not None):
        before = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask, is_causal = before if mask is None else mask & before, False
    if bias is not None:
        added = bias.to(q.dtype)
        mask = added if mask is None else added.masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(
        q, k, v, mask, how.dropout, is_causal, scale=how.scale, enable_gqa=q.shape[1] != k.shape[1]
    )
