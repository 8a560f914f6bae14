"""Attention by name: what it computes, what it is called, and what the probe refuses."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BertConfig,
    DebertaV2Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GlmConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    Qwen3Config,
    T5Config,
    T5EncoderModel,
)
from transformers.utils import logging as transformers_logging

from autoglm.errors import ModelError, PluginError
from autoglm.modeling.attention import block_choice, block_top_k, probe, registry, top_k
from autoglm.modeling.carried_code import cut_out
from autoglm.plugins import registry as plugins

transformers_logging.set_verbosity_error()
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SPECIAL = {"cls_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
CONFIGS = {
    "bert": BertConfig(**SMALL),
    "modernbert": ModernBertConfig(
        **{**SMALL, "num_hidden_layers": 3}, local_attention=8, pad_token_id=0, **SPECIAL
    ),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "glm": GlmConfig(**GROUPED),
    "glm4": Glm4Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, sliding_window=8, use_sliding_window=True, max_window_layers=1),
    "gemma3": Gemma3TextConfig(**GROUPED, sliding_window=8),
    "gpt2": GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "t5": T5Config(**T5, decoder_start_token_id=0),
}
OURS = ["top_k", "block_top_k", {"name": "top_k", "k": 5}]
OURS.append({"name": "block_top_k", "block_size": 4, "num_blocks": 2})


@pytest.fixture(autouse=True)
def _ours_are_known() -> Iterator[None]:
    # Also in an environment that was installed before these two had their entry points.
    before, threads = dict(plugins._registered), torch.get_num_threads()
    torch.set_num_threads(1)  # inputs are tiny: on a busy machine a second thread only waits
    plugins.register("attention", "top_k", top_k.top_k, replace=True)
    plugins.register("attention", "block_top_k", block_top_k.block_top_k, replace=True)
    yield
    torch.set_num_threads(threads)
    plugins._registered.clear()
    plugins._registered.update(before)


# ── the mathematics ──


def masked_softmax(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, bias: Tensor | None) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores if bias is None else scores + bias
    scores = scores.masked_fill(~seen, -1e30)
    return scores.softmax(-1).masked_fill(~seen, 0.0) @ v


class Case:
    """Random inputs in double precision, with a row that sees nothing if there is a mask."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)

        def pick(*options: Any) -> Any:
            return options[int(torch.randint(len(options), (), generator=draw))]

        batch, key_heads, group, n = pick(1, 2), pick(1, 2), pick(1, 3), pick(1, 7, 23, 37)
        heads = key_heads * group

        def normal(*shape: int, grad: bool = True) -> Tensor:
            made = torch.randn(*shape, dtype=torch.double, generator=draw)
            return made.requires_grad_(grad)

        self.q = normal(batch, heads, n, 4)
        self.k, self.v = normal(batch, key_heads, n, 4), normal(batch, key_heads, n, pick(4, 6))
        self.is_causal = pick(False, True)
        self.bias = normal(1, heads, n, n, grad=pick(False, True)) if pick(False, True) else None
        shape = pick(None, (batch, 1, n, n), (batch, heads, n, n), (batch, 1, 1, n))
        self.mask: Tensor | None = None
        self.seen = torch.ones(batch, heads, n, n, dtype=torch.bool)
        if shape is not None:
            self.mask = torch.rand(shape, generator=draw) < pick(0.2, 0.7)
            self.mask[:, :, -1] = False if shape[2] > 1 else self.mask[:, :, -1]
            self.seen = self.seen & self.mask
        if self.is_causal:
            self.seen = self.seen.tril()
        if self.mask is not None and pick(False, True):  # the same, said as eager masks say it
            low = torch.finfo(torch.double).min
            self.mask = torch.zeros_like(self.mask, dtype=torch.double).masked_fill(~self.mask, low)

    @property
    def kwargs(self) -> dict[str, Any]:
        return {"mask": self.mask, "bias": self.bias, "is_causal": self.is_causal}

    def scores(self) -> Tensor:
        k = self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], 1)
        scores = self.q @ k.mT * self.q.shape[-1] ** -0.5
        scores = scores if self.bias is None else scores + self.bias
        return scores.masked_fill(~self.seen, float("-inf"))

    def equals(self, found: Tensor, seen: Tensor) -> None:
        wanted = masked_softmax(self.q, self.k, self.v, seen, self.bias)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        learning = [x for x in (self.q, self.k, self.v, self.bias) if x is not None]
        learning = [x for x in learning if x.requires_grad]
        grad = torch.randn_like(found)
        pairs = (torch.autograd.grad(x, learning, grad) for x in (found, wanted))
        for ours, theirs in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), num_kept=st.sampled_from([1, 3, 8, 30, 100]))
