"""Tiny real decoders with a tokenizer of words, as folders; made in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, Qwen3Config

KINDS: dict[str, Any] = {"llama": LlamaConfig, "glm": GlmConfig, "qwen3": Qwen3Config}
WORDS = ["[PAD]", "[UNK]", "<s>", *(f"w{i}" for i in range(40))]
MARKS = ["<eos>", "<|user|>", "<|assistant|>", "<|end|>"]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": len(WORDS),
}  # fmt: skip
TEMPLATE = (
    "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def folder(
    path: Path, kind: str = "llama", *, is_tied: bool = False, template: str = TEMPLATE, **more: Any
) -> Path:
    """`template` "" leaves it out; then the tokenizer begins each text with <s>."""
    path.mkdir(parents=True)
    tokenizer(has_template=bool(template)).save(str(path / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (path / "tokenizer_config.json").write_text(json.dumps(said))
    if template:
        (path / "chat_template.jinja").write_text(template)
    torch.manual_seed(0)
    config = KINDS[kind](
        **{**SIZES, **more}, vocab_size=len(WORDS) + len(MARKS), tie_word_embeddings=is_tied
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def tokenizer(*, has_template: bool) -> Tokenizer:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(MARKS)
    if not has_template:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 2)]
        )
    return made


def pairs(count: int) -> tuple[list[str], list[str]]:
    """The answer to two words are the words 20 further on; prompts are of several lengths."""
    prompts, answers = [], []
    for i in range(count):
        first, second = i % 20, (7 * i + i // 20) % 20
        prompts.append(" ".join(["w19"] * (i % 4) + [f"w{first}", f"w{second}"]))
        answers.append(f"w{first + 20} w{second + 20}" if i % 3 else f"w{first + 20}")
    return prompts, answers
