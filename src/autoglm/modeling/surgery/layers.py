"""Layers kept, dropped and repeated, as a renaming of weights. A new layer starts as identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoglm.modeling.surgery.families import Family

Weights = dict[str, Tensor]


def regroup(
    weights: Mapping[str, Tensor], family: Family, layers: Sequence[int], *, norm_eps: float
) -> Weights:
    """`weights` with the layers `layers`; the second of two equal neighbours is a new one.

    A new layer is a copy of the one below that adds nothing to the residual stream.
    """
    path = f"{family.layers_path}."
    made = {name: value for name, value in weights.items() if not name.startswith(path)}
    for position, source in enumerate(layers):
        own = f"{path}{source}."
        copied = {n.removeprefix(own): v.clone() for n, v in weights.items() if n.startswith(own)}
        if position and layers[position - 1] == source:
            _silence(copied, family)
            if family.is_post_norm:
                below = {n: made[f"{path}{position - 1}.{n}"] for n in copied}
                _hand_over_norm(below, copied, norm_eps)
        made |= {f"{path}{position}.{name}": value for name, value in copied.items()}
    return made


def _silence(layer: Weights, family: Family) -> None:
    """Its two outputs become 0: what reads them learns first, then what makes them."""
    norms = ("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight")
    # Glm4 norms what it adds. Of a zero that norm's slope is 1/sqrt(eps): silence it instead.
    names = norms if norms[0] in layer else (family.attention_out, family.feed_forward_out)
    for name, value in layer.items():
        if name in norms or (names is not norms and name.rpartition(".")[0] in names):
            value.zero_()


def _hand_over_norm(below: Weights, new: Weights, eps: float) -> None:
    """Where norms come after the sum, a silent layer would norm once more.

    So the layer below gives plain normed values and its last scale and shift move up. A value of
    variance 1 is divided by sqrt(1 + eps): the scales take that back.
    """
    last, first = "output.LayerNorm", "attention.output.LayerNorm"
    undo = (1 + eps) ** 0.5
    new[f"{last}.weight"].copy_(below[f"{last}.weight"] * undo)
    new[f"{last}.bias"].copy_(below[f"{last}.bias"])
    new[f"{first}.weight"].fill_(undo)
    new[f"{first}.bias"].zero_()
    below[f"{last}.weight"].fill_(1.0)
    below[f"{last}.bias"].zero_()


def fill_missing_norms(weights: Weights, wanted: Mapping[str, Any]) -> None:
    """ModernBERT's layer 0 has no attention norm, so a copy of it above lacks one: a plain norm."""
    for name in set(wanted) - set(weights):
        fill = torch.zeros_like if name.endswith(".bias") else torch.ones_like
        if name.endswith(("attn_norm.weight", "attn_norm.bias")):
            weights[name] = fill(wanted[name])
