"""Other people's parts in a real run: from a wheel, and from the project's own files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FAST = [
    "--set", "search.trials=1",
    "--set", "search.space={trainable_layers: {choice: [1]}}",
    "--set", "training.epochs=1",
    "--set", "training.threads=1",
    "--set", "release.min_requests=5",
    "--set", "release.pause_above_mean_latency=60s",
    "--set", "evaluate.margin=10%",
]  # fmt: skip

# Twenty lines of a package that knows nothing of this repository but its public names.
WHEEL = """\
import math
from autoglm.contracts.evaluation_report import Score

class SportRecall:
    def evaluate(self, truth, prediction, rows=()):
        hits = [p == t for t, p in zip(truth, prediction) if t == "sport"]
        return Score(value=sum(hits) / len(hits) if hits else None, low=None, high=None, rows=len(truth))

def softer(module, query, key, value, attention_mask, scaling=None, **kwargs):
    scores = query @ key.mT * (scaling or 1 / math.sqrt(query.shape[-1])) / 2
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

softer.is_sparse = True
"""
PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "sport-parts"
version = "1.0"
[project.entry-points."autoglm.plugins"]
"evaluator:sport_recall" = "sport_parts:SportRecall"
"attention:softer" = "sport_parts:softer"
[tool.setuptools]
py-modules = ["sport_parts"]
"""


def autoglm(*arguments: str | Path, code: int = 0, **more: str) -> str:
    command = [sys.executable, "-m", "autoglm.cli", *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, **more},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


@pytest.fixture
def project(
    tmp_path: Path, rows_file: Path, tiny_backbone: Path, share_graphs: Callable[[Path], None]
) -> Path:
    folder = tmp_path / "project"
    autoglm("init", folder, "--from", rows_file, "--backbone", tiny_backbone)
    share_graphs(folder)
    return folder


@pytest.fixture(scope="module")
def wheel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "sport_parts.py").write_text(WHEEL)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder / "dist"), str(folder)],
        check=True,
    )
    (wheel,) = (folder / "dist").glob("*.whl")
    target = folder / "installed"
    subprocess.run([*pip, "install", *offline, "--target", str(target), str(wheel)], check=True)
    return target


def test_a_wheel_brings_an_evaluator_and_an_attention(
    project: Path, wheel_folder: Path, tmp_path: Path
) -> None:
    assert WHEEL.count("\n") < 20
    own = ["--set", "evaluate.metric=sport_recall", "--set", "model.attention=softer"]
    refused = autoglm("config", "check", "-C", project, *own, code=2)
    assert "evaluate.metric = 'sport_recall'" in refused
    path = {"PYTHONPATH": str(wheel_folder)}
    listed = json.loads(autoglm("plugins", project, "--json", **path))["plugins"]
    theirs = [f for f in listed if f["origin"] == "sport-parts"]
    assert [(f["kind"], f["name"], f["problem"]) for f in theirs] == [
        ("attention", "softer", ""), ("evaluator", "sport_recall", ""),
    ]  # fmt: skip
    autoglm("config", "check", "-C", project, *own, **path)
    document = json.loads(autoglm("run", project, "--json", *FAST, *own, **path))
    assert document["best"]["metric"] == "sport_recall"
    assert 0 <= document["evaluation"]["sport_recall"] <= 1
    autoglm("models", "export", tmp_path / "out", "-C", project, **path)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["attention"] == "softer"
    assert opened_without_us(tmp_path / "out", tmp_path) == "autoglm_text_classifier"
    allowed = autoglm(
        "run", project, *FAST, *own, "--set", "plugins.allow=other", "--set", "training.seed=1",
        code=2, **path,
    )  # fmt: skip
    assert "plugin.not_allowed" in allowed


