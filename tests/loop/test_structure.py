"""A run whose backbone is cut, adapted and given another attention: searched, exported, served."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoglm.errors import ModelError
from autoglm.loop import stations
from autoglm.loop.app import App
from autoglm.project import Project


def autoglm(*arguments: str | Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "autoglm.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


def test_structure_adapters_and_attention_are_searched_and_exported(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path
) -> None:
    project = tmp_path / "project"
    autoglm("init", project, "--from", rows_file, "--backbone", tiny_backbone)
    yaml = project / "autoglm.yaml"
    said = yaml.read_text().replace("  task: text-classification\n", (
        "  task: text-classification\n"
        "  attention: {name: top_k, k: 4}\n"
        "  structure: {lora_rank: 2, feed_forward: 32}\n"
    ))  # fmt: skip
    assert "top_k" in said
    yaml.write_text(said)
    document = json.loads(
        autoglm(
            "run", project, "--json", "--set", "search.trials=2",
            "--set", "search.space={num_layers: {choice: [1, 2]}}", "--set", "training.epochs=2",
            "--set", "training.threads=1",
            "--set", "evaluate.margin=100%",
        )
    )  # fmt: skip
    assert document["status"] == "succeeded", document
    assert document["num_trials"] == 2
    autoglm("models", "export", tmp_path / "out", "-C", project)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["attention"], config["attention_options"]) == ("top_k", {"k": 4})
    assert config["backbone_config"]["num_hidden_layers"] in (1, 2)
    assert config["backbone_config"]["intermediate_size"] == 32
    adapter = project / ".autoglm/default/runs" / document["run_id"] / "adapter"
    assert (adapter / "adapter_model.safetensors").is_file()
    answers = autoglm("predict", project, "the striker scored a goal", "--json")
    assert json.loads(answers.splitlines()[0])["label"] in ("sport", "money")
    refused = autoglm("run", project, "--set", "model.structure.feed_forward=0", "--set",
                      "data.max_length=500", "--set", "training.seed=3",
                      "--set", "training.threads=1", code=1)  # fmt: skip
    assert "model.too_long" in refused or "search" in refused


@pytest.fixture
def app(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path, share_graphs: Callable[[Path], None]
) -> Iterator[App]:
    autoglm("init", tmp_path / "project", "--from", rows_file, "--backbone", tiny_backbone)
    share_graphs(tmp_path / "project")
    project = Project(tmp_path / "project")
    with project.own("test"):
        app = App(project=project)
        yield app
        app.close()


def trained(app: App, out: Path, start: Path | None, **params: Any) -> bool:
    """Train from `start`, as a run does whose stable it is; whether it did start there. All in one
    worker: each takes seconds to load its libraries.
    """
    said = app.project.with_values({"training.epochs": 2, "training.threads": 1, **params})
    spec, worker = stations._spec(App(project=said)), app.trainer()
    worker.open(spec, start_folder=start, base=said.folder)
    chain = worker.plan({})
    worker.advance(chain, chain.num_steps, cancel=app.cancel)
    worker.export(chain, out)
    return worker.starts_from_stable


def test_what_was_exported_is_no_start_of_the_trials_behind_it(tmp_path: Path, app: App) -> None:
    values = {"training.epochs": 1, "training.threads": 1, "training.keep": "last"}
    said, worker = app.project.with_values(values), app.trainer()
    worker.open(stations._spec(App(project=said)), start_folder=None, base=said.folder)
    bodies = []
    for number, layers in enumerate([0, 1, 0]):
        rate = 10.0 ** -(2 + number)
        chain = worker.plan({"training.lr": rate, "training.trainable_layers": layers})
        worker.advance(chain, chain.num_steps, cancel=app.cancel)
        exported = worker.export(chain, tmp_path / str(number))
        weights = load_file(Path(exported["folder"]) / "model.safetensors")
        bodies.append({n: t for n, t in weights.items() if n.startswith("backbone.")})
    first, trained_on, last = bodies
    assert first
    assert all(torch.equal(t, last[n]) for n, t in first.items())
    assert not all(torch.equal(t, trained_on[n]) for n, t in first.items())


@pytest.mark.parametrize("structure", [{"layers": [0, 0, 1]}, {"num_layers": 1, "num_heads": 1}])
def test_a_version_that_was_edited_is_started_from_as_it_is(
    tmp_path: Path, app: App, structure: dict[str, Any]
) -> None:
    edits = {f"model.structure.{name}": value for name, value in structure.items()}
    stable, after = tmp_path / "stable", tmp_path / "after"
    learning = {"training.trainable_layers": 9, "training.lr": 1e-2, "model.head": "mlp"}
    assert not trained(app, stable, None, **edits, **learning)
    assert trained(app, after, stable, **edits, **{"training.trainable_layers": 0})
    weights = [load_file(folder / "model.safetensors") for folder in (stable, after)]
    bodies = [{n: t for n, t in w.items() if n.startswith("backbone.")} for w in weights]
    assert bodies[0].keys() == bodies[1].keys()
    assert all(torch.equal(t, bodies[1][n]) for n, t in bodies[0].items())
    facts = [json.loads((f / "autoglm.json").read_text())["made_of"] for f in (stable, after)]
    assert facts[0] == facts[1]
    assert facts[0]["structure"] == structure


def test_a_version_of_other_edits_is_passed_over_or_refused_with_the_reason(
    tmp_path: Path, app: App, tiny_backbone: Path
) -> None:
    stable = tmp_path / "stable"
    trained(app, stable, None, **{"model.structure.feed_forward": 32})
    strict = {"model.start_from": "stable"}
    for params, words in (
        ({"model.structure.feed_forward": 48}, r"made by \{'feed_forward': 32\}"),
        ({}, "model.structure says nothing"),
        (
            {
                "model.structure.feed_forward": 32,
                "search.space": {"feed_forward": {"choice": [32, 64]}},
            },
            "feed_forward is searched for",
        ),
    ):
        assert not trained(app, tmp_path / "auto", stable, **params), words
        with pytest.raises(ModelError, match=words):
            trained(app, tmp_path / "strict", stable, **params, **strict)

    plain = tmp_path / "plain"
    trained(app, plain, None)
    folds = {"search.folds": 2}  # whose rows it has learnt from
    assert not trained(app, tmp_path / "folded", plain, **folds)
    # What nothing was edited of can be edited: once.
    assert trained(app, tmp_path / "cut", plain, **{"model.structure.num_layers": 1}, **strict)
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    moved = {n: t + 0.1 for n, t in load_file(other / "model.safetensors").items()}
    save_file(moved, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="its backbone is another"):
        trained(app, tmp_path / "strict", plain, **{"model.backbone": str(other)}, **strict)

    # As versions before this one were written.
    facts = json.loads((plain / "autoglm.json").read_text())
    del facts["made_of"]
    (plain / "autoglm.json").write_text(json.dumps(facts))
    assert trained(app, tmp_path / "old", plain, **strict)
    with pytest.raises(ModelError, match="before versions said"):
        trained(app, tmp_path / "strict", plain, **{"model.structure.num_layers": 1}, **strict)
