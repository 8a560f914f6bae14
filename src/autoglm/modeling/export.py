"""A trained model → a folder that others can open, with a graph that answers alike."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from autoglm.contracts.record import digest
from autoglm.errors import ModelError
from autoglm.modeling import kept_graphs
from autoglm.modeling.attention import registry as attentions
from autoglm.modeling.auto_model import parts_to_carry
from autoglm.modeling.carried_code import TABLE, carried_files
from autoglm.modeling.encoding import prefix_of
from autoglm.modeling.images import PREPROCESSOR
from autoglm.modeling.modeling_autoglm import AutoGLMForSequenceClassification
from autoglm.modeling.onnx_model import BATCH_TOKENS, OnnxModel
from autoglm.modeling.onnx_rnn import rnn_as_a_node
from autoglm.modeling.plain_class import agrees, as_plain_class, auto_class, is_of_images, opened
from autoglm.reuse.prefix_cache import pad_ids

MAX_PARITY = 1e-4
# Of the rows for parity, what a kept graph is asked: it was proved on all of them when it was made,
# and only its weights are others.
ROWS_OF_KEPT = 16
LONG_EXAMPLE = 1025
OF_A_MACHINE = {"transformers_version", "_name_or_path"}
CODE = Path(__file__).with_name("modeling_autoglm.py")
READERS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
    PREPROCESSOR,
)
NO_PARTS, WITH_PARTS = "PARTS: dict[str, Any] = {}", f"from .{TABLE} import PARTS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """`parity` is the largest logit difference between torch and the graph on real rows, as a share
    of the largest logit where that is above 1 (of numbers to be answered: in the unit of what was
    learnt, if that is larger).
    """

    folder: str
    labels: tuple[str, ...]
    opens_with: str
    runtime: str
    parity: float
    size_bytes: int


def export_folder(
    model: AutoGLMForSequenceClassification,
    tokenizer: Path,
    target: Path,
    *,
    labels: Sequence[str],
    max_length: int,
    pad_id: int,
    inputs: Sequence[Any],
    task: str = "text-classification",
    graphs: Path | None = None,
    made_of: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the folder at `target` (a rename: whole or absent). `inputs` are rows for parity:
    texts, tokens, or images as bytes or paths. What reads them is copied from `tokenizer`. In
    `graphs` graphs without weights are kept: a second model of one structure needs no exporter.
    `made_of`: the backbone, by content, and its edits, for training that goes on from the folder.

    Raises: ModelError model.export_parity, model.export_failed.
    """
    staging = target.with_name(f".{target.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    model.eval()
    opens_with = _write_model(model, staging, labels, pad_id)
    for name in READERS:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, staging / name)
    facts = {
        "task": task,
        "labels": list(labels),
        "max_length": max_length,
        "pad_id": pad_id,
        "pooling": model.config.pooling,
        "opens_with": opens_with,
        "prefix": prefix_of(tokenizer),
        **({"made_of": made_of} if made_of else {}),
    }
    _write_json(staging / "autoglm.json", facts)
    check = partial(_parity, model, staging, pad_id)
    parity = _write_graph(model, staging / "model.onnx", graphs, inputs, check)
    # `not <=`: what is no number does not agree.
    if not parity <= MAX_PARITY:
        raise ModelError(
            f"the graph's logits differ by {parity:.2g} from the model's.",
            code="model.export_parity",
        )
    shutil.rmtree(target, ignore_errors=True)
    staging.rename(target)
    return Exported(
        folder=str(target),
        labels=tuple(labels),
        opens_with=opens_with,
        runtime="onnxruntime",
        parity=parity,
        size_bytes=sum(p.stat().st_size for p in target.iterdir()),
    )


