"""A graph without its weights, kept by structure: the next weights need no exporter.

can_be_kept(model)             → whether it is worth trying
told_apart(model)              → inside, no two tensors of the model are equal
without_weights(graph, model)  → the graph, told where its weights come from; None if it cannot be
fill(graph, model)             → the graph with the model's weights
find(folder, key), keep(folder, key, graph)

The exporter takes seconds of symbolic shapes per layer and gives, of one structure, one graph.
What was folded out of weights in any other way than by turning a matrix round is not kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Said of an initializer: whose tensor it is, and whether it is transposed.
SOURCE, TURNED = "autoglm.source", "autoglm.turned"
FLOATS = (1, 10, 11, 16)  # onnx.TensorProto's FLOAT, FLOAT16, DOUBLE, BFLOAT16
GRAPHS_KEPT = 16


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """By the name under which the exporter knows them."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return data


def _stamp(tensor: Tensor) -> bytes:
    shape = str(tuple(tensor.shape)).encode()
    return hashlib.blake2b(_bytes(tensor) + shape, digest_size=16).digest()


def can_be_kept(model: nn.Module) -> bool:
    """A recurrent layer's weights stand in another order in its node."""
    return not any(isinstance(module, nn.RNNBase) for module in model.modules())


@contextmanager
def told_apart(model: nn.Module) -> Iterator[None]:
    """Tensors that equal another, or themselves turned round, hold noise inside: the exporter
    would make one of two, and nobody could say which of them a constant of the graph is.
    """
    seen: dict[bytes, nn.Parameter] = {}
    alike: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        stamps = {_stamp(parameter), _stamp(parameter.mT if parameter.ndim == 2 else parameter)}
        if parameter.ndim == 2 and len(stamps) == 1:
            alike[id(parameter)] = parameter
        for stamp in stamps & seen.keys():
            alike |= {id(parameter): parameter, id(seen[stamp]): seen[stamp]}
        seen |= dict.fromkeys(stamps, parameter)
    draw, before = torch.Generator().manual_seed(0), [(p, p.data) for p in alike.values()]
    try:
        for parameter, data in before:
            parameter.data = torch.randn(data.shape, generator=draw).to(data.dtype)
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


def without_weights(graph: Any, model: nn.Module) -> Any:
    """`graph` (an onnx ModelProto of this very model) with no weights in it; changed in place.

    None, and unchanged, when a constant of floats is neither a tensor of the model nor one turned
    round.
    """
    if graph.functions or any(map(_hides_floats, graph.graph.node)):
        return None
    tensors = _tensors(model)
    stamps = {_stamp(t.mT): (name, True) for name, t in tensors.items() if t.ndim == 2}
    stamps |= {_stamp(t): (name, False) for name, t in tensors.items()}
    sources, found = [], set[str]()
    for constant in (c for c in graph.graph.initializer if c.data_type in FLOATS):
        source = stamps.get(_stamp_of(constant))
        if constant.name in tensors:
            source = (constant.name, False)
        if source is not None:
            sources.append((constant, *source))
            found.add(source[0])
        elif _numel(constant.dims) > 1:
            return None
    # A number that is not there by its own name may be inside another one.
    if any(t.numel() == 1 and n not in found for n, t in model.named_parameters()):
        return None
    for constant, name, is_turned in sources:
        constant.ClearField("raw_data")
        constant.metadata_props.add(key=SOURCE, value=name)
        if is_turned:
            constant.metadata_props.add(key=TURNED, value="1")
    return graph


def fill(graph: Any, model: nn.Module) -> Any:
    """`graph` of `without_weights` with the tensors of a model of the same structure, in place.

    Raises: ValueError when it is of another structure.
    """
    tensors = _tensors(model)
    for constant in graph.graph.initializer:
        said = {p.key: p.value for p in constant.metadata_props}
        if SOURCE not in said:
            continue
        tensor = tensors.get(said[SOURCE])
        if tensor is not None and TURNED in said:
            tensor = tensor.mT
        if tensor is None or tuple(tensor.shape) != tuple(constant.dims):
            raise ValueError(f"no {said[SOURCE]} of shape {tuple(constant.dims)} in the model")
        constant.raw_data = _bytes(tensor)
        constant.ClearField("metadata_props")
    return graph


def forget_notes(graph: Any) -> None:
    """The exporter writes down the source line of every node, with the paths of this machine."""
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info):
        part.ClearField("metadata_props")
    for part in (*graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        part.ClearField("metadata_props")


def _hides_floats(node: Any) -> bool:
    """Whether a node has constants, or a graph, of its own."""
    return any(
        attribute.HasField("g")
        or len(attribute.floats) > 1
        or (attribute.t.data_type in FLOATS and _numel(attribute.t.dims) > 1)
        for attribute in node.attribute
    )


def _stamp_of(constant: Any) -> bytes:
    from onnx import numpy_helper

    return _stamp(torch.from_numpy(numpy_helper.to_array(constant).copy()))


def _numel(dims: Any) -> int:
    return int(torch.Size(dims).numel())


def find(folder: Path, key: str) -> Any:
    """The kept graph; None when there is none, or a damaged one."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(folder / f"{key}.onnx")
    except (OSError, DecodeError):
        return None
    return graph if graph.graph.node else None


def keep(folder: Path, key: str, graph: Any) -> None:
    """The newest `GRAPHS_KEPT` stay."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".{key}.{os.getpid()}.part"
    staging.write_bytes(graph.SerializeToString(deterministic=True))
    staging.rename(folder / f"{key}.onnx")
    by_age = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime_ns)
    for path in by_age[:-GRAPHS_KEPT]:
        path.unlink(missing_ok=True)
