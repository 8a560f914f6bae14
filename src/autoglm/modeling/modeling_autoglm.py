"""A backbone, a pooling and a head. Self-contained: this very file is trained and shipped.

An exported folder carries it beside the weights (`auto_map`), under a model type of its own, so
that opening the folder without it fails loudly instead of answering wrongly. It imports torch and
transformers only; parts that a project wrote itself lie beside it in `autoglm_parts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutput

# `kind:name` → function, of what is neither ours nor transformers'. An export replaces this line.
PARTS: dict[str, Any] = {}
BUILT_IN_HEADS = ("linear", "mlp")
# Linear layers of BERT-like and ModernBERT's attention whose outputs are heads, that many times one
# behind the other; 0: whose inputs are.
OWN_HEADS = {
    "attention.self.query": 1, "attention.self.key": 1, "attention.self.value": 1,
    "attention.output.dense": 0, "attn.Wqkv": 3, "attn.Wo": 0,
}  # fmt: skip


class AutoGLMConfig(PretrainedConfig):  # type: ignore[misc]
    """`backbone_config` is the backbone's own. `pooling` is `mean`, `cls`, `last`, `max`,
    `attention`, or `none` (one answer per token). `attention` and `head` name what it was trained
    with; `attention_options` go with the name. `problem_type` as in transformers. Outputs are what
    the head says times `output_scale`, plus `output_shift`: the unit of numbers to be answered.
    """

    model_type = "autoglm_text_classifier"

    def __init__(
        self,
        backbone_config: dict[str, Any] | None = None,
        pooling: str = "mean",
        attention: str = "sdpa",
        attention_options: dict[str, Any] | None = None,
        head: str = "linear",
        head_dropout: float = 0.0,
        output_scale: float = 1.0,
        output_shift: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.backbone_config = backbone_config or {}
        self.pooling = pooling
        self.attention = attention
        self.attention_options = attention_options or {}
        self.head = head
        self.head_dropout = head_dropout
        self.output_scale = output_scale
        self.output_shift = output_shift
        super().__init__(**kwargs)


class Pooling(nn.Module):
    """(batch, length, hidden) and its mask (1 where a token stands) → (batch, hidden)."""

    def __init__(self, name: str, hidden_size: int) -> None:
        super().__init__()
        self.name = name
        if name == "attention":
            self.query = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.name == "cls":
            return hidden[:, 0]
        if self.name == "last":
            rows = torch.arange(hidden.shape[0], device=hidden.device)
            return hidden[rows, mask.sum(1) - 1]
        is_token = mask.unsqueeze(-1).to(torch.bool)
        if self.name == "max":
            return hidden.masked_fill(~is_token, torch.finfo(hidden.dtype).min).amax(1)
        if self.name == "attention":
            scores = (hidden @ self.query).unsqueeze(-1)
            shares = scores.masked_fill(~is_token, torch.finfo(scores.dtype).min).softmax(1)
            return (hidden * shares).sum(1)
        weights = is_token.to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def make_head(name: str, hidden_size: int, num_outputs: int) -> nn.Module:
    """`linear`, `mlp` (one hidden layer of the backbone's width), or one of `PARTS`."""
    if name == "linear":
        return nn.Linear(hidden_size, num_outputs)
    if name == "mlp":
        return nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, num_outputs)
        )
    if f"head:{name}" not in PARTS:
        raise ValueError(f"made with the head {name!r}, which nobody brought along")
    head: nn.Module = PARTS[f"head:{name}"](hidden_size, num_outputs)
    return head


def make_backbone(model_type: str, settings: Mapping[str, Any], attention: str) -> nn.Module:
    """Of random weights, by transformers' own class, or one of `PARTS`."""
    part = PARTS.get(f"backbone:{model_type}")
    if part is not None:
        own: nn.Module = part(part.config_class(**settings))
        return own
    config = AutoConfig.for_model(model_type, **settings)
    made: nn.Module = AutoModel.from_config(config, attn_implementation=attention)
    set_heads(made)
    return made


