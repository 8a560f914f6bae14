"""Our two sparse attentions beside torch's SDPA and eager attention: time, memory, quality.

`python -m benchmarks.attention [--quick] [--json] [--rounds N]`. Each case runs in a process of
its own, ours and the peers in turn, round by round, so that a busy minute hits both. Memory is the
process's peak above what it held before the inputs were made: inputs, output and gradients count.
All figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "attention.json"
SHAPES = {16384: (1, 12, 16384, 32), 4096: (1, 4, 4096, 64), 1024: (1, 4, 1024, 32)}
TARGETS_LEAST = {"forward_over_sdpa": 4.0, "forward_backward_over_sdpa": 6.0, "needle": 0.99}
TARGETS_MOST = {
    "forward_memory_over_sdpa": 1.5,
    "forward_backward_memory_over_sdpa": 1.5,
    "top_k_memory_over_eager": 0.45,
}
NUM_KEYS, NUM_VALUES, NUM_FILLER, NUM_PLANTED = 16, 16, 256, 8
STAGES = ((128, 64, 300), (2048, 16, 40), (8192, 8, 40))  # length, batch, steps


def attention_of(name: str) -> Callable[..., Any]:
    from torch.nn import functional as F

    from autoglm.modeling.attention.block_top_k import block_top_k_attention
    from autoglm.modeling.attention.top_k import top_k_attention

    def eager(q: Any, k: Any, v: Any) -> Any:
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v

    known: dict[str, Callable[..., Any]] = {
        "block_top_k": block_top_k_attention,
        "top_k": lambda q, k, v: top_k_attention(q, k, v, num_kept=64),
        "sdpa": F.scaled_dot_product_attention,
        "eager": eager,
    }
    return known[name]


def _status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def case(name: str, mode: str, length: int) -> dict[str, float]:
    """One attention, `forward` or `forward_backward`, in this process."""
    import torch

    attend, is_training = attention_of(name), mode == "forward_backward"

    def run(shape: tuple[int, ...]) -> tuple[float, float]:
        torch.manual_seed(0)
        q, k, v = (torch.randn(shape, requires_grad=is_training) for _ in range(3))
        cpu, wall = time.process_time(), time.perf_counter()
        with torch.set_grad_enabled(is_training):
            output = attend(q, k, v)
        if is_training:
            output.backward(q.detach())
        return time.process_time() - cpu, time.perf_counter() - wall

    batch, heads, _, dim = SHAPES[length]
    run((batch, 1, 2048, dim))  # what is loaded and started once is no attention's memory
    before = _status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    cpu, wall = run(SHAPES[length])
    return {"cpu_s": cpu, "wall_s": wall, "peak_mib": _status_mib("VmHWM") - before}


def needle(name: str, seed: int) -> dict[str, float]:
    """Accuracy at 8,192 tokens of one attention layer that is asked for one of eight planted
    key-value tokens. Trained with the attention it is judged by, from short texts to long ones.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(seed)
    attend, heads, dim = attention_of(name), 2, 32
    width = heads * dim
    tables = nn.ModuleDict(
        {
            "word": nn.Embedding(NUM_FILLER + 1, width),
            "key": nn.Embedding(NUM_KEYS, width),
            "value": nn.Embedding(NUM_VALUES, width),
            "asked": nn.Embedding(NUM_KEYS, width),
            "read": nn.Linear(width, 3 * width, bias=False),
            "answer": nn.Linear(width, NUM_VALUES),
        }
    )

    def texts(batch: int, length: int) -> tuple[Any, Any, Any]:
        """(batch, length, width) and what is asked for; the question stands at the end."""
        words = torch.randint(NUM_FILLER, (batch, length))
        keys = torch.rand(batch, NUM_KEYS).argsort(1)[:, :NUM_PLANTED]
        values = torch.randint(NUM_VALUES, (batch, NUM_PLANTED))
        places = torch.rand(batch, length - 1).argsort(1)[:, :NUM_PLANTED]
        words[torch.arange(batch)[:, None], places] = NUM_FILLER
        hidden = tables["word"](words)
        planted = tables["key"](keys) + tables["value"](values)
        hidden = hidden.scatter_add(1, places[..., None].expand_as(planted), planted)
        last = torch.zeros(batch, length, 1)
        last[:, -1] = 1.0
        return hidden + last * tables["asked"](keys[:, :1]), values[:, 0], keys

    def logits(hidden: Any, *, num_queries: int) -> Any:
        batch, length, _ = hidden.shape
        read = tables["read"](hidden).view(batch, length, 3, heads, dim).permute(2, 0, 3, 1, 4)
        q, k, v = read.unbind(0)
        out = attend(q[:, :, -num_queries:], k, v)[:, :, -1]
        return tables["answer"](out.reshape(batch, width))

    cpu = time.process_time()
    optimizer = torch.optim.AdamW(tables.parameters(), lr=3e-3, weight_decay=0.0)
    for length, batch, steps in STAGES:
        for _ in range(steps):
            hidden, answer, _ = texts(batch, length)
            loss = F.cross_entropy(logits(hidden, num_queries=1), answer)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(tables.parameters(), 1.0)
            optimizer.step()
    right = total = 0
    with torch.no_grad():
        for _ in range(32):
            hidden, answer, _ = texts(16, STAGES[-1][0])
            right += int((logits(hidden, num_queries=1).argmax(-1) == answer).sum())
            total += len(answer)
        # Every query at once must give the last one the same answer as the last one alone.
        hidden, _, _ = texts(2, STAGES[-1][0])
        alone, all_queries = (logits(hidden, num_queries=n) for n in (1, STAGES[-1][0]))
    return {
        "accuracy": right / total,
        "num_questions": total,
        "cpu_s": time.process_time() - cpu,
        "largest_difference_all_queries": float((alone - all_queries).abs().max()),
    }


