"""A station alone: train once, evaluate, from the command line and from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.loop.test_tasks import autoglm as command

import autoglm
from autoglm.errors import (
    ConfigError,
    ModelError,
    OwnerError,
    PluginError,
    SearchError,
    StorageError,
)
from autoglm.loop import stations
from autoglm.project import Project


def test_train_and_evaluate_need_no_run_and_leave_none(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path, share_graphs: Callable[[Path], None]
) -> None:
    project = tmp_path / "project"
    command("init", project, "--from", rows_file, "--backbone", tiny_backbone)
    share_graphs(project)
    own = ["--set", "training.threads=1", "--set", "training.epochs=2", "--json"]
    trained = json.loads(command("train", project, "--out", tmp_path / "first", *own))
    assert trained["folder"] == str(tmp_path / "first")
    assert trained["num_steps"] > 0
    assert {"accuracy", "macro_f1", "loss"} <= set(trained["metrics"])
    assert "storage.exists" in command("train", project, "--out", tmp_path / "first", code=1)

    with autoglm.Trainer(project) as trainer:
        with pytest.raises(OwnerError):
            autoglm.Trainer(project).__enter__()
        with pytest.raises(SearchError, match="Did you mean epochs"):
            trainer.train(tmp_path / "second", epoch=1)
        for wrong in ({"lr": "x"}, {"epochs": -1}, {"trainable_layers": None}):
            with pytest.raises(ConfigError, match="training."):
                trainer.train(tmp_path / "second", **wrong)
        with pytest.raises(StorageError, match="exists"):
            trainer.train(tmp_path / "first")
        second = trainer.train(tmp_path / "second", lr=2e-3, epochs=3, threads=1)
        assert second.params == {"training.lr": 2e-3, "training.epochs": 3, "training.threads": 1}
        report = trainer.evaluate(second.folder, against=tmp_path / "first")
        assert report.candidate["accuracy"].value is not None
        assert report.difference is not None
        alone = trainer.evaluate(tmp_path / "first")
        assert alone.difference is None
        app, folders = trainer._app, [str(tmp_path / name) for name in ("second", "first")]
        of_refresh = app.evaluate(stations._spec(app), *folders, fits_floor=False)
        assert (report.linear_floor, of_refresh["linear_floor"]) == (alone.linear_floor, None)
        of_first = app.evaluate(stations._spec(app), folders[1], "", fits_floor=False)
        assert of_first["linear_floor"] == alone.linear_floor is not None, "it judges the first"
        assert alone.candidate["macro_f1"] == report.stable["macro_f1"]
        with pytest.raises(StorageError, match="no model version"):
            trainer.evaluate("stable")
        with pytest.raises(ModelError, match="no exported model"):
            trainer.evaluate(tmp_path)
        facts = tmp_path / "second" / "autoglm.json"
        facts.write_text(facts.read_text().replace("text-classification", "regression"))
        with pytest.raises(ModelError, match="learnt regression"):
            trainer.evaluate(tmp_path / "second")
    assert json.loads(command("runs", "list", "-C", project, "--json"))["runs"] == []
    shown = command("evaluate", project, tmp_path / "first")
    assert "floors for macro_f1" in shown


def test_each_key_that_python_gives_is_trained_by_or_refused_by_name(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path, share_graphs: Callable[[Path], None]
) -> None:
    project = tmp_path / "project"
    command("init", project, "--from", rows_file, "--backbone", tiny_backbone)
    share_graphs(project)
    quick: dict[str, Any] = {"epochs": 1, "threads": 1}
    with autoglm.Trainer(project) as trainer:
        learning = {**quick, "head": "mlp", "trainable_layers": 9, "lr": 3e-3}
        first = trainer.train(tmp_path / "first", **learning)
        for wrong, error, words in (
            ({"backbone": "/nowhere"}, ModelError, "/nowhere"),
            ({"start_from": "stable"}, ModelError, "no stable model version"),
            ({"task": "token-classification"}, ConfigError, "needs data.tokens"),
            ({"callbacks": ["x"]}, PluginError, "no callback of this name"),
            ({"precision": "fp31"}, ConfigError, "training.precision"),
            ({"memory_budget": "much"}, ConfigError, "a size like"),
            ({"learning_rte": 1e-3}, SearchError, "Did you mean lr"),
        ):
            with pytest.raises(error, match=words):
                trainer.train(tmp_path / "wrong", **quick, **wrong)
        assert not (tmp_path / "wrong").exists()
        left = [child.cmdline() for child in psutil.Process().children()]
        assert not [words for words in left if "autoglm.training.worker_main" in words]

        said = {"precision": "fp32", "memory_budget": "8GiB", "checkpoint_every": "5s", "seed": 5}
        trained = trainer.train(tmp_path / "said", pooling="attention", **quick, **said)
        assert json.loads((tmp_path / "said" / "autoglm.json").read_text())["pooling"] == (
            "attention"
        )
        own = trainer.train(tmp_path / "own", backbone="recurrent", hidden_size=8, **quick)
        config = json.loads((Path(own.folder) / "config.json").read_text())["backbone_config"]
        assert (config["model_type"], config["direction_size"]) == ("autoglm_recurrent", 8)
        trainer.train(tmp_path / "seeded", **learning, seed=6)
        # What was asked once is not what the project says from then on.
        again = trainer.train(tmp_path / "again", **learning)
        assert again.metrics == first.metrics != trained.metrics
        weights = {
            name: (tmp_path / name / "model.safetensors").read_bytes()
            for name in ("first", "seeded", "again")
        }
        assert weights["first"] == weights["again"] != weights["seeded"]


def test_a_backbone_of_our_own_is_set_up_for_what_it_reads_and_refused_for_anything_else(
    tmp_path: Path, rows_file: Path
) -> None:
    project = tmp_path / "project"
    command("init", project, "--from", rows_file, "--backbone", "recurrent")
    dimensions = Project(project).settings.search.space
    assert "trainable_layers" not in dimensions, "all of it learns, whatever this says"
    assert dimensions["lr"] == {"loguniform": [1e-3, 1e-2]}
    command("config", "check", "-C", project)
    images = [
        "--set",
        "model.task=image-classification",
        "--set",
        "data.image=text",
        "--set",
        "data.text=",
    ]
    wrong = "'{}' reads {}, model.task = '{}' does not"
    for backbone, reads, task, more in (
        ("conv", "images", "text-classification", ["--set", "model.backbone=conv"]),
        ("recurrent", "texts", "image-classification", images),
    ):
        refused = command("config", "check", "-C", project, *more, code=2)
        assert wrong.format(backbone, reads, task) in " ".join(refused.split())