def _write_model(
    model: AutoGLMForSequenceClassification, folder: Path, labels: Sequence[str], pad_id: int
) -> str:
    """config.json and model.safetensors: of transformers' own class where it answers alike, else
    of ours with its code. Gives `opens_with`.
    """
    plain, asked = as_plain_class(model, labels), _compared(model, pad_id)
    if plain is not None and agrees(model, plain, asked):
        cleaned = {k: v for k, v in plain.config.to_diff_dict().items() if k not in OF_A_MACHINE}
        _write_json(folder / "config.json", cleaned | {"architectures": [type(plain).__name__]})
        _write_weights(plain, folder)
        if agrees(model, opened(model, folder), asked):
            return "transformers"
    config = {
        "architectures": [type(model).__name__],
        "auto_map": {
            "AutoConfig": "modeling_autoglm.AutoGLMConfig",
            auto_class(model).__name__: "modeling_autoglm.AutoGLMForSequenceClassification",
        },
        "attention": model.config.attention,
        "attention_options": model.config.attention_options,
        "backbone_config": model.config.backbone_config,
        "head": model.config.head,
        "head_dropout": 0.0,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "model_type": model.config.model_type,
        "output_scale": model.config.output_scale,
        "output_shift": model.config.output_shift,
        "pooling": model.config.pooling,
        "problem_type": model.config.problem_type,
    }
    _write_json(folder / "config.json", config)
    _write_weights(model, folder)
    write_code(model, folder)
    return "transformers+code"


def _write_weights(model: nn.Module, folder: Path) -> None:
    state = {n: t.contiguous() for n, t in sorted(model.state_dict().items())}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _compared(model: AutoGLMForSequenceClassification, pad_id: int) -> list[dict[str, Tensor]]:
    """Rows of several lengths in one batch, and one alone; or two images."""
    draw = torch.Generator().manual_seed(0)
    config = model.backbone.config
    if is_of_images(model):
        shape = (2, int(config.num_channels), int(config.image_size), int(config.image_size))
        return [{"pixel_values": torch.randn(shape, generator=draw)}]
    known = [i for i in range(int(config.vocab_size)) if i != pad_id]
    batches = []
    for lengths in ((11, 6, 2), (9,)):
        rows = [
            [known[i] for i in torch.randint(len(known), (n,), generator=draw).tolist()]
            for n in lengths
        ]
        ids, mask = pad_ids(rows, pad_id)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def write_code(model: AutoGLMForSequenceClassification, folder: Path) -> None:
    """The model's own file, and the parts that neither it nor transformers has."""
    for name, text in _code_of(model).items():
        (folder / name).write_text(text, encoding="utf-8")


def _code_of(model: AutoGLMForSequenceClassification) -> dict[str, str]:
    """File name → text."""
    found = parts_to_carry(model)
    code = CODE.read_text(encoding="utf-8")
    own = code.replace(NO_PARTS, WITH_PARTS) if found else code
    return {**carried_files(found), CODE.name: own}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False), "utf-8")


class _LogitsOfPixels(nn.Module):
    """The exporter wants tensors in and one tensor out."""

    def __init__(self, model: AutoGLMForSequenceClassification) -> None:
        super().__init__()
        self._model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self._model(pixel_values=pixel_values).logits
        return logits


class _Logits(nn.Module):
    """As above, of token ids."""

    def __init__(self, model: AutoGLMForSequenceClassification) -> None:
        super().__init__()
        self._model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids, attention_mask).logits
        return logits


def _graph_of(model: AutoGLMForSequenceClassification) -> tuple[nn.Module, dict[str, Any], Any]:
    """What is exported, example inputs by name, and which of their axes may change."""
    batch = torch.export.Dim("batch", max=65_536)
    if is_of_images(model):
        size = int(model.backbone.config.image_size)
        pixels = torch.randn(2, int(model.backbone.config.num_channels), size, size)
        return _LogitsOfPixels(model), {"pixel_values": pixels}, {"pixel_values": {0: batch}}
    longest = int(getattr(model.backbone.config, "max_position_embeddings", 512))
    # A sparse attention must see more than one of its blocks, or the graph has one for ever.
    is_plain = model.config.attention in attentions.BUILT_IN
    length = 8 if is_plain else min(longest, LONG_EXAMPLE)
    ids, mask = torch.randint(1, 100, (2, length)), torch.ones(2, length, dtype=torch.long)
    mask[1, 6:] = 0  # a padded row, so that the mask is no constant of the graph
    axes = {0: batch, 1: torch.export.Dim("length", max=longest)}
    inputs = {"input_ids": ids, "attention_mask": mask}
    return _Logits(model), inputs, dict.fromkeys(inputs, axes)


def _write_graph(
    model: AutoGLMForSequenceClassification,
    path: Path,
    graphs: Path | None,
    rows: Sequence[Any],
    check: Callable[[Sequence[Any]], float],
) -> float:
    """Gives the parity that `check` finds. A kept graph that does not agree is made again."""
    whole, inputs, axes = _graph_of(model)
    key = _structure(model)
    kept = kept_graphs.find(graphs, key) if graphs is not None else None
    if kept is not None:
        with contextlib.suppress(ValueError):
            kept_graphs.write(kept, whole, path)
            if (parity := check(rows[:ROWS_OF_KEPT])) <= MAX_PARITY:
                return parity
        kept = None
    if kept_graphs.can_be_kept(whole):
        with kept_graphs.told_apart(whole):
            kept = kept_graphs.without_weights(_exported(whole, inputs, axes), whole)
    if kept is None:
        made = _exported(whole, inputs, axes)
        path.write_bytes(made.SerializeToString(deterministic=True))
        return check(rows)
    if graphs is not None:
        kept_graphs.keep(graphs, key, kept)
    kept_graphs.write(kept, whole, path)
    return check(rows)


def _structure(model: AutoGLMForSequenceClassification) -> str:
    """What the graph depends on, weights left out: sizes, code, and who exports."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in {"id2label", "label2id"}}
    shapes = [(name, list(t.shape)) for name, t in model.state_dict().items()]
    makers = [(name, version(name)) for name in ("torch", "onnx", "onnxscript", "transformers")]
    code = [Path(__file__).read_text("utf-8"), *sorted(_code_of(model).items())]
    # In one order: a config that was read from a folder has its keys in another than one made here.
    said = json.dumps(config, sort_keys=True, default=str)
    return digest(said, shapes, makers, code)


@contextlib.contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """The graph is the same, and the exporter follows no gradients through it."""
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _exported(whole: nn.Module, inputs: dict[str, Any], axes: Any) -> Any:
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        # The exporter prints its progress and warns about its own internals.
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            rnn_as_a_node(whole),
            _without_gradients(whole),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                whole.eval(),
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=axes,
                verbose=False,
            )
            assert program is not None, "the dynamo exporter returns a program"
            made = program.model_proto
    except Exception as error:
        raise ModelError(
            f"the graph cannot be exported: {error}.", code="model.export_failed"
        ) from error
    kept_graphs.forget_notes(made)
    return made


def _said_of(
    model: AutoGLMForSequenceClassification, rows: Sequence[Sequence[int]], pad_id: int
) -> list[NDArray[np.float32]]:
    """Logits of each row as the model gives them without a pad: rows of one length at a time, a
    few of them.
    """
    at: dict[int, list[int]] = defaultdict(list)
    for place, ids in enumerate(rows):
        at[len(ids)].append(place)
    said: dict[int, NDArray[np.float32]] = {}
    for length, alike in at.items():
        num = max(1, BATCH_TOKENS // length)
        for places in (alike[first : first + num] for first in range(0, len(alike), num)):
            logits = model(*pad_ids([rows[place] for place in places], pad_id)).logits
            said |= zip(places, logits.numpy(), strict=True)
    return [said[place] for place in range(len(rows))]


@torch.no_grad()
def _parity(
    model: AutoGLMForSequenceClassification, folder: Path, pad_id: int, inputs: Sequence[Any]
) -> float:
    graph = OnnxModel(folder, threads=0)
    rows = graph.rows(graph.encode(inputs))
    if is_of_images(model):
        wanted = [model(pixel_values=torch.tensor(x)[None]).logits[0].numpy() for x in rows]
    else:
        wanted = _said_of(model, rows, pad_id)
    pairs = zip(graph.logits(rows), wanted, strict=True)
    # Of numbers near 1e6 no float32 keeps 1e-4, and of logits near 100 no chain of sums does.
    sizes = abs(model.config.output_scale), abs(model.config.output_shift)
    unit = max(1.0, *sizes, *(float(np.abs(true).max()) for true in wanted))
    largest = max((float(np.abs(said - true).max()) for said, true in pairs), default=0.0)
    return float(largest / unit)
