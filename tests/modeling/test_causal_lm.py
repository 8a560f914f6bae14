"""A decoder is opened with its own head, asked as a chat asks it, and written as it came."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, Gemma2Config, Gemma2ForCausalLM, LlamaModel

from autoglm.errors import ModelError
from autoglm.modeling.causal_lm import export_causal_lm, load_causal_lm, own_attention
from autoglm.modeling.chat import Chat
from training import toy_lm

PLAIN: dict[str, Any] = {"attention": "sdpa"}


def words(chat: Chat, ids: list[int]) -> str:
    return " ".join(chat._tokenizer.id_to_token(i) for i in ids)


def test_the_folders_chat_template_stands_around_prompt_and_answer(tmp_path: Path) -> None:
    chat = Chat(toy_lm.folder(tmp_path / "m"), 32)
    (turn,) = chat.turns(["w1 w2"], ["w3 w4"])
    assert words(chat, turn.ids) == "<s> <|user|> w1 w2 <|end|> <|assistant|> w3 w4"
    assert words(chat, turn.answer) == "w3 w4 <|end|>"
    assert words(chat, turn.ids[turn.first :]) == "<|assistant|> w3 w4"


def test_without_a_template_an_answer_follows_its_prompt_and_ends_with_eos(tmp_path: Path) -> None:
    chat = Chat(toy_lm.folder(tmp_path / "m", template=""), 32)
    (turn,) = chat.turns(["w1 w2"], ["w3"])
    assert (words(chat, turn.ids), words(chat, turn.answer)) == ("<s> w1 w2 w3", "w3 <eos>")


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        # GLM-4 closes no answer; Qwen3 puts an empty thought before it.
        ("<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
         "{% if add_generation_prompt %}<|assistant|>{% endif %}", "w3 <eos>"),
        ("{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}w9 {% endif %}"
         "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
         "w9 w3 <|end|>"),
        # What is asked with is not what stands in a whole chat: the prompt's part counts.
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
         "{% if add_generation_prompt %}<|assistant|>w8 {% endif %}", "w3 <eos>"),
    ],
)  # fmt: skip
def test_templates_that_close_otherwise_are_closed(
    tmp_path: Path, template: str, answer: str
) -> None:
    chat = Chat(toy_lm.folder(tmp_path / "m", template=template), 32)
    (turn,) = chat.turns(["w1 w2"], ["w3"])
    assert words(chat, turn.answer) == answer


@pytest.mark.parametrize(
    ("prompt", "answer", "read", "learnt"),
    [
        ("w1 w2 w3 w4 w5 w6", "w7 w8",
         "<s> <|user|> w4 w5 w6 <|end|> <|assistant|> w7 w8", "w7 w8 <|end|>"),
        ("w1 w2", "w3 w4 w5 w6 w7 w8 w9", "<|end|> <|assistant|> w3 w4 w5 w6 w7 w8 w9",
         "w3 w4 w5 w6 w7 w8 w9 <|end|>"),
        ("w1", " ".join(f"w{i}" for i in range(20)),
         "<|assistant|> w0 w1 w2 w3 w4 w5 w6 w7", "w0 w1 w2 w3 w4 w5 w6 w7 w8"),
    ],
)  # fmt: skip
def test_what_is_too_long_loses_the_prompts_beginning_first(
    tmp_path: Path, prompt: str, answer: str, read: str, learnt: str
) -> None:
    chat = Chat(toy_lm.folder(tmp_path / "m"), 10)
    (turn,) = chat.turns([prompt], [answer])
    assert len(turn.ids) + 1 <= 10
    assert (words(chat, turn.ids), words(chat, turn.answer)) == (read, learnt)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = toy_lm.folder(tmp_path / "m", template="")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        Chat(folder, 10)
    assert caught.value.code == "model.no_end_token"


OPENS = """
import json, sys
sys.modules['autoglm'] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
said = []
for folder, has_code in json.loads(sys.argv[1]):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=has_code).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=has_code)
    chat = [{'role': 'user', 'content': 'w1'}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    made = model.generate(torch.tensor([[2, 5, 6]]), max_new_tokens=3, do_sample=False)
    logits = [model(torch.tensor([row])).logits.tolist() for row in json.loads(sys.argv[2])]
    said.append([logits, text, type(model).__name__, made.shape[1]])
print(json.dumps(said))
"""


def test_folders_open_as_they_say_where_this_package_is_absent(tmp_path: Path) -> None:
    """One process for all: transformers takes seconds to load."""
    rows = [[2, 5, 6, 7, 8, 9, 10, 11, 12], [9, 8]]
    models, folders = [], []
    for kind, is_tied, attention, opens_with in (
        ("llama", True, "sdpa", "transformers"),
        ("glm", False, "sdpa", "transformers"),
        ("qwen3", True, "sdpa", "transformers"),
        ("llama", True, {"name": "top_k", "k": 3}, "transformers+code"),
        ("glm", False, {"name": "top_k", "k": 3}, "transformers+code"),
    ):
        number = len(models)
        source = toy_lm.folder(tmp_path / f"from{number}", kind, is_tied=is_tied)
        model = load_causal_lm(source, {"attention": attention})
        with torch.no_grad():
            for weight in model.parameters():  # so that the start would be found out
                weight += 0.05 * torch.randn_like(weight)
        chat = Chat(source, 32)
        done = export_causal_lm(
            model, source, tmp_path / f"to{number}", max_length=32, pad_id=0, end_id=chat.end_id,
            rows=rows, task="causal-lm",
        )  # fmt: skip
        assert (done.opens_with, done.runtime, done.labels) == (opens_with, "torch", ())
        assert done.parity <= 1e-4
        generation = json.loads((Path(done.folder) / "generation_config.json").read_text())
        assert generation["eos_token_id"] == [chat.end_id, len(toy_lm.WORDS)]
        again = load_causal_lm(
            Path(done.folder), {"attention": own_attention(Path(done.folder))}
        ).state_dict()
        assert all(torch.equal(again[n], weight) for n, weight in model.state_dict().items())
        models.append(model)
        folders.append((done.folder, opens_with != "transformers"))
    ran = subprocess.run(
        [sys.executable, "-c", OPENS, json.dumps(folders), json.dumps(rows)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = json.loads(ran.stdout.splitlines()[-1])
    names = [name for _, _, name, _ in said]
    assert names[:3] == ["LlamaForCausalLM", "GlmForCausalLM", "Qwen3ForCausalLM"]
    assert names[3:] == ["AutoGLMForCausalLM"] * 2
    for model, (logits, text, _, length) in zip(models, said, strict=True):
        assert text == "<s><|user|>w1<|end|>\n<|assistant|>"
        assert length > 3
        for row, found in zip(rows, logits, strict=True):
            with torch.no_grad():
                wanted = model(torch.tensor([row])).logits
            assert float((torch.tensor(found) - wanted).abs().max()) < 1e-4


def test_structure_is_edited_and_the_head_stays_tied(tmp_path: Path) -> None:
    folder = toy_lm.folder(tmp_path / "m", is_tied=True)
    said = {**PLAIN, "structure": {"num_layers": 1, "feed_forward": 32}}
    model = load_causal_lm(folder, said, sample=[[3, 4, 5]], max_length=16)
    assert model.backbone.config.num_hidden_layers == 1
    assert model.backbone.get_input_embeddings().weight is model.classifier.weight
    export_causal_lm(
        model, folder, tmp_path / "out", max_length=16, pad_id=0, end_id=3, rows=[[3, 4]],
        task="causal-lm",
    )  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (1, 32)
    with pytest.raises(ModelError, match="lm_head was trained for the width"):
        load_causal_lm(folder, {**PLAIN, "structure": {"hidden_size": 16}})


def test_what_cannot_write_is_refused_with_its_reason(tmp_path: Path) -> None:
    def code_of(folder: Path, attention: str = "sdpa") -> str:
        with pytest.raises(ModelError) as caught:
            load_causal_lm(folder, {"attention": attention})
        return caught.value.code

    sizes = {k: v for k, v in toy_lm.SIZES.items() if not k.endswith("_id")} | {"vocab_size": 60}
    BertLMHeadModel(BertConfig(**sizes)).save_pretrained(tmp_path / "encoder")
    assert code_of(tmp_path / "encoder") == "model.not_causal"
    Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=0.05)).save_pretrained(
        tmp_path / "capped"
    )
    assert code_of(tmp_path / "capped", "eager") == "model.lm_head"
    LlamaModel(toy_lm.KINDS["llama"](**sizes)).save_pretrained(tmp_path / "headless")
    assert code_of(tmp_path / "headless") == "model.no_lm_head"
    assert code_of(tmp_path / "nowhere") == "model.no_backbone"
