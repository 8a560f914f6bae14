"""What `models show` tells people to type is what opens the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoglm.cli.models import opening_line


@pytest.mark.parametrize(
    ("config", "opens_with", "line"),
    [
        (
            {"architectures": ["BertForTokenClassification"]},
            "transformers",
            'AutoModelForTokenClassification.from_pretrained("{folder}")',
        ),
        (
            {
                "architectures": ["AutoGLMForSequenceClassification"],
                "auto_map": {"AutoConfig": "a.B", "AutoModelForImageClassification": "a.C"},
            },
            "transformers+code",
            'AutoModelForImageClassification.from_pretrained("{folder}", trust_remote_code=True)',
        ),
    ],
)
def test_the_class_is_the_folders_own(
    tmp_path: Path, config: dict[str, object], opens_with: str, line: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert opening_line(opens_with, str(tmp_path)) == line.format(folder=tmp_path)
