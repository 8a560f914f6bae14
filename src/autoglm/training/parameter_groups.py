"""Which parameter gets which rate and decay."""

from __future__ import annotations

import re
from typing import Any

from autoglm.modeling.auto_model import layers_of
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification


def parameter_groups(
    model: AutoGLMForSequenceClassification, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: `params`, `names`, `weight_decay`, `lr_scale`.

    Vectors (biases, norms) do not decay. With `layer_decay` below 1 a layer's rate is that factor
    of the rate of the layer above; the embeddings come below the first.
    Source: Howard and Ruder, "Universal Language Model Fine-tuning", 2018, arXiv:1801.06146.
    """
    depth = len(layers_of(model.backbone)) if layer_decay < 1 else 0
    found: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim > 1 else 0.0
        scale = layer_decay ** _below(name, depth) if layer_decay < 1 else 1.0
        group = found.setdefault(
            (scale, decay), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [found[key] for key in sorted(found, reverse=True)]


def _below(name: str, depth: int) -> int:
    """How many layers below the head a parameter stands: 0 for the head."""
    if not name.startswith("backbone."):
        return 0
    layer = re.search(r"\.(\d+)\.", name)
    if layer is None:
        return depth + 1 if "embed" in name else 1
    return depth - int(layer.group(1))
