"""Names of a backbone's lower parts by all that decides what they say: what cached states go by."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from autoglm.contracts.record import digest
from autoglm.modeling.attention.packed import PACKED
from autoglm.modeling.body import can_cut

# What a config says of where it came from, not of what it does.
NOT_CONTENT = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")


def frozen_keys(backbone: Any) -> list[str]:
    """Keys of the states behind layer 0, 1, … of a backbone that can be cut; else one, of the
    states behind all. Equal keys mean equal states: tensors, config, attention with options and
    source, number format and library versions go in. Cost: one pass over the weights.
    """
    said = {k: v for k, v in backbone.config.to_dict().items() if k not in NOT_CONTENT}
    if can_cut(backbone):
        # The count of layers above does not change what is said below them.
        said.pop("num_hidden_layers", None)
    versions = [version(name) for name in ("torch", "transformers", "open-autoglm")]
    bottom = [said, _attention(backbone), str(backbone.dtype), *versions]
    if not can_cut(backbone):
        return [digest(*bottom, _content([backbone]))]
    layers = list(backbone.encoder.layer)
    others = [child for name, child in backbone.named_children() if name != "encoder"]
    keys = [digest(*bottom, _content(others))]
    for layer in layers:
        keys.append(digest(keys[-1], _content([layer])))
    return keys


def why_not_frozen(backbone: Any, num_frozen: int) -> str:
    """Why states below layer `num_frozen` cannot be kept; empty when they can."""
    if not can_cut(backbone):
        return "its layers cannot be cut apart"
    for module in _modules_below(backbone, num_frozen):
        if module._forward_hooks or module._forward_pre_hooks:
            return f"a hook on {type(module).__name__} may change what it says"
        if any(p.requires_grad for p in module.parameters()):
            return f"{type(module).__name__} below the boundary learns"
    return ""


def versions_below(backbone: Any, num_frozen: int) -> int:
    """Grows whenever a tensor below layer `num_frozen` is written to in place."""
    modules = list(_modules_below(backbone, num_frozen))
    return sum(t._version for module in modules for t in _tensors(module))


def _modules_below(backbone: Any, num_frozen: int) -> Iterable[nn.Module]:
    yield from backbone.embeddings.modules()
    for layer in list(backbone.encoder.layer)[:num_frozen]:
        yield from layer.modules()


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _content(modules: Iterable[nn.Module]) -> str:
    seen = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            seen.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
    return seen.hexdigest()


def _attention(backbone: Any) -> list[str]:
    """Its name, which holds its options, and what the file says that it stands in."""
    name = str(backbone.config._attn_implementation).removeprefix(PACKED)
    function = AttentionInterface().get(name)
    while isinstance(function, functools.partial):
        function = function.func
    try:
        source = inspect.getsource(inspect.getmodule(function) or object)
    except (TypeError, OSError):
        source = ""
    return [name, hashlib.sha256(source.encode()).hexdigest()]