def opened_without_us(folder: Path, tmp_path: Path) -> str:
    """The model type of an exported folder, opened and called where this package is not there."""
    script = (
        "import sys, torch\n"
        "sys.modules['autoglm'] = None\n"
        "from transformers import AutoModelForSequenceClassification as A\n"
        "model = A.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "assert model(torch.tensor([[2, 5, 6, 3]])).logits.shape == (1, 2)\n"
        "print(model.config.model_type)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


EXAMPLE = Path(__file__).parents[2] / "examples" / "own_parts" / "parts.py"


def test_the_example_of_own_parts_is_trained_and_carried(project: Path, tmp_path: Path) -> None:
    (project / "parts.py").write_text(EXAMPLE.read_text())
    yaml = project / "autoglm.yaml"
    named = (
        "imports: [parts.py]\ntraining: {optimizer: sign, schedule: square, callbacks: [diary]}\n"
    )
    yaml.write_text(yaml.read_text() + named)
    own = ["--set", "model.attention=sharp", "--set", "model.head=narrow", "--set", "training.lr=3e-3",
           "--set", "evaluate.margin=100%", "--set", "training.log_steps=2", "--set", "training.epochs=6"]  # fmt: skip
    document = json.loads(autoglm("run", project, "--json", *FAST, *own))
    assert document["status"] == "succeeded", document
    # Good or not, the candidate is a model version with a folder of its own.
    (part, *_) = (project / ".autoglm").rglob("autoglm_part_0.py")
    carried = part.read_text()
    assert "SHARPNESS = 1.2" in carried
    assert "autoglm" not in carried
    assert opened_without_us(part.parent, tmp_path) == "autoglm_text_classifier"


PARTS = """\
from dataclasses import dataclass
from pydantic import SecretStr
from autoglm import register
from autoglm.plugins.kinds import Processed

@register("section", "mine")
@dataclass(frozen=True, kw_only=True)
class Mine:
    forbidden: str = "league"
    token: SecretStr = SecretStr("")

@register("processor", "without")
class Without:
    changes_number = True

    def __init__(self, config: Mine):
        self.word = config.forbidden
    def process(self, batch):
        return Processed(rows=[e for e in batch if self.word not in e.row["text"]], dead=[])

@register("optimizer", "plain")
def plain(groups, *, lr):
    import torch
    return torch.optim.SGD(list(groups), lr=lr)

@register("schedule", "square")
def square(step, num_steps):
    return (1 - step / num_steps) ** 2

@register("step", "note")
class Note:
    name, kind, api_version = "note", "step", 1
    def execute(self, context):
        assert context.params["mine"]["token"] == "HUN" + "TER2"
        with context.tracer.span("note"):
            (context.workspace / "note.txt").write_text("RELEASE")
        return {"said": "RELEASE"}
"""
USED = """
imports: [parts.py]
mine: {forbidden: bank, token: "${file:token}"}
plugins: {steps: {evaluate: [note]}}
training: {optimizer: plain, schedule: square}
"""


def test_a_projects_own_file_is_used_kept_with_the_run_and_counts_when_it_changes(
    project: Path,
) -> None:
    yaml = project / "autoglm.yaml"
    text = yaml.read_text().replace("  label: label\n", "  label: label\n  processors: [without]\n")
    yaml.write_text(text + USED)
    (project / "parts.py").write_text(PARTS)
    (project / "token").write_text("HUNTER2\n")
    autoglm("config", "check", "-C", project)
    explained = json.loads(autoglm("config", "explain", "mine.forbidden", "-C", project, "--json"))
    assert (explained["value"], explained["layers"][0]["value"]) == ("bank", "league")

    first: dict[str, Any] = json.loads(autoglm("run", project, "--json", *FAST))
    assert 0 < first["dataset_version"]["rows"] < 200, "rows with the word were left out"
    folder = project / ".autoglm/default/runs" / first["run_id"]
    assert (folder / "note.txt").read_text() == "RELEASE"
    kept = [p for p in (project / ".autoglm").rglob("*") if p.is_file()]
    assert [p for p in kept if b"HUNTER2" in p.read_bytes()] == [], (
        "a part has it, no file keeps it"
    )
    assert (folder / "code/parts.py").read_text() == PARTS
    shown = json.loads(autoglm("models", "show", "stable", "-C", project, "--json"))
    assert shown["lineage"]["tuning"] in {"project", "source"}, "source: in a changed checkout"
    assert json.loads(autoglm("run", project, "--json", *FAST))["status"] == "unchanged"

    (project / "parts.py").write_text(PARTS.replace("RELEASE", "CHANGED"))
    second = json.loads(autoglm("run", project, "--json", *FAST))
    assert second["run_id"] not in (None, first["run_id"])
    folder = project / ".autoglm/default/runs" / second["run_id"]
    assert (folder / "note.txt").read_text() == "CHANGED"

    (project / "parts.py").write_text("import nothing_of_this_name\n")
    broken = autoglm("run", project, *FAST, code=1)
    assert "parts.py:1" in broken
    assert "Traceback" not in broken
    trial = json.loads(
        autoglm("config", "explain", "training.trainable_layers", "--trial", "0", "-C", project,
                "--run", second["run_id"], "--set", "mine={}", "--json", code=1).splitlines()[0]
    )  # fmt: skip
    assert trial["error"]["code"] == "plugin.broken"
    (project / "parts.py").write_text(PARTS)
    trial = json.loads(
        autoglm("config", "explain", "training.trainable_layers", "--trial", "0", "-C", project,
                "--run", second["run_id"], "--json")
    )  # fmt: skip
    assert trial["layer"] == f"trial 0 of {second['run_id']}"
    assert trial["value"] == 1
