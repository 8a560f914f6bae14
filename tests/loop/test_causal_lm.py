"""Prompts and answers go the whole way to a scored folder; what cannot be served is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.loop.test_tasks import autoglm as command

import autoglm
from autoglm.contracts.task import TextScore
from autoglm.errors import ConfigError, ModelError
from autoglm.loop.app import App
from autoglm.loop.evaluation import evaluate_texts
from autoglm.loop.stations import _spec
from autoglm.project import Project
from training import toy_lm


def test_a_decoder_learns_to_answer_and_is_scored(tmp_path: Path) -> None:
    prompts, answers = toy_lm.pairs(160)
    rows = [{"question": f"{p} w{i % 3}", "answer": a}
            for i, (p, a) in enumerate(zip(prompts, answers, strict=True))]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    backbone = toy_lm.folder(tmp_path / "backbone", is_tied=True)
    project = tmp_path / "project"
    made = command("init", project, "--from", tmp_path / "rows.jsonl", "--backbone", backbone,
                   "--task", "causal-lm")  # fmt: skip
    assert "next: autoglm train" in made
    yaml = (project / "autoglm.yaml").read_text()
    assert "text: question" in yaml
    assert "label: answer" in yaml

    refused = command("run", project, code=2)
    assert "release.cannot_serve" in refused
    assert "autoglm run cannot serve causal-lm yet" in refused
    assert not (project / ".autoglm/default/broker.db").exists()
    assert "serving.cannot_serve" in command("predict", project, "w1", code=1)

    events: list[Any] = []
    with autoglm.Trainer(project, on_event=events.append) as trainer:
        whole = trainer.train(
            tmp_path / "whole", lr=0.01, epochs=8, threads=1, trainable_layers=9, lora_rank=0,
            batch_size=8,
        )  # fmt: skip
    before = next(e["eval_negative_loss"] for e in events if e["kind"] == "evaluation")
    assert whole.metrics["negative_loss"] > before + 1
    assert (whole.opens_with, whole.labels) == ("transformers", ())
    assert whole.parity <= 1e-4
    report = json.loads(command("evaluate", project, tmp_path / "whole", "--json"))
    score = report["candidate"]["negative_loss"]
    assert before < score["low"] < score["value"] < score["high"] < 0
    assert 0.3 < report["candidate"]["token_accuracy"]["value"] <= 1
    assert (report["majority"], report["linear_floor"]) == (None, None)
    assert (report["metric"], report["reason"]) == ("negative_loss", "no_floors")


def test_two_models_are_paired_on_the_same_answers(tmp_path: Path) -> None:
    prompts, answers = toy_lm.pairs(60)
    rows = [{"id": i, "t": f"{p} {i}", "l": a}
            for i, (p, a) in enumerate(zip(prompts, answers, strict=True))]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("init", tmp_path / "p", "--from", tmp_path / "rows.jsonl", "--text", "t", "--label",
            "l", "--task", "causal-lm", "--backbone", toy_lm.folder(tmp_path / "b"))  # fmt: skip
    project = Project(tmp_path / "p")
    with project.own("test"):
        app = App(project=project)
        spec = _spec(app)
        app.close()
    good = [TextScore(1.0, 2, 2), TextScore(0.5, 1, 1), TextScore(2.0, 3, 1)]
    bad = [TextScore(2.0, 2, 1), TextScore(0.4, 1, 1), TextScore(6.0, 3, 0)]
    report = evaluate_texts(spec, good, bad)
    assert report.candidate["negative_loss"].value == pytest.approx(-3.5 / 6)
    assert report.candidate["token_accuracy"].value == pytest.approx(4 / 6)
    assert report.difference is not None
    assert report.difference.value == pytest.approx(4.9 / 6)
    assert (report.difference.wins, report.difference.losses) == (2, 1)
    assert report.verdict == "Successful"
    assert evaluate_texts(spec, bad, good).verdict == "Failed"
    with pytest.raises(ModelError) as caught:
        evaluate_texts(spec, good, [TextScore(1.0, 3, 2), *bad[1:]])
    assert caught.value.code == "model.other_tokens"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("causal-lm", "model.pooling=mean"),
        ("causal-lm", "model.head=mlp"),
        ("causal-lm", "search.space={hidden_size: {choice: [8]}}"),
        ("regression", "training.class_weights=balanced"),
        ("regression", "training.label_smoothing=0.1"),
        ("regression", "search.space={label_smoothing: {choice: [0.1]}}"),
    ],
)
def test_what_has_no_part_in_a_task_is_refused(tmp_path: Path, task: str, said: str) -> None:
    from autoglm.config.config_loader import bind
    from autoglm.config.layers import command_line_layer
    from autoglm.loop.names import check_names
    from autoglm.settings import Layers, schema

    key = said.partition("=")[0]
    plain = [
        "project=p", "model.backbone=package:x", f"model.task={task}", "data.text=t", "data.label=l",
        "data.source.url=sqlite:///x.db", "data.source.table=t", "data.source.key=id",
        "search.space={lr: {loguniform: [1e-5, 1e-3]}}",
    ]  # fmt: skip
    check_names(bind(schema(), [command_line_layer(plain)]).settings, Layers(folder=tmp_path))
    layer = command_line_layer([one for one in plain if not one.startswith(key)] + [said])
    with pytest.raises(ConfigError, match="has no part in it"):
        check_names(bind(schema(), [layer]).settings, Layers(folder=tmp_path))
