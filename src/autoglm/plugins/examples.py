"""The smallest part of every kind: the reference page, the skeletons and a test are made of it.

`NAME` stands for the part's name, `Part` for its class or function.
"""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, str] = {
    "source": '''
class Part:
    """Rows of a list; the position is how many were read."""

    name, promise = "NAME", "sees every row once"

    def __init__(self, config, *, project, base, batch_rows, columns):
        self.rows, self.project = [{"id": 1, "text": "a", "label": "b"}], project

    def read(self, position):
        from datetime import UTC, datetime

        from autoglm.contracts.change_event import ChangeBatch, ChangeEvent

        rows = self.rows[int(position or 0) :]
        if rows:
            events = tuple(
                ChangeEvent(project=self.project, source=self.name, key=str(row["id"]),
                            op="upsert", row=row, version=1, committed_at=datetime.now(UTC))
                for row in rows
            )
            yield ChangeBatch(project=self.project, source=self.name, events=events,
                              position=str(len(self.rows)), traceparent="")
''',
    "broker": '''
class Part:
    """See docs/reference for the whole port: appends are atomic with the source's position."""

    @classmethod
    def open(cls, config, *, project, state, partitions): return cls()

    def append(self, topic, batch, *, producer, epoch): ...
    def new_epoch(self, topic, producer): return 1
    def position(self, topic, producer): return ""
    def num_partitions(self, topic): return 1
    def begin_offset(self, topic, partition): return 0
    def end_offset(self, topic, partition): return 0
    def fetch(self, topic, partition, offset, *, max_events): return None

    def join(self, group, topic, *, member, lease):
        from autoglm.plugins.kinds import Assignment

        return Assignment(generation=1, partitions=(0,))

    def heartbeat(self, group, topic, *, member):
        return self.join(group, topic, member=member, lease=None)

    def leave(self, group, topic, *, member): ...
    def hint(self, group, offsets, *, generation=None): ...
    def hints(self, group, topic): return {}
    def retain(self, topic): return 0
    def close(self): ...
''',
    "table": '''
class Part:
    """Rows and offsets in one commit; refuses offsets that do not follow the stored ones."""

    version = -1

    def next_offset(self, partition): return 0
    def commit(self, rows, dead, offsets, *, positions, traceparent): return 0
    def read(self, version=None): ...
    def pin(self, version, by): ...
''',
    "processor": '''
class Part:
    """Pure: the same events in, the same rows out."""

    def process(self, batch):
        from dataclasses import replace

        from autoglm.plugins.kinds import Processed

        rows = [replace(e, row={k: v.lower() if k == "text" else v for k, v in e.row.items()})
                for e in batch]
        return Processed(rows=rows, dead=[])
''',
    "backbone": '''
def Part(reference):
    """What stands after `NAME:` in model.backbone → a Hugging Face folder on this machine."""
    from pathlib import Path

    return Path("/models") / reference
''',
    "converter": '''
class Part:
    """Weights in numpy's own archive; the config lies beside them."""

    version = 1

    def recognises(self, file, head):
        return file.suffix == ".npz"

    def convert(self, source, folder):
        import shutil

        import numpy
        from safetensors.numpy import save_file

        save_file(dict(numpy.load(source)), folder / "model.safetensors", {"format": "pt"})
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(source.with_name(name), folder)
        return {"pooling": "mean"}
''',
    "head": """
def Part(hidden_size, num_labels):
    from torch import nn

    return nn.Sequential(nn.Linear(hidden_size, 64), nn.GELU(), nn.Linear(64, num_labels))
""",
    "task": """
class Part:
    def loss(self, outputs, batch):
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, batch["labels"])

    def predict(self, outputs):
        return outputs.argmax(-1).tolist()
""",
    "attention": '''
def Part(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Dense attention; change what lies between the scores and the softmax."""
    import math

    scores = query @ key.mT * (scaling or 1 / math.sqrt(query.shape[-1]))
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None
''',
    "optimizer": """
def Part(groups, *, lr):
    import torch

    return torch.optim.RMSprop(list(groups), lr=lr)
""",
    "schedule": '''
def Part(step, num_steps):
    """A factor of the peak rate, after the warm-up."""
    return (1 - step / num_steps) ** 2
''',
    "callback": """
class Part:
    def on_event(self, event):
        print(event["kind"])
""",
    "algorithm": """
class Part:
    def apply(self, moment, state): ...
""",
    "evaluator": '''
class Part:
    """Recall of the label that is found worst, over the labels present; greater is better."""

    name = "NAME"

    def evaluate(self, truth, prediction, rows=()):
        from autoglm.contracts.evaluation_report import Score

        found = {label: [] for label in truth}
        for true, said in zip(truth, prediction):
            found[true].append(said == true)
        value = min((sum(hits) / len(hits) for hits in found.values()), default=None)
        return Score(value=value, low=None, high=None, rows=len(truth))
''',
    "sampler": """
def Part(seed):
    import optuna

    return optuna.samplers.QMCSampler(seed=seed)
""",
    "space": """
def Part():
    from autoglm import tune

    return {
        "lr": tune.loguniform(1e-4, 1e-2),
        "n_layers": tune.choice([2, 3, 4]),
        "lora_rank": tune.choice([4, 8]).when(n_layers=4),
    }
""",
    "metric_provider": """
class Part:
    def measure(self, query, *, window):
        raise NotImplementedError("return a Measurement or a Block")
""",
    "config_centre": '''
class Part:
    """A constant; a real one asks a server, and `watch` waits for its changes."""

    def __init__(self, config, profile): ...

    def load(self):
        return {"training.lr": "3e-4"}, "1"

    def watch(self, revision):
        return iter(())

    def close(self): ...
''',
    "notifier": """
class Part:
    def notify(self, alarm):
        print(alarm["code"], alarm["message"])
""",
    "renderer": """
class Part:
    def render(self, policy):
        return {"policy.json": str(policy)}
""",
    "step": '''
class Part:
    """Executed after a step of a run; what it returns is recorded. May be called again."""

    name, kind, api_version = "NAME", "step", 1

    def execute(self, context):
        context.logger.info("hello", run=context.run_id)
        (context.workspace / "hello.txt").write_text(context.project)
        return {"ok": True}
''',
    "section": '''
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section of autoglm.yaml, `NAME: {threshold: 0.5}`; `env_prefix` opens variables to it."""

    threshold: float = 0.5
''',
}


def source_of(kind: str, name: str, *, part: str) -> str:
    """The example of `kind` under another name, with its class or function called `part`."""
    return EXAMPLES[kind].strip().replace("NAME", name).replace("Part", part) + "\n"
