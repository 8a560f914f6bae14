"""Muon for the matrices between the ends, AdamW for embeddings, head and vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from autoglm.training.vocabulary import decays_idle_rows

# Matrices that are tables or ends of the network, by their names.
NOT_HIDDEN = ("embed", "classifier", "lm_head", "pooling", "pooler")


class MuonWithAdamW(torch.optim.Optimizer):
    """Both at one rate: Muon's updates are scaled to the size of AdamW's.

    Source: Jordan et al., "Muon", 2024; Liu et al., "Muon is Scalable for LLM Training", 2025,
    arXiv:2502.16982.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], *, lr: float) -> None:
        self._muon: torch.optim.Optimizer | None = None
        self._adamw: torch.optim.Optimizer | None = None
        split = [_part(group, is_hidden) for group in groups for is_hidden in (True, False)]
        parts = [group for group in split if group["params"]]
        super().__init__(parts, {"lr": lr})
        hidden = [group for group in self.param_groups if group["is_hidden"]]
        others = [group for group in self.param_groups if not group["is_hidden"]]
        if hidden:
            self._muon = torch.optim.Muon(hidden, lr=lr, adjust_lr_fn="match_rms_adamw")
        if others:
            self._adamw = torch.optim.AdamW(others, lr=lr, fused=True)
        self.param_groups = [g for inner in self._inner() for g in inner.param_groups]
        self._share()

    def step(self, closure: Any = None) -> Any:
        loss = closure() if closure is not None else None
        for inner in self._inner():
            inner.step()
        return loss

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _inner(self) -> list[torch.optim.Optimizer]:
        return [inner for inner in (self._muon, self._adamw) if inner is not None]

    def _share(self) -> None:
        """The two work on this optimizer's own groups and state, so that a checkpoint has all."""
        for inner in self._inner():
            inner.state = self.state
        if self._muon is not None:
            self._muon.param_groups = [g for g in self.param_groups if g["is_hidden"]]
        if self._adamw is not None:
            self._adamw.param_groups = [g for g in self.param_groups if not g["is_hidden"]]


def _part(group: Mapping[str, Any], is_hidden: bool) -> dict[str, Any]:
    chosen = [
        (name, parameter)
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if (parameter.ndim == 2 and not any(word in name for word in NOT_HIDDEN)) == is_hidden
    ]
    return {
        **group,
        "names": [name for name, _ in chosen],
        "params": [parameter for _, parameter in chosen],
        "is_hidden": is_hidden,
    }


@decays_idle_rows
def muon(groups: Sequence[Mapping[str, Any]], *, lr: float) -> torch.optim.Optimizer:
    return MuonWithAdamW(groups, lr=lr)
