"""A backbone, a pooling and a linear head. Self-contained: this very file is trained and shipped.

An exported folder carries it beside the weights (`auto_map`), under a model type of its own, so
that opening the folder without it fails loudly instead of answering wrongly. It imports torch and
transformers only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput


class AutoGLMConfig(PretrainedConfig):  # type: ignore[misc]
    """`backbone_config` is the backbone's own; `pooling` is `mean` or `cls`; `attention` names
    what it was trained with.
    """

    model_type = "autoglm_text_classifier"

    def __init__(
        self,
        backbone_config: dict[str, Any] | None = None,
        pooling: str = "mean",
        attention: str = "sdpa",
        head_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.backbone_config = backbone_config or {}
        self.pooling = pooling
        self.attention = attention
        self.head_dropout = head_dropout
        super().__init__(**kwargs)


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(batch, length, hidden) → (batch, hidden). `mask` is 1 where a token stands."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class AutoGLMForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """Logits (batch, labels) of token ids and their mask (batch, length)."""

    config_class = AutoGLMConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    backbone: Any

    def __init__(self, config: AutoGLMConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            inner = dict(config.backbone_config)
            if config.attention not in AttentionInterface().valid_keys():
                raise ValueError(
                    f"trained with attention {config.attention!r}, which nobody registered here"
                )
            plain = AutoConfig.for_model(inner.pop("model_type"), **inner)
            backbone = AutoModel.from_config(plain, attn_implementation=config.attention)
        self.backbone = backbone
        hidden_size = self.backbone.config.hidden_size
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_unused: Any,
    ) -> SequenceClassifierOutput:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask)[0]
        logits = self.classify(pool(hidden, attention_mask, self.config.pooling))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def classify(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits
