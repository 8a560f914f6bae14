"""Rows without pads: the same numbers as with them, whatever the backbone and the lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    DebertaV2Config,
    DeepseekV3Config,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    XLMRobertaConfig,
)

from autoglm.modeling.attention.packed import lay_out
from autoglm.modeling.body import Body
from autoglm.modeling.dropout import FastDropout, quicken
from training import toy

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
BACKBONES: dict[str, Any] = {
    "bert": BertConfig(**SMALL),
    "xlm-roberta": XLMRobertaConfig(**{**SMALL, "pad_token_id": 1}),
    "modernbert": ModernBertConfig(
        **SMALL, **ENDS, local_attention=6, global_attn_every_n_layers=2
    ),
    "llama": LlamaConfig(**GROUPED),
    "glm": GlmConfig(**GROUPED),
    "glm4": Glm4Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED),
    "deepseek-v3": DeepseekV3Config(  # its values are narrower than its keys
        **SMALL, num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=2,
    ),
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=128),
}  # fmt: skip


@pytest.fixture(scope="module", params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def padded_and_packed(config: Any, attention: str = "sdpa") -> tuple[Body, Body]:
    pad_id = int(config.pad_token_id or 0)
    padded = Body(toy.backbone(config), pad_id=pad_id)
    padded.why_padded = "asked for"
    padded._whole.set_attn_implementation("sdpa")
    backbone = toy.backbone(config)
    backbone.set_attn_implementation(attention)
    return padded, Body(backbone, pad_id=pad_id)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(name: str, attention: str) -> None:
    padded, packed = padded_and_packed(BACKBONES[name], attention)
    assert packed.why_padded == ""
    rows = sorted(
        [[2 + t % 57 for t in row] for row in toy.ids(12, longest=70)], key=lambda r: -len(r)
    )
    layout = lay_out([len(row) for row in rows])
    assert len(layout.blocks) > 1
    losses, gradients = [], []
    # A norm at the end makes the square of a state a constant: its first value is none.
    for body in (padded, packed):
        flat = body.whole(rows, layout)
        per_row = torch.stack(
            [part[:, 0].square().mean() for part in flat.split(layout.lengths.tolist())]
        )
        per_row.sum().backward()
        losses.append(per_row.detach())
        gradients.append([p.grad for p in body._whole.parameters() if p.grad is not None])
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    for wanted, found in zip(*gradients, strict=True):
        assert torch.allclose(wanted, found, atol=1e-5 * float(wanted.abs().max()) + 1e-7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=1, max_size=20))
def test_any_lengths_are_laid_out_whole(lengths: list[int]) -> None:
    lengths.sort(reverse=True)
    layout = lay_out(lengths)
    assert sum(block.num_tokens for block in layout.blocks) == sum(lengths)
    flat = torch.arange(sum(lengths))[:, None].float()
    padded, mask = layout.padded(flat)
    assert mask.sum(1).tolist() == lengths
    assert torch.equal(padded.flatten(0, 1)[mask.flatten().bool()], flat)
    for block in layout.blocks:
        assert block.gather is None or len(block.gather) == block.num_rows * block.length
        assert block.keep is None or len(block.keep) == block.num_tokens


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 80), min_size=1, max_size=12),
    st.integers(0, 1000),
    st.sampled_from(["bert", "modernbert", "gpt2"]),
    st.booleans(),
)
def test_packing_changes_nothing_over_random_lengths(
    lengths: list[int], seed: int, family: str, learns: bool
) -> None:
    lengths.sort(reverse=True)
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, 60, (n,), generator=draw).tolist() for n in lengths]
    with torch.set_grad_enabled(learns):  # short rows that learn go another way
        wanted, found = (
            body.whole(rows, lay_out(lengths)) for body in padded_and_packed(BACKBONES[family])
        )
    assert torch.allclose(wanted, found, atol=1e-5)


def test_a_family_that_never_calls_its_attention_is_padded_and_says_so() -> None:
    body = Body(toy.backbone(DebertaV2Config(**SMALL)), pad_id=0)
    assert body.why_padded
    rows = [[3, 4, 5, 6], [7, 8]]
    assert body.whole(rows, lay_out([4, 2])).shape == (6, 32)


@pytest.mark.parametrize("num_frozen", [1, 2])
def test_the_two_halves_are_the_whole(num_frozen: int) -> None:
    whole = Body(toy.backbone(), pad_id=0)
    cut = Body(toy.backbone(), pad_id=0, num_frozen=num_frozen)
    rows = sorted(toy.ids(6), key=lambda r: -len(r))
    layout = lay_out([len(row) for row in rows])
    with torch.no_grad():
        found = cut.upper(cut.lower(rows, layout), layout)
        assert torch.allclose(whole.whole(rows, layout), found, atol=1e-6)


def test_fast_dropout_drops_at_its_rate_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 500, requires_grad=True)
    layer = FastDropout(0.1).train()
    y = layer(x)
    share = float((y == 0).float().mean())
    assert share == pytest.approx(0.1, abs=0.003)
    assert float(y.detach().mean()) == pytest.approx(1, abs=0.004)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad == 0, y == 0)
    assert torch.equal(layer.eval()(x), x)
    assert quicken(toy.backbone(), 0.2) == 5


def test_with_dropout_the_mean_loss_lies_where_the_padded_one_lies() -> None:
    padded, packed = padded_and_packed(toy.backbone().config)
    rows = sorted(toy.ids(10), key=lambda r: -len(r))
    layout = lay_out([len(row) for row in rows])
    means, errors = [], []
    for body in (padded, packed):
        if body is packed:
            quicken(body._whole, 0.1)
        body._whole.train()
        with torch.no_grad():
            draws = []
            for seed in range(200):
                torch.manual_seed(seed)
                draws.append(float(body.whole(rows, layout)[:, 0].square().mean()))
        found = torch.tensor(draws)
        means.append(float(found.mean()))
        errors.append(float(found.std()) / 200**0.5)
    assert abs(means[0] - means[1]) < 4 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
