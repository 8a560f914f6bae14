"""Names of a backbone's lower parts by all that decides what they say: what cached states go by."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from autoglm.contracts.record import digest
from autoglm.modeling.attention.packed import PACKED
from autoglm.modeling.body import can_cut

# Every so manieth value is looked at.
SAMPLED = 1009
# What a config says of where it came from, not of what it does.
NOT_CONTENT = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype")


def frozen_keys(backbone: Any, device: torch.device | None = None) -> list[str]:
    """Keys of the states behind layer 0, 1, … of a backbone that can be cut; else one, of the
    states behind all. Equal keys mean equal states: tensors, config, attention with options and
    source, number format, library versions and the kind of device that computes them (the
    backbone's own) go in. Cost: one pass over the weights.
    """
    said = {k: v for k, v in backbone.config.to_dict().items() if k not in NOT_CONTENT}
    if can_cut(backbone):
        # The count of layers above does not change what is said below them.
        said.pop("num_hidden_layers", None)
    versions = [version(name) for name in ("torch", "transformers", "open-autoglm")]
    kind = (device or backbone.device).type
    bottom = [said, _attention(backbone), str(backbone.dtype), kind, *versions]
    if not can_cut(backbone):
        return [digest(*bottom, _content([backbone.state_dict()]))]
    layers = list(backbone.encoder.layer)
    # Whatever is no layer may be read below all of them.
    others = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if not name.startswith("encoder.layer.")
    }
    keys = [digest(*bottom, _content([others]))]
    for layer in layers:
        keys.append(digest(keys[-1], _content([layer.state_dict()])))
    return keys


def named_in(key: str, number_format: str) -> str:
    """The key of the same states computed in that format."""
    return key if number_format == "fp32" else digest(key, number_format)


def why_not_frozen(backbone: Any, num_frozen: int) -> str:
    """Why states below layer `num_frozen` cannot be kept; empty when they can."""
    for module in _modules_below(backbone, num_frozen):
        if module._forward_hooks or module._forward_pre_hooks:
            return f"a hook on {type(module).__name__} may change what it says"
        if any(p.requires_grad for p in module.parameters()):
            return f"{type(module).__name__} below the boundary learns"
    return ""


def mark_of(backbone: Any, num_frozen: int) -> list[Any]:
    """Changes when a module or tensor below layer `num_frozen` is replaced or written to. A write
    by way of `.data` is seen by a sample of the values.
    """
    modules = list(_modules_below(backbone, num_frozen))
    tensors = [t for module in modules for t in _tensors(module)]
    samples = [str(float(t.detach().flatten()[::SAMPLED].sum())) for t in tensors]
    return [*map(id, modules), *((t.data_ptr(), t._version) for t in tensors), *samples]


def freeze_lowest(backbone: Any, num_frozen: int) -> None:
    """Only the layers from `num_frozen` on learn: what is no layer may be read below all of them
    (tables of relative positions and the norms over them).
    """
    backbone.requires_grad_(False)
    for layer in list(backbone.encoder.layer)[num_frozen:]:
        layer.requires_grad_(True)


def _modules_below(backbone: Any, num_frozen: int) -> Iterable[nn.Module]:
    """All of a backbone that has no embeddings and layers to be told apart."""
    if not can_cut(backbone):
        yield from backbone.modules()
        return
    yield from backbone.embeddings.modules()
    for layer in list(backbone.encoder.layer)[:num_frozen]:
        yield from layer.modules()


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _content(states: Iterable[Mapping[str, Tensor]]) -> str:
    seen = hashlib.sha256()
    for state in states:
        for name, tensor in state.items():
            seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            content: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
            seen.update(content)
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
