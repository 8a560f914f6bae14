"""Opens a backbone, or an exported model version, as a classifier to be trained.

load_classifier(folder, labels, pooling, attention)  → AutoGLMForSequenceClassification
freeze_below(model, trainable_layers)                → number of frozen layers
Halves(model, num_frozen)                            → the frozen lower and the learning upper half
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import logging as transformers_logging

from autoglm.errors import ModelError
from autoglm.modeling.modeling_autoglm import (
    AutoGLMConfig,
    AutoGLMForSequenceClassification,
    pool,
)
from autoglm.plugins import registry

BUILT_IN_ATTENTION = ("sdpa", "eager")
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()


def load_classifier(
    folder: Path, labels: Sequence[str], *, pooling: str, attention: str
) -> AutoGLMForSequenceClassification:
    """A backbone with a new head, in eval mode. `folder` is a backbone or an exported version.

    Attention dropout is 0: it would switch the fast attention kernel off.
    Raises: ModelError model.no_backbone when the weights cannot be opened.
    """
    try:
        use_attention(attention)
        backbone = _backbone(folder, attention)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: {error}.", code="model.no_backbone") from error
    if pooling == "auto":
        pooling = own_pooling(folder)
    config = AutoGLMConfig(
        attention=attention,
        backbone_config=_plain(backbone.config.to_diff_dict()),
        pooling=pooling,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = AutoGLMForSequenceClassification(config, backbone=backbone)
    model.eval()
    return model


def _backbone(folder: Path, attention: str) -> Any:
    quiet = {"attn_implementation": attention, "local_files_only": True, "dtype": torch.float32}
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if raw.get("model_type") == AutoGLMConfig.model_type:
        config = AutoGLMConfig.from_pretrained(folder)
        whole = AutoGLMForSequenceClassification.from_pretrained(folder, config=config, **quiet)
        return whole.backbone
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config, "attention_probs_dropout_prob"):
        config.attention_probs_dropout_prob = 0.0
    return AutoModel.from_pretrained(folder, config=config, **quiet)


def use_attention(name: str) -> None:
    """Make an attention known to transformers by its plugin's name. Raises: PluginError.

    A plugin without `mask_function` gets the mask of `sdpa` (True = may be seen).
    """
    if name in BUILT_IN_ATTENTION:
        return
    function = registry.get("attention", name)
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, getattr(function, "mask_function", sdpa_mask))


def own_pooling(folder: Path) -> str:
    """What the backbone was trained with: sentence-transformers say so; else mean."""
    for name in ("1_Pooling/config.json", "autoglm.json"):
        path = folder / name
        if path.is_file():
            facts = json.loads(path.read_text(encoding="utf-8"))
            is_cls = facts.get("pooling_mode_cls_token") or facts.get("pooling") == "cls"
            return "cls" if is_cls else "mean"
    return "mean"


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between machines and releases: the digest covers the rest."""
    return {k: v for k, v in config.items() if k not in {"transformers_version", "_name_or_path"}}


def layers_of(backbone: nn.Module) -> nn.ModuleList:
    """The encoder's layers: the longest ModuleList of like modules.

    Raises: ModelError model.no_layers.
    """
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    uniform = [m for m in lists if len({type(layer) for layer in m}) == 1]
    if not uniform:
        raise ModelError(
            f"{type(backbone).__name__} has no list of layers.", code="model.no_layers"
        )
    return max(uniform, key=len)


def freeze_below(model: AutoGLMForSequenceClassification, trainable_layers: int) -> int:
    """Let the head and the top layers learn; returns how many layers are frozen.

    As many layers as there are, or more: everything learns, embeddings too (returns 0).
    """
    layers = layers_of(model.backbone)
    num_frozen = max(0, len(layers) - trainable_layers)
    model.requires_grad_(num_frozen == 0)
    for layer in layers[num_frozen:]:
        layer.requires_grad_(True)
    model.classifier.requires_grad_(True)
    return num_frozen


class _Handed(nn.Module):
    """Stands where the embeddings stood and gives back what it was handed."""

    hidden: Tensor

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.hidden


class Halves:
    """A backbone cut in two that share its parameters: `lower` ends where `upper` begins.

    Only for backbones of the BERT shape (embeddings, then layers, nothing after them);
    `can_cut` tells.
    """

    def __init__(self, model: AutoGLMForSequenceClassification, num_frozen: int) -> None:
        self._model = model
        self._pooling: str = model.config.pooling
        self._lower = _with_layers(model.backbone, 0, num_frozen)
        self._upper = _with_layers(model.backbone, num_frozen, None)
        self._handed = _Handed()
        self._upper.embeddings = self._handed

    @staticmethod
    def can_cut(model: AutoGLMForSequenceClassification) -> bool:
        encoder = getattr(model.backbone, "encoder", None)
        return hasattr(model.backbone, "embeddings") and hasattr(encoder, "layer")

    @torch.no_grad()
    def lower(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(batch, length, hidden) entering the first learning layer."""
        hidden: Tensor = self._lower(input_ids=input_ids, attention_mask=mask)[0]
        return hidden

    def upper(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pooled (batch, hidden) of what `lower` gave."""
        self._handed.hidden = hidden
        final = self._upper(inputs_embeds=hidden, attention_mask=mask)[0]
        return pool(final, mask, self._pooling)


def _with_layers(backbone: Any, start: int, end: int | None) -> Any:
    """A second module over the same parameters with a slice of the layers, and no pooler."""
    half = _shallow(backbone)
    half.encoder = _shallow(backbone.encoder)
    half.encoder.layer = nn.ModuleList(list(backbone.encoder.layer)[start:end])
    if getattr(half, "pooler", None) is not None:
        half.pooler = None
    return half


def _shallow(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
