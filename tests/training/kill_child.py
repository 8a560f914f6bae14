"""Trains the toy and kills it at every step; forks, so that torch loads once.

`kill_child.py FOLDER FIRST LAST`: a child is killed (SIGKILL) at a step, right after its first
checkpoint has its name (odd steps) or right before its second has one (even steps); another child
goes on. Prints one JSON line per step.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from transformers import BertConfig

from autoglm import fail_points
from autoglm.recovery.checkpoints import Checkpoints

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import toy

torch.set_num_threads(1)
KIND = {"ema": 0.9, "optimizer": "adamw", "log_steps": 4}
# One narrow layer: thirty kills of the usual toy take half as long again.
SMALL = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
)


def digest_of(folder: Path, steps: int) -> str:
    checkpoints = Checkpoints(folder, keep=2, max_bytes=2**30)
    start = toy.model(config=SMALL)
    trained = toy.train(start=start, checkpoints=checkpoints, checkpoint_steps=steps, **KIND)
    hasher = hashlib.sha256(json.dumps(trained.metrics, sort_keys=True).encode())
    for name, tensor in sorted(trained.weights.items()):
        hasher.update(name.encode() + tensor.numpy().tobytes())
    return hasher.hexdigest()


def child(folder: Path, armed: str, answer: Path, steps: int) -> int:
    pid = os.fork()
    if pid == 0:
        fail_points.arm(armed)
        answer.write_text(digest_of(folder, steps))
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    root, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    # Not in a child: what it imports on the way is there for all of them.
    wanted = digest_of(root / "whole", 7)
    gc.freeze()
    for step in range(first, last + 1):
        is_odd = step % 2 == 1
        armed = "checkpoint.after_commit:kill" if is_odd else "checkpoint.before_commit:kill@2"
        steps = step if is_odd else step // 2
        folder, answer = root / str(step), root / f"answer{step}"
        status = child(folder, armed, answer, steps)
        was_killed = os.WIFSIGNALED(status) and not answer.exists()
        child(folder, "", answer, steps)
        print(
            json.dumps({"step": step, "killed": was_killed, "same": answer.read_text() == wanted})
        )


if __name__ == "__main__":
    main()
