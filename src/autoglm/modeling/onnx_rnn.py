"""torch's plain recurrent layer as an ONNX node. The exporter knows GRU and LSTM, but would write
this one out step by step, for the example's length and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

OPSET = 18


class _Node(nn.Module):
    """One layer in one direction, rows first: what `RecurrentLayer` calls."""

    def __init__(self, rnn: nn.RNN) -> None:
        super().__init__()
        assert (rnn.num_layers, rnn.bidirectional, rnn.batch_first) == (1, False, True)
        self._rnn = rnn

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """(batch, length, inputs) → (batch, length, hidden)."""
        to_hidden, to_itself, bias, own_bias = self._rnn.all_weights[0]
        states = torch.onnx.ops.symbolic(
            "RNN",
            (
                x.transpose(0, 1),
                to_hidden[None],
                to_itself[None],
                torch.cat([bias, own_bias])[None],
            ),
            attrs={"hidden_size": self._rnn.hidden_size},
            dtype=x.dtype,
            shape=(x.shape[1], 1, x.shape[0], self._rnn.hidden_size),
            version=OPSET,
        )
        return states[:, 0].transpose(0, 1), None


@contextmanager
def rnn_as_a_node(model: nn.Module) -> Iterator[None]:
    """Inside, every `nn.RNN` of the model is what it will be in the graph; it cannot be run."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.RNN)
    ]
    try:
        for parent, name, child in found:
            setattr(parent, name, _Node(child))
        yield
    finally:
        for parent, name, child in found:
            setattr(parent, name, child)
