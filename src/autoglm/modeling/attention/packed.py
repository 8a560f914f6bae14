"""Rows of a batch as one long row: no layer works on padding, and every attention stays plain.

The linear layers see (1, tokens, hidden). Inside the wrapped attention, queries, keys and values
are gathered into padded blocks of like length, the chosen attention is called with its ordinary
(batch, heads, length, size) contract and an ordinary mask, and its output is scattered back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

# So many pads cost as much as another call of the attention, forward and backward.
MAX_PADS = 128
# Up to here dense attention trains faster by plain products than by torch's flash kernel, which
# works head by head.
SHORT = 64
PACKED = "packed_"


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of like length, padded to `length`: `gather` (rows · length) names the token that stands
    at each place (a place behind a row's end repeats its first token), `keep` (tokens) the places
    that hold tokens. Both are None when no row needs a pad.
    """

    num_rows: int
    length: int
    num_tokens: int
    lengths: Tensor
    gather: Tensor | None
    keep: Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of a batch, longest first, one behind the other.

    `lengths` (rows), `starts` (rows), `row_of` (tokens): the row of each token, `positions`
    (1, tokens): its place in the row, counted from 0.
    """

    lengths: Tensor
    starts: Tensor
    row_of: Tensor
    positions: Tensor
    blocks: tuple[Block, ...]
    _masks: dict[tuple[int, bool, int | None], Tensor | None] = field(default_factory=dict)

    def mask(self, number: int, *, is_causal: bool, window: int | None) -> Tensor | None:
        """What a query of block `number` may see: bool (rows, 1, 1 or length, length), True = seen.

        None when it may see all. Made once for all layers.
        """
        key = (number, is_causal, window)
        if key not in self._masks:
            self._masks[key] = _mask(self.blocks[number], is_causal, window)
        return self._masks[key]

    def padded(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, length, …) of `flat` (tokens, …), zero behind each row's end, and its mask."""
        num_rows, longest = len(self.lengths), self.blocks[0].length
        places = self.row_of * longest + self.positions[0]
        hidden = flat.new_zeros(num_rows * longest, *flat.shape[1:]).index_copy(0, places, flat)
        places = torch.arange(longest, device=self.lengths.device)
        mask = (places[None] < self.lengths[:, None]).long()
        return hidden.view(num_rows, longest, *flat.shape[1:]), mask


def order_of(lengths: Sequence[int]) -> list[int]:
    """The rows' order in a layout: longest first, equal ones as they came."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def lay_out(
    lengths: Sequence[int], device: torch.device | str = "cpu", *, is_exact: bool = False
) -> Layout:
    """The layout of rows of these lengths (longest first) that lie on `device`; no row is padded
    where it `is_exact`. Made on the CPU: nothing waits for the device. Cost: O(tokens).
    """
    max_pads = 0 if is_exact else MAX_PADS
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    row_of = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    positions = torch.arange(sum(lengths)) - starts[row_of]
    blocks: list[Block] = []
    first = pads = 0
    for number in range(1, len(lengths) + 1):
        is_end = number == len(lengths)
        pads += 0 if is_end else lengths[first] - lengths[number]
        if is_end or pads > max_pads:
            blocks.append(_block(lengths[first:number], device))
            first, pads = number, 0
    sizes, starts, row_of = sizes.to(device), starts.to(device), row_of.to(device)
    return Layout(sizes, starts, row_of, positions[None].to(device), tuple(blocks))


def _block(rows: Sequence[int], device: torch.device | str) -> Block:
    length, num_tokens, lengths = rows[0], sum(rows), torch.tensor(rows)
    gather = keep = None
    if num_tokens < len(rows) * length:
        places = torch.arange(length)
        is_token = places[None] < lengths[:, None]
        starts = (lengths.cumsum(0) - lengths)[:, None]
        gather = torch.where(is_token, starts + places, starts).flatten()
        keep = is_token.flatten().nonzero().flatten()
        gather, keep = gather.to(device), keep.to(device)
    return Block(len(rows), length, num_tokens, lengths.to(device), gather, keep)


def _mask(block: Block, is_causal: bool, window: int | None) -> Tensor | None:
    places = torch.arange(block.length, device=block.lengths.device)
    seen = None
    if block.gather is not None:
        seen = (places[None] < block.lengths[:, None])[:, None, None]
    apart = places[:, None] - places[None]
    allowed = None
    if is_causal:
        allowed = apart >= 0
    if window is not None and window < block.length:
        near = apart.abs() < window
        allowed = near if allowed is None else allowed & near
    if allowed is None:
        return seen
    allowed = allowed[None, None]
    return allowed if seen is None else allowed & seen


_current: Layout | None = None
_on_one_thread = False


def pack_as(layout: Layout) -> None:
    """From now on the packed attentions work on one row that is laid out like this.

    Until the next call: gradient checkpointing calls layers again in the backward pass.
    """
    global _current
    _current = layout


@contextmanager
def packed_on_one_thread() -> Iterator[None]:
    """Inside, the packed attentions run on one thread: torch's flash kernel gives each thread a
    buffer whose alignment decides about the last bit, so that what it says of a row would depend
    on the rows beside it.
    """
    global _on_one_thread
    before, _on_one_thread = _on_one_thread, True
    try:
        yield
    finally:
        _on_one_thread = before


@contextmanager
def on_one_thread() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def register(name: str) -> str:
    """Make a packed form of the attention `name` known to transformers; returns its name."""
    packed = f"{PACKED}{name}"
    own = {"sdpa": _dense, "eager": _eager}
    inner = own[name] if name in own else AttentionInterface()[name]
    AttentionInterface.register(packed, _packing(inner))
    AttentionMaskInterface.register(packed, _no_mask)
    return packed


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """A packed row has no padding; who sees whom is the layout's to say."""
    return


