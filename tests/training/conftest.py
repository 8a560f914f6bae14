"""Toys are too small to share: two threads would wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autoglm.training.decisions import Decisions


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bf16(tmp_path: Path) -> dict[str, Any]:
    """Settings of a trainer that computes in bf16 on any processor: its speed is given."""
    decisions = Decisions(tmp_path / "decisions.json")
    decisions.decided("precision", lambda: {"bf16": 2.0, "fp16": 1.5})
    return {"precision": "bf16", "decisions": decisions}
