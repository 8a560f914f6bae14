"""The reference page's examples are sound, and those that the product uses do their work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoglm.cli.skeleton import USAGE, write_skeleton
from autoglm.plugins import registry
from autoglm.plugins.examples import EXAMPLES, source_of
from autoglm.plugins.kinds import KINDS


def made(kind: str) -> Any:
    scope: dict[str, Any] = {"__name__": "example"}
    exec(compile(source_of(kind, "mine", part="Part"), kind, "exec", dont_inherit=True), scope)
    return scope["Part"]


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_smallest_example_of_every_kind_is_sound(kind: str) -> None:
    registry.check(kind, "mine", made(kind))
    page = Path(__file__).parents[2] / "docs" / "reference" / "plugins.md"
    assert EXAMPLES[kind].strip() in page.read_text()


def test_the_example_attention_is_dense_attention() -> None:
    import torch

    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind()
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, :, :, 3:] = False
    found, _ = made("attention")(None, query, key, value, mask)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-6)


def test_the_example_source_and_processor_and_evaluator_work() -> None:
    source = made("source")(None, project="p", base=Path(), batch_rows=1, columns=())
    (batch,) = source.read("")
    assert list(source.read(batch.position)) == []
    assert made("processor")().process(batch.events).rows[0].row["text"] == "a"
    evaluator = made("evaluator")()
    assert evaluator.evaluate(["sport", "sport", "x"], ["sport", "x", "x"]).value == 0.5
    assert evaluator.evaluate(["x"], ["x"]).value == 1.0
    assert evaluator.evaluate([], []).value is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [("evaluator", "my-part"), ("attention", "my-part"), ("step", "my-part"),
     ("section", "my_part")],
)  # fmt: skip
def test_a_skeleton_is_written_and_its_own_test_passes(
    kind: str, name: str, tmp_path: Path
) -> None:
    autoglm = [sys.executable, "-m", "autoglm.cli"]
    folder = tmp_path / "my-part"
    subprocess.run([*autoglm, "init", str(folder), "--plugin", kind, name], check=True)
    path = os.pathsep.join([str(folder), *sys.path])
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=folder, env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr
    again = subprocess.run(
        [*autoglm, "init", str(folder), "--plugin", kind, name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (again.returncode, "config.exists" in again.stderr) == (2, True)


def test_a_skeleton_says_how_its_kind_comes_to_be_used(tmp_path: Path) -> None:
    assert set(USAGE) == set(KINDS)
    for kind in KINDS:
        name = "my_part" if kind == "section" else "my-part"
        write_skeleton(kind, name, tmp_path / kind)
        readme = (tmp_path / kind / "README.md").read_text()
        assert name in readme
        assert "{{" not in readme
        assert re.search(r"^An? `", readme, re.MULTILINE)
        is_used = "A project" in readme or "It is asked" in readme
        assert is_used or re.search(r"No (key|command) .* yet", readme)
