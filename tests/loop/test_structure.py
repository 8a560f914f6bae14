"""A run whose backbone is cut, adapted and given another attention: searched, exported, served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


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
