"""Sizes of the product's own backbones; every one can be a dimension of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from autoglm.config.schema import live


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvConfig:
    """Read when `model.backbone` is `conv`."""

    num_layers: Annotated[int, Ge(1), live("Convolutional layers.")] = 4
    kernel_size: Annotated[int, Ge(1), live("Pixels that a layer looks at, on a side; odd.")] = 5
    channels: Annotated[int, Ge(1), live("Channels of every layer.")] = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentConfig:
    """Read when `model.backbone` is `recurrent`."""

    cell: Annotated[Literal["rnn", "gru", "lstm"], live("Kind of cell.")] = "lstm"
    embedding_size: Annotated[int, Ge(1), live("Width of a token's vector.")] = 128
    hidden_size: Annotated[int, Ge(1), live("Width of one direction's state.")] = 128
    num_layers: Annotated[int, Ge(1), live("Layers, one above the other.")] = 1
    bidirectional: Annotated[bool, live("Read each text from its end as well.")] = True
