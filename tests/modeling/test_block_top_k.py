"""Block-sparse attention where it is hardest: strange scores, few queries, second derivatives."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from autoglm.modeling.attention import block_choice, block_top_k


@pytest.mark.parametrize(
    "spoil",
    [
        lambda q, k: (q * 1e20, k * 1e20),
        lambda q, k: ((q * 200).half(), (k * 200).half()),
        lambda q, k: (q, k.index_fill(2, torch.tensor(21), float("nan"))),
        lambda q, k: (q, k.index_fill(2, torch.tensor(21), float("inf"))),
        lambda q, k: (q * 0, k),
    ],
    ids=["too_large", "too_large_for_half", "nan", "inf", "nothing_but_zeros"],
)
@pytest.mark.parametrize("num_blocks", [1, 3, block_choice.MANY + 1])
def test_no_score_makes_a_query_read_a_block_twice_or_leave_out_its_own(
    spoil: Any, num_blocks: int
) -> None:
    q, k = spoil(torch.randn(1, 2, 40, 8), torch.randn(1, 2, 40, 8))
    how = block_top_k.How(block_size=2, num_blocks=num_blocks)
    torch.set_flush_denormal(True)  # a CPU may take the smallest numbers for 0
    try:
        chosen = block_choice.choose_blocks(q, k, None, how).long()
    finally:
        torch.set_flush_denormal(False)
    assert (chosen.sort(-1).values.diff(dim=-1) > 0).all()
    assert (chosen == torch.arange(40)[:, None] // 2).any(-1).all()
    if (
        num_blocks > 1 and k.isnan().any()
    ):  # nobody who would see a NaN in dense attention misses it
        assert (chosen == 10).any(-1).all()


def test_nearly_equal_blocks_are_chosen_alike_however_many_come_later() -> None:
    places = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    k = (1 + places * 2.0**-20).repeat_interleave(2)[None, None, :, None]
    how = block_top_k.How(block_size=2, num_blocks=4, is_causal=True)
    whole = block_choice.choose_blocks(torch.ones_like(k), k, None, how)
    first = block_choice.choose_blocks(torch.ones_like(k[:, :, :60]), k[:, :, :60], None, how)
    assert torch.equal(whole[:, :, 6:60], first[:, :, 6:])  # those that see enough blocks


@pytest.mark.parametrize("num_queries", [1, 7, 40, 70])
def test_a_graph_for_any_length_reads_the_same_keys(num_queries: int) -> None:
    q, k = torch.randn(2, 4, num_queries, 8), torch.randn(2, 2, 40, 8)
    mask = torch.rand(2, 1, 1, 40) < 0.8
    for is_causal in (False, True):
        how = block_top_k.How(block_size=6, num_blocks=3, is_causal=is_causal)
        chosen = block_choice.choose_blocks(q, k, mask, how)
        seen = mask & torch.ones(num_queries, 40, dtype=torch.bool)
        seen = seen.tril() if is_causal else seen
        read = block_top_k._as_mask(chosen, seen, how, 40)
        assert torch.equal(read, block_choice.mask_for_any_length(q, k, mask, how))


def test_a_causal_query_is_at_its_own_place_also_among_more_keys() -> None:
    q, k, v = torch.randn(1, 2, 9, 4), *torch.randn(2, 1, 2, 40, 4).unbind(0)
    options = {"block_size": 4, "num_blocks": 2, "is_causal": True}
    found = block_top_k.block_top_k_attention(q, k, v, **options)
    few = block_top_k.block_top_k_attention(q, k[:, :, :9], v[:, :, :9], **options)
    torch.testing.assert_close(found, few)


@pytest.mark.parametrize("shape", [(1, 2, 0, 4), (0, 2, 40, 4)])
def test_no_query_gives_no_row(shape: tuple[int, ...]) -> None:
    q, k = torch.randn(shape, requires_grad=True), torch.randn(shape[0], 2, 40, 4)
    found = block_top_k.block_top_k_attention(q, k, k, block_size=4, num_blocks=2)
    found.sum().backward()
    assert found.shape == shape


def test_a_nan_in_one_samples_gradient_stays_in_that_sample() -> None:
    qkv = [torch.randn(2, 2, 40, 4, requires_grad=True) for _ in range(3)]
    found = block_top_k.block_top_k_attention(*qkv, block_size=4, num_blocks=2)
    grad = torch.ones_like(found)
    grad[1, 0, 3] = float("nan")
    for x in torch.autograd.grad(found, qkv, grad):
        assert torch.isfinite(x[0]).all()
        assert x[1].isnan().any()


def test_a_nan_in_one_sample_stays_in_that_sample() -> None:
    qkv = [torch.randn(2, 2, 40, 4, requires_grad=True) for _ in range(3)]
    with torch.no_grad():
        qkv[0][0] = float("nan")
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[1, ..., 4:] = False  # fewer blocks than it could read
    found = block_top_k.block_top_k_attention(*qkv, mask=mask, block_size=4, num_blocks=3)
    for x in (found, *torch.autograd.grad(found.sum(), qkv)):
        assert torch.isfinite(x[1]).all()


@pytest.mark.parametrize("value_dim", [4, 6])
def test_a_second_derivative_is_refused_rather_than_wrong(value_dim: int) -> None:
    q, v = torch.randn(1, 2, 40, 4, requires_grad=True), torch.randn(1, 2, 40, value_dim)
    found = block_top_k.block_top_k_attention(q, q, v, block_size=4, num_blocks=2)
    (grad,) = torch.autograd.grad((found**2).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        (grad**2).sum().backward()


@pytest.mark.parametrize(("batch", "num_queries"), [(1, 1), (16, 1), (2, 300), (1, 1024)])
def test_the_buffer_of_parts_holds_them_and_little_more(batch: int, num_queries: int) -> None:
    q, k = torch.randn(batch, 4, num_queries, 4), torch.randn(batch, 2, 1024, 4)
    how = block_top_k.How(block_size=16, num_blocks=4)
    chosen = block_choice.choose_blocks(q, k, None, how)
    inputs = block_top_k._Inputs.of(q, k, k, (None, None), how)
    needed = max(len(layout.is_empty) for layout in block_top_k._layouts(chosen, inputs))
    assert needed <= inputs.num_slots(chosen) <= 2 * needed


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
def test_compiled_it_gives_the_same() -> None:
    q = torch.randn(1, 2, 40, 4, requires_grad=True)
    attend = partial(block_top_k.block_top_k_attention, block_size=4, num_blocks=2)
    found = torch.compile(attend, backend="aot_eager")(q, q, q)
    torch.testing.assert_close(found, attend(q, q, q))
    grads = [torch.autograd.grad(x.sum(), q)[0] for x in (found, attend(q, q, q))]
    torch.testing.assert_close(*grads)
