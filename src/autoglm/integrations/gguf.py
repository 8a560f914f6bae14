"""llama.cpp's GGUF as a Hugging Face folder, by transformers' own reader. Extra: gguf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autoglm.errors import ModelError
from autoglm.modeling.backbones.weights_file import damaged

MAGIC = b"GGUF"


class GgufConverter:
    """Port Converter. float32: a weight of 4 bits times its scale has more bits than bfloat16,
    and a processor trains in float32; twice the disk is the price. The chat template is kept.
    """

    version = 1

    def recognises(self, file: Path, head: bytes) -> bool:
        return head.startswith(MAGIC)

    def convert(self, source: Path, folder: Path) -> Mapping[str, Any]:
        """Raises: ModelError model.missing_extra, model.damaged, model.unknown_format."""
        if find_spec("gguf") is None:
            raise ModelError(
                f"{source} is a GGUF file; reading it needs the package gguf.",
                code="model.missing_extra",
                next_step="pip install open-autoglm[gguf]",
            )
        with _remembering():
            return self._convert(source, folder)

    def _convert(self, source: Path, folder: Path) -> Mapping[str, Any]:
        _check(source)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        where = {"gguf_file": source.name, "local_files_only": True}
        whole = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
            model = AutoModelForCausalLM.from_pretrained(source.parent, **whole, **where)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise ModelError(
                f"{source}: {error}.",
                code="model.unknown_format",
                next_step="transformers reads Llama, Qwen, Gemma and some more from GGUF.",
            ) from error
        _plain(model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {}


@contextmanager
def _remembering() -> Iterator[None]:
    """Transformers opens the file five times and makes the table of names once per module; each
    takes long (a view per word of the vocabulary, thousands of names): it gets the same one again.
    """
    import gguf

    known = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, part in known.items():
        setattr(gguf, name, lru_cache(maxsize=1)(part))
    try:
        yield
    finally:
        for name, part in known.items():
            setattr(gguf, name, part)


def _check(source: Path) -> None:
    """All tensors lie within the file; the reader itself says so in many ways, or not at all."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(source))
        end = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise damaged(source, f"its head cannot be read ({error})") from error
    if end > source.stat().st_size:
        raise damaged(source, f"tensors end at byte {end}, it has {source.stat().st_size}")


def _plain(model: Any) -> Any:
    """The same weights in a model that was never quantised: the loaded one refuses to be saved,
    and its config would make the next reader look for blocks.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain
