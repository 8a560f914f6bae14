"""States of frozen layers are computed once per row, and are the same whoever asks."""

from __future__ import annotations

import copy
import itertools
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.training import toy
from torch import Tensor
from transformers import BertConfig, DeepseekV3Config, ElectraConfig, EsmConfig, MixtralConfig

from autoglm.modeling.body import Body
from autoglm.modeling.frozen import frozen_keys
from autoglm.reuse.keys import row_key
from autoglm.reuse.prefix_cache import (
    BLOCK_TOKENS,
    LONG,
    EncodeBlock,
    Prefix,
    PrefixCache,
    RowStates,
    blocks,
    packed_blocks,
)
from autoglm.training.frozen_part import FrozenPart

DEEP = BertConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
)


class Asked:
    """A model whose rows are asked for through a cache; counts the tokens that its layers see."""

    def __init__(
        self,
        cache: PrefixCache,
        ids: list[list[int]],
        *,
        num_frozen: int = 2,
        also: tuple[int, ...] = (),
        attention: str = "sdpa",
        precision: str = "fp32",
    ) -> None:
        """In half precision all rows but the last are learnt from."""
        self.model = toy.model(config=DEEP)
        self.model.backbone.set_attn_implementation(attention)
        self.seen = [0] * 3
        body = Body(self.model.backbone, pad_id=0, num_frozen=num_frozen)
        self.part = FrozenPart(
            self.model, ids, body, cache=cache, start_name="toy", stop=lambda: None, also=also,
            num_half=len(ids) - 1, precision=precision,
        )  # fmt: skip
        for number, layer in enumerate(self.model.backbone.encoder.layer):
            layer.register_forward_hook(self._counting(number))

    def states(self) -> RowStates:
        return self.part.states(2)

    def pooled(self) -> RowStates:
        found = self.part.pooled()
        assert found is not None
        return found

    def _counting(self, number: int) -> Any:
        def count(_layer: Any, given: tuple[Tensor, ...], _out: Any) -> None:
            self.seen[number] += given[0].shape[1]

        return count


def same(left: RowStates, right: RowStates) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.parts, right.parts, strict=True))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "said", [{}, {"attention": "eager"}, {"precision": "bf16"}], ids=["sdpa", "eager", "bf16"]
)
def test_a_changed_row_alone_is_encoded_and_every_row_has_the_bytes_of_a_full_pass(
    tmp_path: Path, said: dict[str, str]
) -> None:
    ids = toy.ids(40, seed=1, longest=30)
    before = Asked(PrefixCache(2**24, tmp_path / "one"), ids, **said).part.states(2)
    assert before.encoded == 40
    changed = [*ids[:17], [5, 6, 7, 8, 9], *ids[18:39][::-1], ids[39]]
    again, anew = (
        Asked(PrefixCache(2**24, tmp_path / name), changed, **said).part.states(2)
        for name in ("one", "two")
    )
    assert again.encoded == 1
    assert anew.encoded == len({tuple(row) for row in changed})
    assert same(again, anew)
    assert all(torch.equal(again.parts[i], before.parts[i]) for i in range(17)), (
        "where a row stands does not count"
    )


DECODER = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(
            **{**DECODER, "hidden_size": 128, "intermediate_size": 256}, num_key_value_heads=2,
            num_local_experts=16, num_experts_per_tok=2,
        ),
        DeepseekV3Config(
            **DECODER, num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=2,
        ),
    ],
    ids=["products as large as an expert has tokens", "values narrower than keys"],
)  # fmt: skip
def test_a_rows_bytes_are_its_own_where_torchs_products_look_at_all_rows(config: Any) -> None:
    model, ids = toy.model(config=config), toy.ids(120, longest=44)

    def pooled(rows: list[int]) -> RowStates:
        backbone = copy.deepcopy(model)
        body, asked = Body(backbone.backbone, pad_id=0), [ids[i] for i in rows]
        cache = PrefixCache(2**24)
        part = FrozenPart(
            backbone, asked, body, cache=cache, start_name="toy", stop=lambda: None
        ).pooled()
        assert part is not None
        return part

    whole = pooled(list(range(120)))
    for rows in ([5], [60], [110], list(range(60, 120)), list(range(1, 120, 2)), [*range(6, 40)]):
        some = pooled(rows)
        assert all(torch.equal(x, whole.parts[i]) for x, i in zip(some.parts, rows, strict=True))


