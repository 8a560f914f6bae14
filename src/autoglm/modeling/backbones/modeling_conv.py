"""Convolutional layers over pixels. Self-contained: an exported folder carries it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput


class AutoGLMConvConfig(PretrainedConfig):  # type: ignore[misc]
    """Square images of `image_size`, of which `num_channels` colours are read. `hidden_size` is
    the number of channels that each layer makes.
    """

    model_type = "autoglm_conv"

    def __init__(
        self,
        image_size: int = 28,
        num_channels: int = 1,
        num_hidden_layers: int = 4,
        kernel_size: int = 5,
        hidden_size: int = 32,
        dropout: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.num_channels = num_channels
        self.num_hidden_layers = num_hidden_layers
        self.kernel_size = kernel_size
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.seed = seed
        super().__init__(**kwargs)


class ConvLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """(batch, channels, height, width) → the same with `hidden_size` channels, half as high and
    wide when told. The norm is over groups, not over the batch: a row's answer is its own.
    """

    def __init__(self, config: AutoGLMConvConfig, num_inputs: int, *, is_halving: bool) -> None:
        super().__init__()
        size, width = config.kernel_size, config.hidden_size
        self.conv = nn.Conv2d(num_inputs, width, size, padding=size // 2, bias=False)
        self.norm = nn.GroupNorm(_num_groups(width), width)
        self.is_residual = num_inputs == width and not is_halving
        self.pool: nn.Module = nn.MaxPool2d(2) if is_halving else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # The pool before the norm: a quarter of the values are left to be normed.
        made: Tensor = nn.functional.gelu(self.norm(self.pool(self.conv(x))))
        return x + made if self.is_residual else made


def _num_groups(width: int) -> int:
    """Eight groups, or as many as divide the width."""
    return next(n for n in (8, 4, 2, 1) if width % n == 0)


class AutoGLMConvModel(PreTrainedModel):  # type: ignore[misc]
    """Hidden states (batch, places, hidden) of pixels (batch, channels, height, width).

    The first layers halve the image as long as 4 or more places a side are left.
    """

    config_class = AutoGLMConvConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # it has no attention: any of transformers' own is the same

    def __init__(self, config: AutoGLMConvConfig) -> None:
        super().__init__(config)
        layers, side = [], config.image_size
        for number in range(config.num_hidden_layers):
            is_halving = side // 2 >= 4
            width = config.hidden_size if number else config.num_channels
            layers.append(ConvLayer(config, width, is_halving=is_halving))
            side //= 2 if is_halving else 1
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own beginnings stay: they are made for these layers."""

    def forward(self, pixel_values: Tensor, **_unused: Any) -> BaseModelOutput:
        x = pixel_values
        for layer in self.layers:
            x = layer(x)
        return BaseModelOutput(last_hidden_state=self.dropout(x.flatten(2).transpose(1, 2)))