def _packing(inner: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        del attention_mask
        layout = _current
        assert layout is not None, "the packed attention is called behind `pack_as`"
        is_causal = bool(kwargs.pop("is_causal", None) or getattr(module, "is_causal", False))
        window = kwargs.get("sliding_window") or None
        sizes = [block.num_tokens for block in layout.blocks]
        outputs = []
        threads = on_one_thread() if _on_one_thread else nullcontext()
        with _in_fp32_on_cpu(query.device.type) as cast, threads:
            # Squeeze and split: the gradient of an index is a copy of the whole.
            tokens = [
                torch.split(cast(x.squeeze(0).transpose(0, 1)), sizes) for x in (query, key, value)
            ]
            for number, block in enumerate(layout.blocks):
                mask = layout.mask(number, is_causal=is_causal, window=window)
                parts = [_rows(x[number], block) for x in tokens]
                out, _ = inner(module, *parts, mask, is_causal=False, **kwargs)
                flat = out.flatten(0, 1)
                if block.keep is not None:
                    flat = _Kept.apply(flat, block.keep)  # type: ignore[no-untyped-call]
                outputs.append(flat)
        whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return whole[None], None

    return attend


def _dense(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """As transformers calls torch; short rows that learn on a CPU by plain products."""
    rows, heads, length, size = query.shape
    asks_more = any(kwargs.get(n) is not None for n in ("softcap", "position_bias", "cache"))
    learns = torch.is_grad_enabled() and query.requires_grad and query.device.type == "cpu"
    is_plain = query.shape == key.shape == value.shape  # no groups, and values as wide as keys
    is_plain = is_plain and not kwargs.get("dropout") and not asks_more
    if length > SHORT or not learns or not is_plain:
        whole: tuple[Tensor, Any] = sdpa_attention_forward(
            module, query, key, value, mask, **kwargs
        )
        return whole
    scale = size**-0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    query, key, value = (x.reshape(-1, length, size) for x in (query * scale, key, value))
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        bias = _bias(mask, scores.dtype)
        scores = (scores.view(rows, heads, length, length) + bias).view(-1, length, length)
    out = torch.bmm(torch.softmax(scores, -1), value)
    return out.view(rows, heads, length, size).transpose(1, 2).contiguous(), None


def _eager(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """The architecture's own: a function of the module's file, which adds its mask."""
    own = sys.modules[type(module).__module__].eager_attention_forward
    bias = None if mask is None else _bias(mask, query.dtype)
    kwargs.pop("is_causal", None)
    found: tuple[Tensor, Any] = own(module, query, key, value, bias, **kwargs)
    return found


def _bias(mask: Tensor, kind: torch.dtype) -> Tensor:
    """Not infinity: a pad behind a window sees nothing, and NaN times no gradient is NaN."""
    least = torch.finfo(kind).min
    return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill_(~mask, least)


@contextmanager
def _in_fp32_on_cpu(device: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """Attention in fp32 where a CPU trains in a half format: its flash kernel goes backward ten
    times slower there, which is more than all linear layers gain.
    """
    if device != "cpu" or not torch.is_autocast_enabled("cpu"):
        yield lambda x: x
        return
    with torch.autocast("cpu", enabled=False):
        yield Tensor.float


def _rows(own: Tensor, block: Block) -> Tensor:
    """(rows, heads, length, size) of the block's own tokens (tokens, heads, size)."""
    if block.gather is not None:
        own = _Padded.apply(own, block.gather, block.keep)  # type: ignore[no-untyped-call]
    return own.reshape(block.num_rows, block.length, *own.shape[1:]).transpose(1, 2)


class _Padded(torch.autograd.Function):
    """Tokens at their places of a block. What stands at a pad is nobody's: it has no gradient."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, gather: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        return tokens.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return gradients[0].index_select(0, keep), None, None


class _Kept(torch.autograd.Function):
    """The places of a block that hold tokens: the inverse of `_Padded`."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.shape = places.shape
        return places.index_select(0, keep)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        whole = gradients[0].new_zeros(ctx.shape)
        return whole.index_copy_(0, keep, gradients[0]), None