def test_what_known_rows_saved_is_what_they_took_whatever_a_changed_row_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 0.0

    def encode(block: EncodeBlock, _below: Any) -> Tensor:
        nonlocal seconds
        seconds += 1.0
        return torch.ones(10 * len(block.rows), 4)

    monkeypatch.setattr("autoglm.reuse.prefix_cache.time.process_time", lambda: seconds)
    prefix = Prefix(key="k", width=4, encode=encode, divide=packed_blocks)
    keys = [row_key([i]) for i in range(1021)]
    PrefixCache(2**20, tmp_path).states(prefix, keys[:1020], [10] * 1020)
    assert seconds == 10.0
    one = PrefixCache(2**20, tmp_path).states(prefix, keys, [10] * 1021)
    assert (one.encoded, one.cpu_seconds) == (1, 1.0)
    assert one.saved_seconds == pytest.approx(10.0)
    again = PrefixCache(2**20, tmp_path).states(prefix, keys, [10] * 1021)
    assert again.saved_seconds == pytest.approx(11.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deeper_boundary_is_made_from_a_shallower_one_to_the_same_bytes(
    tmp_path: Path, precision: str
) -> None:
    ids = toy.ids(20, longest=20)
    cache = PrefixCache(2**24, tmp_path / "one")
    Asked(cache, ids, num_frozen=1, precision=precision).part.states(1)
    deeper = Asked(cache, ids, precision=precision)
    found = deeper.part.states(2)
    assert deeper.seen[0] == 0
    assert deeper.seen[1] > 0
    alone = Asked(PrefixCache(2**24, tmp_path / "two"), ids, precision=precision)
    assert same(found, alone.part.states(2))


def test_in_half_precision_only_what_is_learnt_from_is_kept_so(tmp_path: Path) -> None:
    ids, cache = toy.ids(20, longest=20), PrefixCache(2**24, tmp_path)
    exact, half = (Asked(cache, ids, precision=name) for name in ("fp32", "bf16"))
    for asked in (Asked.states, Asked.pooled):
        left, right = asked(exact), asked(half)
        assert left.encoded == right.encoded == 20
        assert torch.equal(left.parts[19], right.parts[19])
        for wanted, found in zip(left.parts[:19], right.parts[:19], strict=True):
            apart = (wanted - found).abs().max() / wanted.abs().max()
            assert 0 < apart < 2**-5
    assert Asked(cache, ids, precision="fp16").states().encoded == 0, "it overflows"


def test_what_other_trials_ask_for_is_kept_on_the_way_and_costs_nothing_then(
    tmp_path: Path,
) -> None:
    ids = toy.ids(20, longest=20)
    cache = PrefixCache(2**24, tmp_path)
    first = Asked(cache, ids, num_frozen=3, also=(1, 2))
    assert first.part.pooled() is not None
    tokens = first.seen[0]
    assert first.seen == [tokens] * 3, "one pass"
    later = Asked(cache, ids, num_frozen=1)
    assert later.part.states(1).encoded == later.part.states(2).encoded == 0
    assert later.seen == [0] * 3
    alone = Asked(PrefixCache(2**24), ids, num_frozen=1)
    assert same(later.part.states(1), alone.part.states(1))


def test_pooled_rows_are_one_vector_each_whatever_lies_below(tmp_path: Path) -> None:
    ids = toy.ids(20, longest=20)
    cache = PrefixCache(2**24, tmp_path)
    Asked(cache, ids).part.states(2)
    from_states, from_tokens = Asked(cache, ids), Asked(PrefixCache(2**24), ids)
    pooled, alone = from_states.part.pooled(), from_tokens.part.pooled()
    assert pooled is not None
    assert alone is not None
    assert from_states.seen[:2] == [0, 0]
    assert {tuple(part.shape) for part in pooled.parts} == {(1, 32)}
    assert same(pooled, alone)
    model, rows = toy.model(config=DEEP), [ids[0]]
    wanted = model.pooled(model.backbone(torch.tensor(rows))[0], torch.ones(1, len(ids[0])))
    assert torch.allclose(pooled.parts[0], wanted, rtol=1e-5, atol=1e-6)


def test_in_memory_the_deeper_states_stay_where_both_have_no_room() -> None:
    ids = toy.ids(20, longest=20)
    size = 4 * 32 * sum(map(len, ids))
    cache = PrefixCache(size * 3 // 2)
    Asked(cache, ids).part.states(1)
    Asked(cache, ids).part.states(2)
    again = Asked(cache, ids).part
    assert again.states(2).encoded == 0
    assert not cache.has(again.names(1)[0])


def test_a_damaged_or_lost_segment_is_a_miss(tmp_path: Path) -> None:
    ids = toy.ids(20)
    whole = Asked(PrefixCache(2**24, tmp_path), ids).part.states(2)
    (segment,) = tmp_path.glob("*/*.safetensors")
    content = bytearray(segment.read_bytes())
    content[-5] ^= 1
    segment.write_bytes(content)
    again = Asked(PrefixCache(2**24, tmp_path), ids).part.states(2)
    assert again.encoded > 0
    assert same(again, whole)
    (segment,) = tmp_path.glob("*/*.safetensors")
    segment.write_bytes(segment.read_bytes()[:100])
    cache = PrefixCache(2**24, tmp_path)
    assert Asked(cache, ids).part.states(2).encoded > 0
    shutil.rmtree(tmp_path)
    gone = Asked(cache, [*ids, [1, 2, 3]]).part.states(2)
    assert same(gone, Asked(PrefixCache(2**24), [*ids, [1, 2, 3]]).part.states(2))


def test_without_a_place_on_disk_states_stay_in_memory(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    cache = PrefixCache(2**24, tmp_path / "cache")
    assert Asked(cache, toy.ids(9)).part.states(2).encoded > 0
    assert Asked(cache, toy.ids(9)).part.states(2).encoded == 0


def test_everything_that_decides_a_state_is_in_its_name() -> None:
    names = frozen_keys(toy.backbone(DEEP))
    assert names == frozen_keys(toy.backbone(DEEP))
    assert len(set(names)) == 4
    other = toy.backbone(DEEP)
    with torch.no_grad():
        next(other.encoder.layer[1].parameters())[0] += 1
    assert [a == b for a, b in zip(names, frozen_keys(other), strict=True)] == [
        True,
        True,
        False,
        False,
    ]
    shallow = toy.backbone(DEEP)
    shallow.encoder.layer = shallow.encoder.layer[:2]
    shallow.config.num_hidden_layers = 2
    assert frozen_keys(shallow) == names[:3]
    config = copy.deepcopy(DEEP)
    config.layer_norm_eps = 1e-3
    assert not set(frozen_keys(toy.backbone(config))) & set(names)
    eager = toy.backbone(DEEP)
    eager.set_attn_implementation("eager")
    assert not set(frozen_keys(eager)) & set(names)
    packed = toy.backbone(DEEP)
    Body(packed, pad_id=0)
    assert frozen_keys(packed) == names


def test_what_saves_least_per_byte_goes_first_and_what_is_in_use_never(tmp_path: Path) -> None:
    def filled(cache: PrefixCache, name: str, *, uses: int = 1) -> None:
        cache.begin()
        for _ in range(uses):
            prefix = Prefix(key=name, width=256, encode=lambda b, _s: torch.ones(len(b.rows), 256))
            cache.states(prefix, [row_key([i]) for i in range(100)], [1] * 100)

    # 100 KiB each: three of them pass the limit.
    cache = PrefixCache(280 * 1024, tmp_path)
    filled(cache, "a", uses=50)
    filled(cache, "b")
    filled(cache, "c")
    assert cache.has("a")
    assert not cache.has("b")
    assert cache.has("c")
    holder = textwrap.dedent(
        f"""
        import torch, sys
        from pathlib import Path
        from autoglm.reuse.prefix_cache import Prefix, PrefixCache
        cache = PrefixCache(2**20, Path({str(tmp_path)!r}))
        cache.states(Prefix(key="c", width=256, encode=None), [], [])
        print("held", flush=True)
        sys.stdin.read()
        """
    )
    command = [sys.executable, "-c", holder]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        filled(cache, "d")
        assert cache.has("c"), "another process has it in use"
        assert not cache.has("a")
        assert process.stdin is not None
        process.stdin.close()
    filled(cache, "e")
    assert not cache.has("c") or not cache.has("d")


@pytest.mark.parametrize(
    "config",
    [
        EsmConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=64, pad_token_id=0, mask_token_id=4,
        ),
        ElectraConfig(
            vocab_size=60, embedding_size=16, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
        ),
    ],
    ids=["a norm behind all layers", "a projection before them"],
)  # fmt: skip
def test_a_backbone_that_does_more_than_its_layers_is_not_cut_and_says_so(config: Any) -> None:
    body = Body(toy.backbone(config), pad_id=0, num_frozen=1)
    assert not body.is_cut
    assert "cut" in body.why_whole
    events: list[Any] = []
    start = toy.model(config=config)
    more = {"start": start, "trainable_layers": 1, "epochs": 1, "dropout": 0.0, "events": events}
    kept, plain = toy.train(**more), toy.train(**more, cache=PrefixCache(0))
    assert "cut" in next(e for e in events if e["kind"] == "prefix")["reason"]
    assert kept.metrics == pytest.approx(plain.metrics, abs=1e-4)


def test_blocks_have_one_shape_per_length() -> None:
    lengths = [3, 200, 3, 7, 200, 200] + [3] * 200
    seen: dict[int, set[int]] = {}
    rows: list[int] = []
    for block in blocks(range(len(lengths)), lengths):
        assert len({lengths[i] for i in block.rows}) == 1
        seen.setdefault(lengths[block.rows[0]], set()).add(len(block.rows))
        rows += block.rows
    assert set(rows) == set(range(len(lengths)))
    assert all(len(sizes) == 1 for sizes in seen.values())


@given(st.lists(st.integers(1, 2 * LONG), max_size=200))
def test_packed_blocks_have_one_shape_but_for_long_rows(lengths: list[int]) -> None:
    found = list(packed_blocks(range(len(lengths)), lengths))
    assert sorted(i for block in found for i in block.rows) == list(range(len(lengths)))
    for block in found:
        own = [lengths[i] for i in block.rows]
        assert own == sorted(own, reverse=True)
        assert own[0] > LONG or sum(own) + block.num_fill == BLOCK_TOKENS
        assert own[0] <= LONG or (len(own), block.num_fill) == (1, 0)
    # A block is begun when nothing that is left fits into the one before.
    for block, later in itertools.pairwise(b for b in found if lengths[b.rows[0]] <= LONG):
        assert block.num_fill < min(lengths[i] for i in later.rows)


def test_training_over_kept_states_gives_the_bytes_of_training_that_fills_them(
    tmp_path: Path,
) -> None:
    events: list[Any] = []
    more = {"trainable_layers": 1, "events": events}
    first = toy.train(cache=PrefixCache(2**24, tmp_path), **more)
    second = toy.train(cache=PrefixCache(2**24, tmp_path), **more)
    told = [e for e in events if e["kind"] == "prefix"]
    assert [e["encoded"] > 0 for e in told] == [True, False]
    assert {e["boundary"] for e in told} == {1}
    assert all(torch.equal(t, second.weights[n]) for n, t in first.weights.items())
    assert second.saved["cache"] >= first.saved["cache"]
    uncached = toy.train(cache=PrefixCache(0), **more)
    assert events[-1]["kind"] == "evaluation"
    assert (
        next(e for e in reversed(events) if e["kind"] == "prefix")["reason"]
        == "cache.prefix is off"
    )
    for name, tensor in first.weights.items():
        assert torch.allclose(tensor, uncached.weights[name], rtol=1e-3, atol=1e-4), name


def test_kept_states_are_what_the_frozen_part_says_inside_a_batch() -> None:
    kept = toy.trainer(trainable_layers=1, cache=PrefixCache(2**24))
    asked = toy.trainer(trainable_layers=1, cache=PrefixCache(0))
    for one in (kept, asked):
        one._prepare()
        one._model.eval()
    rows = sorted(range(8), key=lambda i: -len(kept._data.ids[i]))
    with torch.no_grad():
        left, right = kept._forward.features(rows), asked._forward.features(rows)
    assert (left - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize("num_learning", [0, 1])
@pytest.mark.parametrize("way", ["writes", "writes data", "hooks"])
def test_an_algorithm_that_reaches_below_the_boundary_switches_kept_states_off(
    way: str, num_learning: int
) -> None:
    class Reaches:
        def apply(self, moment: str, state: Any) -> None:
            if moment != "step" or state.step != 3:
                return
            table = state.model.backbone.embeddings
            if way == "writes":
                with torch.no_grad():
                    table.word_embeddings.weight.mul_(0.5)
            elif way == "writes data":
                table.word_embeddings.weight.data.mul_(0.5)
            else:
                table.register_forward_hook(lambda _m, _given, out: out * 0.5)

    more: Any = {"trainable_layers": num_learning, "dropout": 0.0}
    kept = toy.trainer(**more, algorithms=[Reaches()])
    asked = toy.trainer(**more, algorithms=[Reaches()], cache=PrefixCache(0))
    found, wanted = kept.train(threading.Event()), asked.train(threading.Event())
    assert kept._forward.why_not_kept
    for name, tensor in wanted.weights.items():
        assert torch.allclose(found.weights[name], tensor, rtol=1e-3, atol=1e-4), name


def test_two_processes_that_want_the_same_rows_encode_each_once(tmp_path: Path) -> None:
    """Two caches on one folder know no more of each other than two processes do."""
    ids = toy.ids(40)
    keys, lengths = [row_key(row) for row in ids], [len(row) for row in ids]
    both, encoded = threading.Barrier(2), []

    def encode(block: EncodeBlock, _below: Any) -> Tensor:
        encoded.append(1)
        return torch.ones(sum(lengths[i] for i in block.rows), 4)

    def ask(into: list[RowStates]) -> None:
        cache = PrefixCache(2**20, tmp_path)
        both.wait(60)
        into.append(cache.states(Prefix(key="k", width=4, encode=encode), keys, lengths))

    answers: list[RowStates] = []
    threads = [threading.Thread(target=ask, args=(answers,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    num_rows = len({*keys})
    assert sorted(answer.encoded for answer in answers) == [0, num_rows]
    assert len(encoded) == sum(1 for _ in blocks(range(num_rows), [len(i) for i in _unlike(ids)]))


def _unlike(ids: list[list[int]]) -> list[list[int]]:
    return list({row_key(row): row for row in ids}.values())
