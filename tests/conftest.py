"""What several areas need: a tiny real backbone, and rows that can be learnt."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servers import MariaDb, Postgres

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, one for all tests of this process; each makes its own tables."""
    if Postgres.initdb() is None:
        pytest.skip("no PostgreSQL server on this machine")
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDb]:
    """A MariaDB server, one for all tests of this process; each makes its own tables."""
    if MariaDb.server() is None:
        pytest.skip("no MariaDB server on this machine")
    server = MariaDb()
    yield server
    server.remove()


# Files of a minute and more, longest first: of two processes none shall begin one at the end.
LONGEST = (
    "loop/test_trip.py", "loop/test_tasks.py", "api/test_up.py", "plugins/test_own_parts.py",
    "cli/test_bad_days.py", "modeling/test_package_weights.py", "modeling/test_surgery.py",
    "modeling/test_attention.py", "training/test_trainer.py", "loop/test_stations.py",
    "integrations/test_kafka.py", "streaming/test_consumer_group.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))


WORDS = {
    "sport": [
        "goal",
        "match",
        "team",
        "coach",
        "league",
        "striker",
        "cup",
        "final",
        "referee",
        "stadium",
    ],
    "money": [
        "bank",
        "market",
        "shares",
        "profit",
        "trade",
        "euro",
        "budget",
        "loan",
        "investor",
        "price",
    ],
}
FILLER = [
    "the",
    "a",
    "of",
    "and",
    "to",
    "in",
    "on",
    "for",
    "with",
    "said",
    "today",
    "after",
    "before",
    "new",
    "old",
    "many",
]


def learnable_rows(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose label can be told from a few words."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("sport", "money")[number % 2]
        words = [*draw.choices(WORDS[label], k=4), *draw.choices(FILLER, k=6), f"n{seed}x{number}"]
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers with a word tokenizer: everything is real but its size."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("backbone")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *sorted({w for ws in (*WORDS.values(), FILLER) for w in ws}),
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in learnable_rows(200)))
    return path


# One thread: in a toy two of them only wait for each other.
FAST = [
    "--set", "search.trials=2",
    "--set", "search.space={trainable_layers: {choice: [0, 1]}}",
    "--set", "training.epochs=1",
    "--set", "training.threads=1",
    "--set", "release.min_requests=5",
    "--set", "release.pause_above_mean_latency=60s",
    "--set", "evaluate.margin=10%",
]  # fmt: skip


@pytest.fixture(scope="session")
def share_graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Lets a new project begin with the graphs that others have exported: toys are of few kinds."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    folder.mkdir(exist_ok=True)

    def share(project: Path) -> None:
        work = project / ".autoglm/default/work"
        work.mkdir(parents=True)
        (work / "graphs").symlink_to(folder)

    return share


class RoundTrip:
    """A project that went round the loop once by `FAST`, and what `run --json` said of it.

    A run is 25 s of CPU: tests that begin with a released model share this one. Each gets it back
    as it was, in the same place, since its records hold whole paths.
    """

    def __init__(
        self, folder: Path, rows: Path, backbone: Path, share_graphs: Callable[[Path], None]
    ) -> None:
        self._folder, self._kept = folder, folder.with_name("kept")
        autoglm = [sys.executable, "-m", "autoglm.cli"]
        init = [*autoglm, "init", str(folder), "--from", str(rows), "--backbone", str(backbone)]
        subprocess.run(init, check=True)
        share_graphs(folder)
        run = [*autoglm, "run", str(folder), "--json", *FAST]
        done = subprocess.run(run, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        self.first: dict[str, Any] = json.loads(done.stdout)
        shutil.copytree(folder, self._kept)

    def project(self) -> Path:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._kept, self._folder)
        return self._folder


@pytest.fixture(scope="session")
def round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_backbone: Path,
    share_graphs: Callable[[Path], None],
) -> RoundTrip:
    folder = tmp_path_factory.mktemp("round")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in learnable_rows(200)))
    return RoundTrip(folder / "project", rows, tiny_backbone, share_graphs)
