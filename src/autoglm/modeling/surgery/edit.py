"""One backbone in, one edited backbone out, that transformers' own class opens where it can.

edit(backbone, structure, ...)      → a new backbone; the old one is left as it is
needs_code(structure, backbone)     → why transformers' own class cannot open it, or ""
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.initialization import no_init_weights

from autoglm.modeling.modeling_autoglm import set_heads
from autoglm.modeling.surgery import layers, positions
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.modeling.surgery.families import Family, family_of, refused
from autoglm.modeling.surgery.importance import measure
from autoglm.modeling.surgery.plan import Plan, check_length, needs_code, plan
from autoglm.modeling.surgery.width import Widths, widths

__all__ = ["edit", "needs_code"]


@torch.no_grad()
def edit(
    backbone: Any,
    structure: StructureConfig,
    *,
    sample: Sequence[Sequence[int]] = (),
    max_length: int = 0,
) -> Any:
    """A backbone of the declared structure, in eval mode; the same one when nothing is declared.

    `sample` are rows of token ids: pruning reads them once, as far as there are positions.
    `max_length` is the longest text that will come. A grown hidden width gives out the former
    states repeated side by side. LoRA is not applied here (`lora.py`): it has weights of its own.
    Raises: ModelError model.structure, model.too_long.
    """
    if not _is_editing(structure):
        if max_length and hasattr(backbone.config, "max_position_embeddings"):
            check_length(max_length, positions.limit_of(backbone))
        return backbone.eval()
    family, agreed = family_of(backbone), plan(backbone, structure)
    limit = positions.new_limit(backbone, structure.max_positions)
    check_length(max_length, limit)
    config = _config(backbone, agreed, structure, limit)
    backbone.eval()
    most = positions.limit_of(backbone) or None
    read = [row[:most] for row in sample]
    scores = measure(backbone, family, agreed.old, read) if agreed.is_pruning else None
    weights = _resized(backbone.state_dict(), family, widths(agreed, scores))
    table = "embeddings.position_embeddings.weight"
    if table in weights:
        first = positions.first_row(backbone)
        weights[table] = positions.longer_table(weights[table], limit, first)
    eps = float(getattr(backbone.config, "layer_norm_eps", 0.0))
    weights = layers.regroup(weights, family, agreed.layers, norm_eps=eps)
    return _open(backbone, config, weights)


def _is_editing(structure: StructureConfig) -> bool:
    s = structure
    return bool(
        s.num_layers
        or s.layers
        or s.feed_forward
        or s.num_heads
        or s.hidden_size
        or s.max_positions
    )


def _resized(weights: dict[str, Tensor], family: Family, changes: Widths) -> dict[str, Tensor]:
    made, path = {}, f"{family.layers_path}."
    for name, weight in weights.items():
        layer = int(name.removeprefix(path).split(".")[0]) if name.startswith(path) else -1
        made[name] = changes.resize(weight.detach().cpu(), family.axes_of(name), layer)
    return made


def _config(backbone: Any, agreed: Plan, structure: StructureConfig, limit: int) -> Any:
    """The architecture's config of the result. Raises: ModelError with what it refuses."""
    old = backbone.config
    tied = agreed.hidden // agreed.old.head_size
    said: dict[str, Any] = {
        "num_hidden_layers": len(agreed.layers),
        "intermediate_size": agreed.feed_forward,
        "num_attention_heads": tied if agreed.own_heads else agreed.heads,
        "hidden_size": agreed.hidden,
        "max_position_embeddings": limit + positions.first_row(backbone),
    }
    if agreed.own_heads or hasattr(old, "own_num_heads"):
        said["own_num_heads"] = agreed.own_heads
    if getattr(old, "num_key_value_heads", None):
        said["num_key_value_heads"] = agreed.heads // agreed.old.group
    if getattr(old, "layer_types", None):
        said["layer_types"] = [old.layer_types[source] for source in agreed.layers]
    if limit > positions.limit_of(backbone):
        rope = positions.longer_rope(old, limit, structure.rope_scaling)
        said |= {"rope_parameters": rope} if rope else {}
    try:
        return type(old).from_dict({**old.to_dict(), **said})
    except Exception as error:  # its validators raise several kinds, none of them a common one
        why = " ".join(str(error).split()).rstrip(".")
        raise refused(f"{old.model_type!r} does not allow these sizes: {why}") from error


def _open(backbone: Any, config: Any, weights: dict[str, Tensor]) -> Any:
    attention = backbone.config._attn_implementation
    with no_init_weights():  # every weight is loaded below
        made = AutoModel.from_config(config, attn_implementation=attention, dtype=backbone.dtype)
        set_heads(made)
    if hasattr(made, "pooler") and backbone.pooler is None:
        made.pooler = None
    layers.fill_missing_norms(weights, made.state_dict())
    made.load_state_dict(weights, strict=True)
    return made.to(backbone.device).eval()