def child(*arguments: object) -> dict[str, float]:
    # Threads that wait asleep: on a shared machine CPU-seconds then count work, not waiting.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "benchmarks.attention", "--child", *map(str, arguments)]
    found: dict[str, float] = json.loads(
        subprocess.check_output(command, env=environment, cwd=Path(__file__).parents[1])
    )
    return found


def in_turn(names: Sequence[str], mode: str, length: int, rounds: int) -> dict[str, Any]:
    """Medians of `rounds` processes per attention, one of each at a time."""
    found = [{name: child("case", name, mode, length) for name in names} for _ in range(rounds)]
    return {
        f"{length} {mode} {name}": {
            what: statistics.median(row[name][what] for row in found) for what in found[0][name]
        }
        for name in names
    }


def tables(rounds: int, *, is_quick: bool) -> dict[str, Any]:
    long, middle = (1024, 1024) if is_quick else (16384, 4096)
    found: dict[str, Any] = {}
    for mode in ("forward", "forward_backward"):
        found |= in_turn(("block_top_k", "sdpa"), mode, long, rounds)
        found |= in_turn(("top_k", "sdpa", "eager"), mode, middle, rounds)
    if not is_quick:
        for name in ("sdpa", "block_top_k", "top_k"):
            found[f"needle {name}"] = child("needle", name, 0)
    return found


def ratios_of(found: dict[str, Any], *, is_quick: bool) -> dict[str, float]:
    long, middle = (1024, 1024) if is_quick else (16384, 4096)
    ratios = {}
    for mode in ("forward", "forward_backward"):
        ours, sdpa = found[f"{long} {mode} block_top_k"], found[f"{long} {mode} sdpa"]
        ratios[f"{mode}_over_sdpa"] = sdpa["wall_s"] / ours["wall_s"]
        ratios[f"{mode}_cpu_over_sdpa"] = sdpa["cpu_s"] / ours["cpu_s"]
        ratios[f"{mode}_memory_over_sdpa"] = ours["peak_mib"] / sdpa["peak_mib"]
    top_k, eager = (found[f"{middle} forward_backward {n}"] for n in ("top_k", "eager"))
    ratios["top_k_memory_over_eager"] = top_k["peak_mib"] / eager["peak_mib"]
    if not is_quick:
        ratios["needle"] = found["needle block_top_k"]["accuracy"]
        ratios["needle_dense"] = found["needle sdpa"]["accuracy"]
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1,024 tokens, no needle")
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, name, *rest = options.child
        if kind == "needle":
            print(json.dumps(needle(name, int(rest[0]))))
        else:
            print(json.dumps(case(name, rest[0], int(rest[1]))))
        return
    found = tables(options.rounds, is_quick=options.quick)
    ratios = ratios_of(found, is_quick=options.quick)
    where = f"{platform.platform()} · Python {platform.python_version()}"
    if not options.json:
        print(f"{where} · {options.rounds} rounds · eager at 16,384 tokens would need 2 x 12 GiB")
        for name, row in found.items():
            print(f"  {name:<36}" + "".join(f"  {k} {v:10.3f}" for k, v in row.items()))
    ok = options.quick or (
        all(ratios[name] >= target for name, target in TARGETS_LEAST.items())
        and all(ratios[name] <= target for name, target in TARGETS_MOST.items())
    )
    rounded = {name: round(value, 3) for name, value in ratios.items()}
    last = {
        "benchmark": "attention",
        "ratios": rounded,
        "targets": {**TARGETS_LEAST, **TARGETS_MOST},
        "ok": ok,
    }
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        document = {**last, "where": where, "rounds": options.rounds, "rows": found}
        RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(last))


if __name__ == "__main__":
    main()
