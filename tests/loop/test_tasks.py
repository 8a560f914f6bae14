"""Each task goes the whole way: rows → dataset → trial → export → gate → answers."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import FILLER, WORDS

DRAW = random.Random(2)


def autoglm(*arguments: str | Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "autoglm.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


def words(count: int) -> list[str]:
    kinds = [DRAW.choice([*WORDS.values(), FILLER, FILLER]) for _ in range(count)]
    return [DRAW.choice(kind) for kind in kinds]


def tagging_row() -> dict[str, Any]:
    tokens = words(8)
    kind = {w: name for name, ws in WORDS.items() for w in ws}
    return {"tokens": tokens, "tags": [f"B-{kind[t]}" if t in kind else "O" for t in tokens]}


def labels_row() -> dict[str, Any]:
    tokens = words(6)
    found = [name for name, ws in WORDS.items() if any(t in ws for t in tokens)]
    return {"text": " ".join(tokens), "labels": found}


def number_row() -> dict[str, Any]:
    tokens = words(8)
    money = sum(t in WORDS["money"] for t in tokens)
    return {"text": " ".join(tokens), "score": 1000 + 50 * money}


@pytest.mark.parametrize(
    ("task", "make", "asked", "metric"),
    [
        ("token-classification", tagging_row, ["the striker said"], "entity_f1"),
        ("multi-label-classification", labels_row, ["goal market the"], "micro_f1"),
        ("regression", number_row, ["bank market shares profit trade euro loan price"], "r2"),
    ],
)
def test_a_task_is_learnt_gated_and_answered_in_its_own_form(
    tmp_path: Path, tiny_backbone: Path, task: str, make: Any, asked: list[str], metric: str
) -> None:
    rows = [make() for _ in range(300)]
    broken = {
        "token-classification": {**rows[0], "tags": ["O"]},
        "regression": {**rows[0], "score": "?"},
    }
    rows += [broken[task]] if task in broken else []
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    project = tmp_path / "project"
    autoglm(
        "init",
        project,
        "--from",
        tmp_path / "rows.jsonl",
        "--backbone",
        tiny_backbone,
        "--task",
        task,
    )
    document = json.loads(
        autoglm(
            "run", project, "--json", "--set", "search.trials=1", "--set", "training.epochs=4",
            "--set", "search.space={lr: {loguniform: [1e-3, 3e-3]}}", "--set", "training.threads=1",
            "--set", "training.trainable_layers=2", "--set", "evaluate.margin=100%",
        )
    )  # fmt: skip
    assert document["status"] == "succeeded", document
    best = document["best"]
    assert best["metric"] == metric
    assert best["value"] > 0.5, best
    (answer,) = map(json.loads, autoglm("predict", project, *asked, "--json").splitlines())
    if task == "token-classification":
        assert answer["label"] == ["O", "B-sport", "O"]
        refused = autoglm("run", project, "--set", "evaluate.metric=r2", code=2)
        assert "says nothing of token-classification" in refused
        assert "entity_f1" in refused
        refused = autoglm("run", project, "--set", "model.task=regression", code=2)
        assert "needs data.text" in refused
        assert_another_task_is_a_first_of_its_own(project)
    elif task == "regression":
        assert answer["label"] > 1100
        assert answer["score"] is None
    else:
        assert set(answer["label"]) <= {"money", "sport"}
        assert 0.5 <= answer["score"] <= 1
    facts = [
        json.loads(path.read_text())
        for path in (project / ".autoglm/default/models").glob("*/autoglm.json")
    ]
    assert task in {each["task"] for each in facts}


def test_images_are_taken_in_by_path_and_learnt_by_the_projects_own_backbone(
    tmp_path: Path,
) -> None:
    from PIL import Image

    project, rows = tmp_path / "project", []
    (project / "images").mkdir(parents=True)
    for number in range(200):
        is_bright = number % 2 == 0
        grey = DRAW.randint(150, 250) if is_bright else DRAW.randint(5, 105)
        Image.new("L", (8, 8), grey).save(project / "images" / f"{number}.png")
        rows.append({"image": f"images/{number}.png", "label": "bright" if is_bright else "dark"})
    Image.new("L", (8, 8), 9).save(tmp_path / "outside.png")
    (project / "images" / "broken.png").write_bytes(b"no image")
    rows += [
        {"image": "../outside.png", "label": "dark"},
        {"image": "images/broken.png", "label": "dark"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    autoglm("init", project, "--from", tmp_path / "rows.jsonl", "--backbone", "conv",
            "--task", "image-classification")  # fmt: skip
    document = json.loads(
        autoglm(
            "run", project, "--json", "--set", "search.trials=1", "--set", "training.epochs=3",
            "--set", "search.space={lr: {loguniform: [2e-3, 4e-3]}}", "--set", "training.threads=1",
            "--set", "model.conv={num_layers: 2, kernel_size: 3, channels: 8}",
            "--set", "evaluate.margin=100%",
        )
    )  # fmt: skip
    assert document["status"] == "succeeded", document
    assert document["dataset_version"]["rows"] == 200
    assert document["best"]["value"] > 0.9
    (project / "images" / "0.png").unlink()
    answers = autoglm(
        "predict", project, project / "images" / "2.png", tmp_path / "outside.png", "--json"
    )
    assert [json.loads(line)["label"] for line in answers.splitlines()] == ["bright", "dark"]
    assert "data.not_an_image" in autoglm("predict", project, "neither path nor base64", code=1)


def assert_another_task_is_a_first_of_its_own(project: Path) -> None:
    """Texts of a tagger's columns, learnt as labels beside a stable that answers with tags."""
    (before,) = json.loads(autoglm("models", "list", "-C", project, "--json"))["models"]
    source = sqlite3.connect(project / "data.db")
    source.execute("update rows set tags = case when instr(tokens, 'goal') then 'a' else 'b' end")
    source.commit()
    source.close()
    config = project / "autoglm.yaml"
    said = config.read_text().replace(
        "  tokens: tokens\n  tags: tags", "  text: tokens\n  label: tags"
    )
    said = said.replace("token-classification", "text-classification")
    config.write_text(said.replace("entity_f1", "macro_f1"))
    document = json.loads(
        autoglm(
            "run", project, "--json", "--set", "search.trials=1", "--set", "training.epochs=1",
            "--set", "training.threads=1", "--set", "search.space={lr: {choice: [0.001]}}",
            "--set", "evaluate.margin=100%",
        )
    )  # fmt: skip
    assert document["status"] == "succeeded", document
    assert document["rollout"]["reason"] == "first_release", document
    versions = json.loads(autoglm("models", "list", "-C", project, "--json"))["models"]
    assert {v["digest"]: v["aliases"] for v in versions}[before["digest"]] == ["previous"]
