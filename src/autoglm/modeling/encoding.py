"""Inputs → token ids, alike in training and serving. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoglm.contracts.task import TaskForm


def open_tokenizer(folder: Path, max_length: int, form: TaskForm) -> Any:
    """The folder's tokenizer: cuts at `max_length`, and pads nothing but what has no token at all,
    which is read as one that pads. Before a text it reads the prefix that the backbone was trained
    with, if its `autoglm.json` names one.
    """
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=1, pad_id=_pad_id_of(folder))
    tokenizer.enable_truncation(max_length)
    prefix = prefix_of(folder)
    if prefix and form.reads == "text":
        steps = [normalizers.Prepend(prefix), tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([step for step in steps if step is not None])
    return tokenizer


def _pad_id_of(folder: Path) -> int:
    """By a version's `autoglm.json` or a backbone's `config.json`; 0 where neither says one."""
    for name, key in (("autoglm.json", "pad_id"), ("config.json", "pad_token_id")):
        with suppress(FileNotFoundError):
            facts = json.loads((folder / name).read_text(encoding="utf-8"))
            if isinstance(said := facts.get(key), int):
                return said
    return 0


def prefix_of(folder: Path) -> str:
    """What a text begins with, by the folder's `autoglm.json`; empty where nothing is said."""
    try:
        facts = json.loads((folder / "autoglm.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    return str(facts.get("prefix", ""))


def encode(tokenizer: Any, inputs: Sequence[Any]) -> list[Any]:
    """One encoding per text, or per tuple of tokens, in order."""
    if inputs and not isinstance(inputs[0], str):
        found: list[Any] = tokenizer.encode_batch(list(map(list, inputs)), is_pretokenized=True)
        return found
    return list(tokenizer.encode_batch(list(inputs)))


def first_tokens(encoding: Any) -> list[tuple[int, int]]:
    """(place of its first token, number) of each word that was read; a word without any token, or
    behind the cut, has none.
    """
    seen: set[int] = set()
    found = []
    for place, word in enumerate(encoding.word_ids):
        if word is not None and word not in seen:
            seen.add(word)
            found.append((place, word))
    return found
