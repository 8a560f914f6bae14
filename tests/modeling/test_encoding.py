"""Texts begin with what the backbone was trained with; tokens do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

from autoglm.contracts.task import TASKS
from autoglm.modeling.encoding import encode, first_tokens, open_tokenizer

TEXT, TOKENS = TASKS["text-classification"], TASKS["token-classification"]


def with_prefix(backbone: Path, folder: Path, prefix: str) -> Path:
    shutil.copytree(backbone, folder)
    (folder / "autoglm.json").write_text(json.dumps({"prefix": prefix}))
    return folder


def test_a_prefix_is_read_before_texts_and_not_before_tokens(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = with_prefix(tiny_backbone, tmp_path / "e5", "the goal ")
    plain, prefixed = (open_tokenizer(f, 8, TEXT) for f in (tiny_backbone, folder))
    (said,), (wanted,) = encode(prefixed, ["match today"]), encode(plain, ["the goal match today"])
    assert said.ids == wanted.ids
    assert max(end for _, end in said.offsets) == len("match today"), "places in the text itself"
    assert len(encode(prefixed, ["match " * 20])[0].ids) == 8
    (tagged,) = encode(open_tokenizer(folder, 8, TOKENS), [("match", "today")])
    assert tagged.ids == encode(plain, ["match today"])[0].ids


def test_words_are_told_apart_by_their_first_token(tiny_backbone: Path) -> None:
    tokenizer = open_tokenizer(tiny_backbone, 5, TOKENS)
    (encoding,) = encode(tokenizer, [("goal", "match", "team", "coach", "cup")])
    assert first_tokens(encoding) == [(1, 0), (2, 1), (3, 2)]


def test_what_has_no_token_at_all_is_read_as_one_that_pads(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1, "[PAD]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"pad_token_id": 2}')
    said = encode(open_tokenizer(tmp_path, 4, TEXT), ["", " ", "word", "word " * 9])
    assert [each.ids for each in said] == [[2], [2], [1], [1, 1, 1, 1]]
    (tagged,) = encode(open_tokenizer(tmp_path, 4, TOKENS), [(" ",)])
    assert tagged.ids == [2]
    assert first_tokens(tagged) == []
