"""Longer texts: a learned table gets rows, rotary positions are stretched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoglm.modeling.surgery.families import refused


def limit_of(backbone: Any) -> int:
    """Tokens that a text may have."""
    return int(backbone.config.max_position_embeddings) - first_row(backbone)


def first_row(backbone: Any) -> int:
    """The row of the first token: RoBERTa's tables begin behind the pad's row."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if table is None or table.padding_idx is None:
        return 0
    return int(table.padding_idx) + 1


def new_limit(backbone: Any, wanted: int) -> int:
    """Raises: ModelError model.structure for fewer positions than there are."""
    limit = limit_of(backbone)
    if wanted and wanted < limit:
        raise refused(
            f"max_positions {wanted}: the backbone has {limit}, and fewer would save nothing",
            next_step=f"Set data.max_length to {wanted} instead.",
        )
    return wanted or limit


def longer_table(table: Tensor, wanted: int, first: int) -> Tensor:
    """(positions, hidden) with rows for `wanted` tokens.

    The old rows stay, so that short texts are read as before. A new row is where its position falls
    when the old table is stretched over the new length, between two rows.
    """
    old = table[first:]
    if wanted == len(old):
        return table
    stretched = torch.nn.functional.interpolate(
        old.T[None].float(), size=wanted, mode="linear", align_corners=True
    )[0].T.to(table.dtype)
    return torch.cat([table, stretched[len(old) :]])


def longer_rope(config: Any, wanted: int, how: str) -> dict[str, Any]:
    """`rope_parameters` for `wanted` tokens; empty for a backbone without.

    `yarn` (Peng et al., 2023, arXiv:2309.00071) and `linear` change short texts a little as well.
    `longrope` does not, but a batch with one long text has all its texts read in the long way.
    Raises: ModelError model.structure when the positions are scaled already.
    """
    old = getattr(config, "rope_parameters", None)
    if not old:
        return {}
    # ModernBERT has parameters per kind of layer. Its local layers see no further than before.
    nested = "full_attention" in old
    plain = dict(old["full_attention"] if nested else old)
    if plain.get("rope_type", "default") != "default":
        raise refused(
            f"max_positions {wanted}: this backbone's positions are scaled already "
            f"({plain['rope_type']})"
        )
    factor = wanted / config.max_position_embeddings
    plain |= {"rope_type": how, "factor": factor}
    if how != "linear":
        plain["original_max_position_embeddings"] = config.max_position_embeddings
    if how == "longrope":
        half = _rotary_size(config, plain) // 2
        plain |= {"attention_factor": 1.0}
        plain |= {"short_factor": [1.0] * half, "long_factor": [factor] * half}
    return {**old, "full_attention": plain} if nested else plain


def _rotary_size(config: Any, rope: dict[str, Any]) -> int:
    own = getattr(config, "head_dim", None)
    size = own or config.hidden_size // config.num_attention_heads
    return int(size * rope.get("partial_rotary_factor", 1.0))
