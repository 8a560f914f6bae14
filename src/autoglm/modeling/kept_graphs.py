"""A graph without its weights, kept by structure: the next weights need no exporter.

can_be_kept(model)             → whether it is worth trying
told_apart(model)              → inside, no two tensors of the model are equal
without_weights(graph, model)  → the graph, told where its weights come from; None if it cannot be
write(graph, model, path)      → a file: the graph with the model's weights
find(folder, key), keep(folder, key, graph)

The exporter takes seconds of symbolic shapes per layer and gives, of one structure, one graph.
What was folded out of weights in any other way than by turning a matrix round is not kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoglm.errors import ModelError

# Said of an initializer: whose tensor it is, and whether it is transposed.
SOURCE, TURNED = "autoglm.source", "autoglm.turned"
FLOATS = (1, 10, 11, 16)  # onnx.TensorProto's FLOAT, FLOAT16, DOUBLE, BFLOAT16
GRAPHS_KEPT = 16
MOST_BYTES = 2**31 - 1


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """By the name under which the exporter knows them."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _numbers(tensor: Tensor) -> NDArray[np.uint8]:
    """Its bytes, in rows; not copied where they lie so."""
    flat = tensor.detach().cpu().contiguous().flatten()
    numbers: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    return numbers


def _stamp(tensor: Tensor) -> bytes:
    made = hashlib.blake2b(_numbers(tensor).data, digest_size=16)
    made.update(str(tuple(tensor.shape)).encode())
    return made.digest()


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


def write(graph: Any, model: nn.Module, path: Path) -> None:
    """`graph` of `without_weights` with the tensors of a model of the same structure, as protobuf
    would write it; but no message ever holds the weights, which come straight from the model.

    Raises: ValueError when it is of another structure; ModelError model.export_failed when it is
    larger than protobuf reads. Nothing is written then.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.graph.initializer[:]
    tensors = _tensors(model)
    constants = [_Constant.of(constant, tensors) for constant in graph.graph.initializer]
    model_parts = _around(bare, "graph")
    graph_parts = _around(bare.graph, "initializer")
    fields = [_field(onnx.GraphProto, "initializer", c.num_bytes) for c in constants]
    num_bytes = sum(map(len, (*graph_parts, *fields))) + sum(c.num_bytes for c in constants)
    head = model_parts[0] + _field(onnx.ModelProto, "graph", num_bytes)
    if len(head) + num_bytes + len(model_parts[1]) > MOST_BYTES:
        raise ModelError(
            f"a graph of {num_bytes} bytes is larger than an ONNX file can be.",
            code="model.export_failed",
            next_step="Take a smaller backbone, or fewer layers (model.structure.num_layers).",
        )
    with path.open("wb") as stream:
        stream.write(head + graph_parts[0])
        for field, constant in zip(fields, constants, strict=True):
            stream.write(field)
            constant.write(stream)
        stream.write(graph_parts[1] + model_parts[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Constant:
    """An initializer: what stands before and behind its numbers, and whose tensor these are."""

    before: bytes
    behind: bytes
    tensor: Tensor | None

    @classmethod
    def of(cls, constant: Any, tensors: Mapping[str, Tensor]) -> _Constant:
        from onnx.helper import tensor_dtype_to_np_dtype

        said = {p.key: p.value for p in constant.metadata_props}
        if SOURCE not in said:
            whole = constant.SerializeToString(deterministic=True)
            return cls(before=whole, behind=b"", tensor=None)
        tensor = tensors.get(said[SOURCE])
        if tensor is not None and TURNED in said:
            tensor = tensor.mT
        if tensor is None or tuple(tensor.shape) != tuple(constant.dims):
            raise ValueError(f"no {said[SOURCE]} of shape {tuple(constant.dims)} in the model")
        number = tensor_dtype_to_np_dtype(constant.data_type)
        if number.itemsize != tensor.itemsize:
            raise ValueError(f"{said[SOURCE]} is {tensor.dtype}, the graph has {number}")
        bare = type(constant)()
        bare.CopyFrom(constant)
        bare.ClearField("metadata_props")
        before, behind = _around(bare, "raw_data")
        before += _field(type(constant), "raw_data", tensor.nbytes)
        return cls(before=before, behind=behind, tensor=tensor)

    @property
    def num_bytes(self) -> int:
        numbers = 0 if self.tensor is None else self.tensor.nbytes
        return len(self.before) + numbers + len(self.behind)

    def write(self, stream: BinaryIO) -> None:
        stream.write(self.before)
        if self.tensor is not None:
            stream.write(_numbers(self.tensor).data)
        stream.write(self.behind)


def _around(message: Any, name: str) -> tuple[bytes, bytes]:
    """What protobuf writes of a message before and behind the field `name`, by the numbers."""
    at = message.DESCRIPTOR.fields_by_name[name].number
    before, behind = type(message)(), type(message)()
    for part, is_in in ((before, at.__gt__), (behind, at.__lt__)):
        part.CopyFrom(message)
        for field in message.DESCRIPTOR.fields:
            if not is_in(field.number):
                part.ClearField(field.name)
    first, last = (part.SerializeToString(deterministic=True) for part in (before, behind))
    return first, last


def _field(message: Any, name: str, num_bytes: int) -> bytes:
    """How protobuf begins a field whose content has so many bytes: its number, and the size.
    Source: protobuf.dev/programming-guides/encoding.
    """
    out = bytearray()
    for number in (message.DESCRIPTOR.fields_by_name[name].number << 3 | 2, num_bytes):
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)


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
