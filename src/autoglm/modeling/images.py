"""Images as a backbone reads them: bytes or a path → pixels. numpy and Pillow, no torch.

What is done stands in the backbone's `preprocessor_config.json`, in transformers' own words.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoglm.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

PREPROCESSOR = "preprocessor_config.json"
LONGEST_PATH = 4096
# A PNG of one grey pixel.
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessor:
    """`resize` is the shorter side, or (height, width); None leaves the size. `crop` (height,
    width) is cut from the middle. `scale`, `mean` and `std` turn 0…255 into what the layers see.
    """

    num_channels: int
    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, folder: Path) -> Preprocessor:
        """As the folder says; `num_channels` stands in its `config.json`."""
        said = json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8"))
        num_channels = _num_channels(json.loads((folder / "config.json").read_text("utf-8")))
        size, crop = said.get("size") or {}, said.get("crop_size") or {}
        is_normalised = said.get("do_normalize", True)
        return cls(
            num_channels=num_channels,
            resize=_resize(size) if said.get("do_resize", True) else None,
            crop=_sides(crop) if said.get("do_center_crop") else None,
            resample=int(said.get("resample", 2)),
            scale=float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1,
            mean=_per_channel(said["image_mean"] if is_normalised else 0.0, num_channels),
            std=_per_channel(said["image_std"] if is_normalised else 1.0, num_channels),
        )

    def raw(self, value: bytes | str | Path) -> NDArray[np.uint8]:
        """(channels, height, width) of 0…255, resized and cropped. Raises: as `opened`."""
        import numpy as np

        with opened(value) as image:
            made = image.convert("L" if self.num_channels == 1 else "RGB")
        made = _cropped(self._resized(made), self.crop)
        pixels = np.asarray(made, np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def normalised(self, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The values that the first layer sees; the shape stays (…, channels, height, width)."""
        import numpy as np

        mean, std = (np.array(x, np.float32)[:, None, None] for x in (self.mean, self.std))
        return ((raw * np.float32(self.scale) - mean) / std).astype(np.float32)

    def pixels(self, value: bytes | str | Path) -> NDArray[np.float32]:
        return self.normalised(self.raw(value))

    def _resized(self, image: Image) -> Image:
        if self.resize is None:
            return image
        width, height = image.size
        if isinstance(self.resize, tuple):
            wanted = (self.resize[1], self.resize[0])
        else:
            # The longer side is cut to whole pixels, not rounded: as transformers does it.
            short = min(width, height)
            wanted = (self.resize * width // short, self.resize * height // short)
        return image if image.size == wanted else image.resize(wanted, self.resample)


class Pixels(Sequence[Any]):
    """Rows of an image data set: read once, kept as bytes, normalised when asked for."""

    def __init__(self, values: Sequence[bytes | str | Path], preprocessor: Preprocessor) -> None:
        self._preprocessor = preprocessor
        self._rows = [preprocessor.raw(value) for value in values]

    def first(self, count: int) -> Pixels:
        """The first rows, without reading them again."""
        return self.chosen(range(len(self._rows))[:count])

    def chosen(self, rows: Sequence[int]) -> Pixels:
        """These rows in this order, without reading them again."""
        part = Pixels([], self._preprocessor)
        part._rows = [self._rows[row] for row in rows]
        return part

    def group(self, row: int) -> bytes:
        """Names what is to be seen in a row."""
        return bytes(self._rows[row])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return self._preprocessor.normalised(self._rows[row])

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))


def opened(value: bytes | str | Path) -> Image:
    """A PNG, JPEG or what else Pillow reads, from its bytes or its path.

    Raises: DataError data.not_an_image.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(value) if isinstance(value, bytes) else value)
        image.load()
    # Pillow raises SyntaxError and ValueError, too, for what is damaged.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
        raise DataError(
            f"{what}: {type(error).__name__}: {str(error).rstrip('.')}.",
            code="data.not_an_image",
            next_step="Give the bytes of a PNG or JPEG file, or the path of one.",
        ) from error
    return image


def image_of(cell: bytes | str) -> bytes:
    """The file that a cell of an image column holds: base64, or a `data:` address with it.

    Raises: DataError data.not_an_image.
    """
    if isinstance(cell, bytes):
        return cell
    try:
        return base64.b64decode(
            cell.partition(",")[2] if cell.startswith("data:") else cell, validate=True
        )
    except ValueError as error:
        raise DataError(
            f"{cell[:40]!r}… is no base64: {error}.",
            code="data.not_an_image",
            next_step="Give the bytes of a PNG or JPEG file in base64.",
        ) from error


def cell_of(value: str, base: Path) -> str:
    """What the table keeps for an image: base64 of the file. `value` is that already, or the path
    of a file below `base`. What it shows is checked.

    Raises: DataError data.not_an_image, data.outside for a path that leaves `base`.
    """
    content = _file_below(value, base)
    content = image_of(value) if content is None else content
    with opened(content):
        return base64.b64encode(content).decode("ascii")


def _file_below(value: str, base: Path) -> bytes | None:
    """Content of the file at the path `value`; None where there is none."""
    if len(value) > LONGEST_PATH or "\0" in value:
        return None
    path = (base / value).resolve()
    try:
        if not path.is_file():
            return None
    except OSError:
        return None
    if not path.is_relative_to(base.resolve()):
        raise DataError(
            f"{value!r} lies outside of the project.",
            code="data.outside",
            next_step="Keep the images in the project's folder, or store them in base64.",
        )
    return path.read_bytes()


def _cropped(image: Image, crop: tuple[int, int] | None) -> Image:
    """The middle; what lies outside of a smaller image is black."""
    if crop is None or image.size == (crop[1], crop[0]):
        return image
    left, top = (image.width - crop[1]) // 2, (image.height - crop[0]) // 2
    return image.crop((left, top, left + crop[1], top + crop[0]))


def _num_channels(config: Mapping[str, Any]) -> int:
    inner = config.get("backbone_config") or config
    return int(inner.get("num_channels", 3))


def _resize(size: Mapping[str, int]) -> int | tuple[int, int] | None:
    return int(size["shortest_edge"]) if "shortest_edge" in size else _sides(size)


def _sides(size: Mapping[str, int]) -> tuple[int, int] | None:
    return (int(size["height"]), int(size["width"])) if "height" in size else None


def _per_channel(said: Any, num_channels: int) -> tuple[float, ...]:
    values = [float(x) for x in said] if isinstance(said, (list, tuple)) else [float(said)]
    return tuple(values * num_channels if len(values) == 1 else values)
