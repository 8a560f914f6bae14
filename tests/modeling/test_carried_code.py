"""What a part needs of its file goes into the model's folder, wherever in the file it is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.contracts.run_spec import ProjectFile
from autoglm.errors import ModelError
from autoglm.modeling.auto_model import load_model
from autoglm.modeling.carried_code import carried_files
from autoglm.plugins import registry
from autoglm.plugins.project_files import execute
from training import toy

HEAD = """
@register("head", "mine")
def mine(hidden_size, num_outputs):
    return {body}
"""


def carried(folder: Path, above: str, body: str, **neighbours: str) -> dict[str, str]:
    text = (
        "from __future__ import annotations\nfrom autoglm import register\n"
        + above
        + HEAD.format(body=body)
    )
    sources = {**{f"{name}.py": source for name, source in neighbours.items()}, "own.py": text}
    files = [ProjectFile(name=n, digest=f"{folder}{n}", source=s) for n, s in sources.items()]
    execute(files, folder / "code")
    part: Any = registry.get("head", "mine")
    return carried_files({"head:mine": part})


@pytest.mark.parametrize(
    ("above", "body", "wanted"),
    [
        ("if True:\n    WIDTH = 8\n", "WIDTH", 8),
        ("try:\n    from math import tau as FULL\nexcept ImportError:\n    FULL = 6\n",
         "int(FULL)", 6),
        ("with open(__file__) as OWN:\n    FIRST = OWN.read(4)\n", "FIRST", "from"),
        ("for SIZE in (2, 3):\n    pass\n", "SIZE", 3),
        ("if (WIDTH := 5):\n    pass\n", "WIDTH", 5),
        ("match (1, 2):\n    case (FIRST, *REST):\n        pass\n", "(FIRST, REST)", (1, [2])),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as found:\n    SAID = str(found)\n",
         "SAID", "division by zero"),
        ("SIZES = [1]\nSIZES.append(8)\nSIZES[0] += 1\n", "SIZES", [2, 8]),
        ("from math import *\n", "int(tau) + hidden_size", 8),
        ("if True:\n    def twice(n):\n        return n * FACTOR\nif True:\n    FACTOR = 2\n",
         "twice(hidden_size)", 4),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from autoglm.clock import Clock\n"
         "    from math import tau\ndef one(n: tau): return 1\n", "one(0)", 1),
        ("import torch\ntorch.manual_seed(0)\n", "torch.ones(1).item()", 1.0),
    ],
)  # fmt: skip
def test_names_are_carried_from_wherever_they_are_made(
    tmp_path: Path, above: str, body: str, wanted: Any
) -> None:
    for name, text in carried(tmp_path, above, body).items():
        (tmp_path / name).write_text(text)
    script = (
        "import sys\n"
        "sys.modules['autoglm'] = None\n"
        f"sys.path.insert(0, {str(tmp_path.parent)!r})\n"
        f"import importlib\n"
        f"table = importlib.import_module({f'{tmp_path.name}.autoglm_parts'!r}).PARTS\n"
        "print(repr(table['head:mine'](2, 2)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == repr(wanted), done.stderr
    assert "manual_seed" not in (tmp_path / "autoglm_part_0.py").read_text()


@pytest.mark.parametrize(
    ("above", "words"),
    [
        ("globals()['WIDTH'] = 8\n", "where WIDTH comes from was not found"),
        ("try:\n    import autoglm.clock\n    WIDTH = 8\nexcept ImportError:\n    WIDTH = 9\n",
         "WIDTH is made beside an import of this package"),
        ("from neighbour import WIDTH\n", "imports neighbour, which is a file of the project"),
        ("from neighbour import *\n", "imports neighbour, which is a file of the project"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_carried_is_refused_when_the_folder_is_written(
    tmp_path: Path, above: str, words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        carried(tmp_path, above, "WIDTH", neighbour="WIDTH = 3\n")
    assert caught.value.code == "model.not_carried"
    sys.modules.pop("neighbour", None)


def test_an_object_that_has_no_hash_is_refused_as_what_cannot_be_carried() -> None:
    class Attention:
        __hash__ = None  # type: ignore[assignment]  # as a dataclass has none

    with pytest.raises(ModelError, match="no function or class") as caught:
        carried_files({"attention:mine": Attention()})
    assert caught.value.code == "model.not_carried"


def test_a_head_that_cannot_be_carried_is_refused_when_the_model_is_opened(
    tmp_path: Path,
) -> None:
    def local(hidden_size: int, num_outputs: int) -> torch.nn.Module:
        return torch.nn.Linear(hidden_size, num_outputs)

    registry.register("head", "local", local, replace=True)
    toy.backbone().save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(
            tmp_path,
            {"attention": "sdpa", "head": "local", "pooling": "mean"},
            labels=["a", "b"],
        )
    registry._registered.pop("head:local")
    assert caught.value.code == "model.not_carried"