def test_top_k_is_a_softmax_over_the_best_visible_keys(seed: int, num_kept: int) -> None:
    case = Case(seed)
    scores = case.scores()
    least = scores.topk(min(num_kept, scores.shape[-1])).values[..., -1:]
    with patch.object(top_k, "CHUNK_SCORES", 500):  # several chunks
        found = top_k.top_k_attention(case.q, case.k, case.v, num_kept=num_kept, **case.kwargs)
        case.equals(found, case.seen & (scores >= least))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    block_size=st.sampled_from([1, 4, 5]),
    num_blocks=st.sampled_from([1, 2, 3, 50]),
)
def test_block_top_k_is_dense_attention_over_the_chosen_blocks(
    seed: int, block_size: int, num_blocks: int
) -> None:
    case = Case(seed)
    n = case.k.shape[2]
    how = block_top_k.How(block_size=block_size, num_blocks=num_blocks, is_causal=case.is_causal)
    seen = case.seen
    if block_size * num_blocks < n:
        mask, _ = block_top_k._split(case.mask, None)
        chosen = block_choice.choose_blocks(case.q, case.k, mask, how).long()
        read = torch.zeros(*chosen.shape[:3], -(-n // block_size) + 1, dtype=torch.bool)
        read = read.scatter(-1, chosen, True)[..., :-1].repeat_interleave(block_size, -1)
        seen = seen & read[..., :n]
    # Several chunks of several tiles, that end within a head.
    sizes = {"TILES": (16, 8), "SLOTS_AT_A_TIME": 24, "ROWS_AT_A_TIME": 50}
    with patch.multiple(block_top_k, **sizes):
        found = block_top_k.block_top_k_attention(
            case.q, case.k, case.v, block_size=block_size, num_blocks=num_blocks, **case.kwargs
        )
        case.equals(found, seen)


@pytest.mark.parametrize("function", [top_k.top_k_attention, block_top_k.block_top_k_attention])
def test_a_query_that_sees_nothing_gives_zeros(function: Any) -> None:
    options = {"num_kept": 3} if "num_kept" in inspect.signature(function).parameters else {}
    options = options or {"block_size": 4, "num_blocks": 2}
    q = torch.randn(1, 2, 20, 8, requires_grad=True)
    mask = torch.rand(1, 1, 20, 20) < 0.5
    mask[:, :, 7] = False
    out = function(q, q, q, mask=mask, **options)
    out.sum().backward()
    assert out[:, :, 7].abs().max() == 0
    assert q.grad is not None
    assert torch.isfinite(q.grad).all()


def test_rows_of_which_none_sees_anything_are_zeros_too() -> None:
    q = torch.randn(1, 1, 20, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    out = block_top_k.block_top_k_attention(q, q, q, mask=mask, block_size=4, num_blocks=2)
    out.sum().backward()
    assert out.abs().max() == 0
    assert q.grad is not None
    assert q.grad.abs().max() == 0


def test_a_query_always_reads_its_own_block() -> None:
    q = torch.randn(2, 3, 40, 8)
    how = block_top_k.How(block_size=8, num_blocks=2)
    chosen = block_choice.choose_blocks(q, torch.randn(2, 3, 40, 8), None, how)
    own = torch.arange(40)[:, None] // 8
    assert (chosen == own).any(-1).all()


@pytest.mark.parametrize("num_blocks", [1, 3, block_choice.MANY + 1])
def test_the_blocks_that_a_query_reads_have_the_highest_bounds(num_blocks: int) -> None:
    q, k = torch.randn(1, 2, 200, 8), torch.randn(1, 2, 200, 8)
    how = block_top_k.How(block_size=5, num_blocks=num_blocks)
    boxes = k.unflatten(2, (-1, 5))
    corners = torch.stack([boxes.amax(3), boxes.amin(3)], 3)[:, :, None]
    scores = (q[:, :, :, None, None] * corners).amax(-2).sum(-1)  # (batch, head, query, block)
    scores.scatter_(-1, (torch.arange(200) // 5).expand(1, 2, -1)[..., None], float("inf"))
    lowest = scores.topk(num_blocks, -1).values[..., -1:]
    chosen = block_choice.choose_blocks(q, k, None, how).long()
    assert (chosen.sort(-1).values.diff(dim=-1) > 0).all()
    # A block's number takes the place of a score's last bits.
    assert (scores.gather(-1, chosen) >= lowest - lowest.abs().clamp(max=1e9) * 2.0**-16).all()


def test_what_a_causal_query_reads_does_not_depend_on_later_tokens() -> None:
    q, k, v = torch.randn(3, 1, 2, 50, 8).unbind(0)
    later = [x.clone() for x in (q, k, v)]
    for x in later:
        x[:, :, 31:] = torch.randn(1, 2, 19, 8)
    options = {"block_size": 4, "num_blocks": 3, "is_causal": True}
    one, other = (block_top_k.block_top_k_attention(*x, **options) for x in ((q, k, v), later))
    torch.testing.assert_close(one[:, :, :31], other[:, :, :31])


@pytest.mark.parametrize("name", ["top_k", "block_top_k"])
def test_dropout_drops_the_same_weights_in_backward(name: str) -> None:
    torch.manual_seed(0)  # the choice of keys jumps: a step across such a point has no slope
    q = torch.randn(1, 2, 20, 4, dtype=torch.double, requires_grad=True)

    def attend(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        if name == "top_k":
            return top_k.top_k_attention(x, x, x, num_kept=5, dropout=0.3)
        return block_top_k.block_top_k_attention(x, x, x, block_size=4, num_blocks=2, dropout=0.3)

    assert not torch.equal(attend(q), attend(q * 1.0 + 0.1))
    torch.testing.assert_close(attend(q), attend(q))
    direction = torch.randn_like(q)
    (grad,) = torch.autograd.grad(attend(q).sum(), q)
    with torch.no_grad():
        slope = (attend(q + 1e-6 * direction) - attend(q - 1e-6 * direction)).sum() / 2e-6
    torch.testing.assert_close((grad * direction).sum(), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [top_k.top_k, block_top_k.block_top_k])
def test_what_is_shipped_with_a_model_imports_torch_only(function: Any) -> None:
    found = set()
    shipped = cut_out(f"attention:{function.__name__}", function)
    compile(shipped, "shipped", "exec")
    for node in ast.walk(ast.parse(shipped)):
        if isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
    assert found <= {"__future__", "collections", "dataclasses", "math", "torch", "typing"}


# ── names and options ──


def test_the_same_words_give_the_same_name_and_defaults_are_not_said() -> None:
    assert registry.use("sdpa") == "sdpa"
    assert registry.use("top_k") == registry.use({"name": "top_k", "k": 64}) == "top_k"
    assert registry.use({"name": "top_k", "k": 16}) == "top_k(k=16)"
    said = {"num_blocks": 2, "name": "block_top_k", "block_size": 4}
    assert registry.use(said) == "block_top_k(block_size=4,num_blocks=2)"


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="block_size") as caught:
        registry.use({"name": "block_top_k", "blocksize": 4})
    assert caught.value.code == "plugin.wrong_option"
    with pytest.raises(PluginError, match="It has none"):
        registry.use({"name": "sdpa", "k": 4})


def test_a_function_that_does_not_know_is_causal_gets_every_causal_mask() -> None:
    def plain(module: Any, query: Any, key: Any, value: Any, attention_mask: Any) -> Any: ...

    mask = registry.mask_function(plain)(batch_size=2, q_length=5, kv_length=5)
    assert mask.shape == (2, 1, 5, 5)
    assert mask.dtype == torch.bool
    assert not mask[0, 0, 0, 1]
    assert registry.mask_function(top_k.top_k)(batch_size=2, q_length=5, kv_length=5) is None


# ── the probe ──


def dense(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    temperature: float = 1.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores / temperature
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -1e9)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def refused(config: Any, function: Any, **options: Any) -> ModelError:
    plugins.register("attention", "own", function, replace=True)
    with pytest.raises(ModelError) as caught:
        probe.probe(config, {"name": "own", **options})
    return caught.value


@pytest.mark.parametrize("said", OURS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_probe_accepts_ours_everywhere(name: str, said: Any) -> None:
    probe.probe(CONFIGS[name], said)


def test_the_probe_accepts_a_dense_function_of_the_users() -> None:
    plugins.register("attention", "own", dense)
    for name in ("bert", "modernbert", "gpt2", "t5"):
        probe.probe(CONFIGS[name], "own")


@pytest.mark.parametrize("said", OURS[:2])
def test_the_probe_leaves_a_model_as_it_was(said: str) -> None:
    model = T5EncoderModel(copy.deepcopy(CONFIGS["t5"]))  # it writes into its config
    model.train()
    before, draws = model.config._attn_implementation, torch.get_rng_state()
    probe.probe(model, said)
    assert model.config._attn_implementation == before
    assert model.training
    assert torch.equal(torch.get_rng_state(), draws)


def test_a_model_that_never_calls_it_is_refused() -> None:
    with pytest.raises(ModelError, match="DebertaV2Model never calls") as caught:
        probe.probe(DebertaV2Config(**SMALL), "top_k")
    assert caught.value.code == "model.attention_not_called"


def test_a_function_that_ignores_its_mask_is_refused() -> None:
    def blind(*call: Any, **kwargs: Any) -> Any:
        return dense(*call[:4], None, **kwargs)

    assert refused(CONFIGS["bert"], blind).code == "model.attention_no_mask"


def test_a_mask_that_never_arrives_is_refused() -> None:
    def unmasked(*call: Any, **kwargs: Any) -> Any:
        return dense(*call, **kwargs)

    unmasked.mask_function = lambda **_asked: None  # type: ignore[attr-defined]
    error = refused(CONFIGS["bert"], unmasked)
    assert error.code == "model.attention_no_mask"
    assert "gets no mask" in error.message


def test_a_function_that_ignores_position_bias_is_refused() -> None:
    def biased(*call: Any, position_bias: Any = None, **kwargs: Any) -> Any:
        return dense(*call, **kwargs)

    assert refused(CONFIGS["t5"], biased).code == "model.attention_ignores_bias"


def test_a_function_that_raises_is_refused_with_its_own_words() -> None:
    error = refused(CONFIGS["llama"], dense)  # it does not know that heads share keys
    assert error.code == "model.attention_failed"
    assert "heads share keys" in error.next_step
    with pytest.raises(ModelError, match="softcap"):
        probe.probe(Gemma2Config(**GROUPED), "top_k")


def test_a_wrong_shape_is_refused_naming_both_shapes() -> None:
    def turned(*call: Any, **kwargs: Any) -> Any:
        return dense(*call, **kwargs)[0].transpose(1, 2), None

    error = refused(CONFIGS["bert"], turned)
    assert error.code == "model.attention_failed"
    assert "(2, 4, 24, 8)" in error.message
    assert "(2, 24, 4, 8)" in error.message


def test_one_that_differs_from_dense_is_refused_with_the_figure_and_the_layer() -> None:
    error = refused(CONFIGS["bert"], dense, temperature=1.01)
    assert error.code == "model.attention_differs"
    assert "encoder.layer.0" in error.message
    assert "e-0" in error.message


def test_one_that_says_it_is_sparse_is_held_to_mask_and_bias_only() -> None:
    def sparse(*call: Any, **kwargs: Any) -> Any:
        return dense(*call, **{**kwargs, "temperature": 0.5})

    def blind(*call: Any, **kwargs: Any) -> Any:
        return dense(*call[:4], None, **kwargs)

    sparse.is_sparse = blind.is_sparse = True  # type: ignore[attr-defined]
    plugins.register("attention", "own", sparse)
    probe.probe(CONFIGS["t5"], "own")
    assert refused(CONFIGS["bert"], blind).code == "model.attention_no_mask"


@pytest.mark.parametrize("said", OURS[2:], ids=str)
def test_a_cache_does_not_change_the_answer(said: Any) -> None:
    probe.check_generation(LlamaForCausalLM(CONFIGS["llama"]), said)
    probe.check_generation(GPT2LMHeadModel(CONFIGS["gpt2"]), said)


def test_one_that_lets_queries_decide_for_each_other_fails_with_a_cache() -> None:
    def mean_of_queries(module: Any, query: Any, *call: Any, **kwargs: Any) -> Any:
        return dense(module, query - query.mean(2, keepdim=True), *call, **kwargs)

    plugins.register("attention", "own", mean_of_queries)
    config = copy.deepcopy(CONFIGS["gpt2"])
    config.initializer_range = 0.5  # scores far from 0, so that it matters what is read
    torch.manual_seed(0)
    with pytest.raises(ModelError) as caught:
        probe.check_generation(GPT2LMHeadModel(config), "own")
    assert caught.value.code == "model.attention_cache"


def test_a_little_depends_on_the_cache_and_is_found() -> None:
    def sharper(module: Any, query: Any, *call: Any, **kwargs: Any) -> Any:
        return dense(module, query * (1 + 1e-4 * query.shape[2]), *call, **kwargs)

    plugins.register("attention", "own", sharper)
    config = copy.deepcopy(CONFIGS["gpt2"])
    config.initializer_range = 0.5
    torch.manual_seed(0)
    with pytest.raises(ModelError) as caught:
        probe.check_generation(GPT2LMHeadModel(config), "own")
    assert caught.value.code == "model.attention_cache"
