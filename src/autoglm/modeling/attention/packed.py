"""Rows of a batch as one long row: no layer works on padding, and every attention stays plain.

The linear layers see (1, tokens, hidden). Inside the wrapped attention, queries, keys and values
are gathered into padded blocks of like length, the chosen attention is called with its ordinary
(batch, heads, length, size) contract and an ordinary mask, and its output is scattered back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

# Below this length the attention's own arithmetic costs less than another call of it.
SHORT = 32


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of like length, padded to `length`: `gather` (rows · length) names the token that stands
    at each place (a place behind a row's end repeats its first token), `keep` (tokens) the places
    that hold tokens. Both are None when no row needs a pad.
    """

    num_rows: int
    length: int
    start: int
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
        parts = torch.split(flat, self.lengths.tolist())
        hidden = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
        places = torch.arange(hidden.shape[1])
        return hidden, (places[None] < self.lengths[:, None]).long()


def order_of(lengths: Sequence[int]) -> list[int]:
    """The rows' order in a layout: longest first, equal ones as they came."""
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def lay_out(lengths: Sequence[int]) -> Layout:
    """The layout of rows of these lengths (longest first). Cost: O(tokens)."""
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    row_of = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    positions = torch.arange(sum(lengths)) - starts[row_of]
    blocks: list[Block] = []
    first = start = 0
    for number in range(1, len(lengths) + 1):
        longest = lengths[first]
        is_end = number == len(lengths)
        if is_end or (longest > SHORT and lengths[number] < max(longest // 2, SHORT // 2)):
            blocks.append(_block(lengths[first:number], start))
            first, start = number, start + blocks[-1].num_tokens
    return Layout(sizes, starts, row_of, positions[None], tuple(blocks))


def _block(rows: Sequence[int], start: int) -> Block:
    length, num_tokens, lengths = rows[0], sum(rows), torch.tensor(rows)
    gather = keep = None
    if num_tokens < len(rows) * length:
        places = torch.arange(length)
        is_token = places[None] < lengths[:, None]
        starts = (lengths.cumsum(0) - lengths)[:, None]
        gather = torch.where(is_token, starts + places, starts).flatten()
        keep = is_token.flatten().nonzero().flatten()
    return Block(len(rows), length, start, num_tokens, lengths, gather, keep)


def _mask(block: Block, is_causal: bool, window: int | None) -> Tensor | None:
    places = torch.arange(block.length)
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


_current: ContextVar[Layout | None] = ContextVar("layout", default=None)


@contextmanager
def packed_as(layout: Layout) -> Iterator[None]:
    """Inside, the packed attentions work on one row that is laid out like this."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


def register(name: str) -> str:
    """Make a packed form of the attention `name` known to transformers; returns its name."""
    packed = f"packed_{name}"
    inner = AttentionInterface()[name]
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
        layout = _current.get()
        assert layout is not None, "the packed attention is called inside `packed_as`"
        is_causal = bool(kwargs.pop("is_causal", None) or getattr(module, "is_causal", False))
        window = kwargs.get("sliding_window") or None
        tokens = [x[0].transpose(0, 1) for x in (query, key, value)]
        outputs = []
        for number, block in enumerate(layout.blocks):
            mask = layout.mask(number, is_causal=is_causal, window=window)
            parts = [_rows(x, block) for x in tokens]
            out, _ = inner(module, *parts, mask, is_causal=False, **kwargs)
            flat = out.flatten(0, 1)
            outputs.append(flat if block.keep is None else flat.index_select(0, block.keep))
        whole = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return whole[None], None

    return attend


def _rows(tokens: Tensor, block: Block) -> Tensor:
    """(rows, heads, length, size) of the block's tokens (tokens, heads, size)."""
    own = tokens.narrow(0, block.start, block.num_tokens)
    if block.gather is not None:
        own = own.index_select(0, block.gather)
    return own.reshape(block.num_rows, block.length, *own.shape[1:]).transpose(1, 2)