def set_heads(backbone: Any) -> None:
    """As many heads in each layer as `config.own_num_heads` says, with new weights.

    For BERT-like backbones, whose classes take hidden / heads for the head size: there
    `num_attention_heads` stays what gives that size, and their own class cannot open such weights.
    """
    config = backbone.config
    count = getattr(config, "own_num_heads", 0)
    if not count:
        return
    width = count * (config.hidden_size // config.num_attention_heads)
    for name, module in list(backbone.named_modules()):
        inner = next((key for key in OWN_HEADS if name.endswith(f".{key}")), "")
        if not inner:
            continue
        blocks = OWN_HEADS[inner]
        sizes = (config.hidden_size, width * blocks) if blocks else (width, config.hidden_size)
        made = nn.Linear(*sizes, bias=module.bias is not None).to(module.weight)
        parent, _, own = name.rpartition(".")
        setattr(backbone.get_submodule(parent), own, made)


def use_attention(name: str, options: Mapping[str, Any]) -> str:
    """The name under which transformers knows an attention of `PARTS`; others by their own."""
    part = PARTS.get(f"attention:{name}")
    if part is None:
        if name not in AttentionInterface().valid_keys():
            raise ValueError(f"trained with attention {name!r}, which nobody brought along")
        return name

    def attend(*args: Any, **kwargs: Any) -> Any:
        return part(*args, **options, **kwargs)

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, getattr(part, "mask_function", sdpa_mask))
    return name


class AutoGLMForSequenceClassification(PreTrainedModel):  # type: ignore[misc]
    """Logits (batch, labels) of token ids and their mask (batch, length), or of pixels (batch,
    channels, height, width); with pooling `none` (batch, length, labels).
    """

    config_class = AutoGLMConfig
    base_model_prefix = "backbone"
    _supports_sdpa = True
    backbone: Any
    # Outputs whose rows of the head were trained before; the others start anew.
    known_outputs: list[int] = []  # noqa: RUF012  # replaced, never changed

    def __init__(
        self,
        config: AutoGLMConfig,
        backbone: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__(config)
        has_own_start = head is not None and config.head not in BUILT_IN_HEADS
        brought = [part for part in (backbone, head if has_own_start else None) if part is not None]
        if backbone is None:
            inner = dict(config.backbone_config)
            attention = use_attention(config.attention, config.attention_options)
            backbone = make_backbone(inner.pop("model_type"), inner, attention)
        self.backbone = backbone
        hidden_size = self.backbone.config.hidden_size
        self.dropout: nn.Module = nn.Dropout(config.head_dropout)
        if config.pooling != "none":
            self.pooling = Pooling(config.pooling, hidden_size)
        self.classifier = head or make_head(config.head, hidden_size, config.num_labels)
        for module in (module for part in brought for module in part.modules()):
            # Else `post_init` draws weights anew, as it should those of a new `linear` or `mlp`.
            module._is_hf_initialized = True  # type: ignore[assignment]
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **_unused: Any,
    ) -> SequenceClassifierOutput:
        if pixel_values is not None:
            hidden = self.backbone(pixel_values=pixel_values)[0]
            attention_mask = torch.ones_like(hidden[..., 0], dtype=torch.long)
        else:
            assert input_ids is not None, "token ids or pixels are given"
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask)[0]
        logits = self.classify(self.pooled(hidden, attention_mask))
        loss = None if labels is None else self._loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.config.pooling == "none":
            return hidden
        pooled: Tensor = self.pooling(hidden, mask)
        return pooled

    def classify(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.dropout(pooled))
        if self.config.output_scale == 1.0 and self.config.output_shift == 0.0:
            return logits
        numbers: Tensor = logits * self.config.output_scale + self.config.output_shift
        return numbers

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        if self.config.problem_type == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


class AutoGLMForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """transformers' own decoder and lm_head, with an attention of `PARTS` inside."""

    config_class = AutoGLMConfig
    base_model_prefix = "whole"
    _supports_sdpa = True
    whole: Any

    def __init__(self, config: AutoGLMConfig) -> None:
        super().__init__(config)
        inner = dict(config.backbone_config)
        attention = use_attention(config.attention, config.attention_options)
        made = AutoConfig.for_model(inner.pop("model_type"), **inner)
        self.whole = AutoModelForCausalLM.from_config(made, attn_implementation=attention)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.whole(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        self.whole.generation_config = self.generation_config
        return self.whole.generate(*args, **kwargs)

    def get_input_embeddings(self) -> Any:
        return self.whole.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.whole.get_output_embeddings()
