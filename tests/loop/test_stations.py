"""A station alone: train once, evaluate, from the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.loop.test_tasks import autoglm as command

import autoglm
from autoglm.errors import ConfigError, ModelError, OwnerError, SearchError, StorageError
from autoglm.project import Project


def test_train_and_evaluate_need_no_run_and_leave_none(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path
) -> None:
    project = tmp_path / "project"
    command("init", project, "--from", rows_file, "--backbone", tiny_backbone)
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
