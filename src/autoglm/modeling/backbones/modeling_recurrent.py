"""Recurrent layers over an embedding table. Self-contained: an exported folder carries it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput


class AutoGLMRecurrentConfig(PretrainedConfig):  # type: ignore[misc]
    """`cell` is `rnn`, `gru` or `lstm`; `direction_size` the width of one direction's state, and
    `hidden_size` that of what comes out: both directions side by side.
    """

    model_type = "autoglm_recurrent"

    def __init__(
        self,
        vocab_size: int = 8000,
        cell: str = "lstm",
        embedding_size: int = 128,
        direction_size: int = 128,
        num_hidden_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.1,
        pad_token_id: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.cell = cell
        self.embedding_size = embedding_size
        self.direction_size = direction_size
        self.num_hidden_layers = num_hidden_layers
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.seed = seed
        self.hidden_size = direction_size * (1 + bidirectional)
        kwargs.pop("hidden_size", None)
        super().__init__(pad_token_id=pad_token_id, **kwargs)


class RecurrentLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """(batch, length, inputs) → (batch, length, hidden).

    Backwards is forwards over rows that were turned around, each at its own end: no state has seen
    a pad, and the graph that is exported has no loop of ours.
    """

    def __init__(self, config: AutoGLMRecurrentConfig, num_inputs: int) -> None:
        super().__init__()
        cell = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
        self.forwards = cell(num_inputs, config.direction_size, batch_first=True)
        if config.bidirectional:
            self.backwards = cell(num_inputs, config.direction_size, batch_first=True)

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        out: Tensor = self.forwards(x)[0]
        if not hasattr(self, "backwards"):
            return out
        back = _taken(self.backwards(_taken(x, turned))[0], turned)
        return torch.cat([out, back], dim=-1)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """Of (batch, length, width) the places (batch, length) of each row."""
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class AutoGLMRecurrentModel(PreTrainedModel):  # type: ignore[misc]
    """Hidden states (batch, length, hidden) of token ids; pads stand at the right."""

    config_class = AutoGLMRecurrentConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # it has no attention: any of transformers' own is the same

    def __init__(self, config: AutoGLMRecurrentConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(
            config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id
        )
        sizes = [config.embedding_size, *[config.hidden_size] * (config.num_hidden_layers - 1)]
        self.layers = nn.ModuleList(RecurrentLayer(config, size) for size in sizes)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own beginnings stay: they are made for these cells."""

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_unused: Any,
    ) -> BaseModelOutput:
        if position_ids is not None:
            raise ValueError("a recurrent net reads each row by itself, there is nothing to pack")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        back = attention_mask.sum(1, keepdim=True) - 1 - places
        turned = torch.where(back >= 0, back, places)
        hidden = self.embeddings(input_ids)
        for layer in self.layers:
            hidden = layer(self.dropout(hidden), turned)
        return BaseModelOutput(last_hidden_state=hidden)
