"""Pictures on their way to the vision tower, each distinct one opened and processed once."""

import io
import threading
import warnings
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxtyping import Float32, Int64
from PIL import Image
from qwen_vl_utils.vision_process import fetch_image, smart_resize
from torch import Tensor

from coral_lab.images import Picture, jpeg, open_image

LIMIT = 2**30

USUAL = (448, 448)
"""Width and height in pixels that a picture is taken to have if it would have to be drawn, fetched or decoded
to know.
"""

FACTOR = 28
"""Both sides are multiples of this many pixels when qwen-vl-utils is done."""

Pixel = tuple[Float32[Tensor, "patch 1176"], Int64[Tensor, " 3"]]
"""A processed picture: `pixel_values` and its grid (time, height, width) in patches."""


def key(picture: Picture) -> Hashable:
    """Equal for the same picture: its bytes, its path and state on disk, or the object that holds or draws
    it.
    """
    if isinstance(picture, str | Path):
        try:
            state = Path(str(picture).removeprefix("file://")).stat()
        except OSError:  # an address or a missing file: opening it will say what is wrong
            return str(picture)
        return str(picture), state.st_mtime_ns, state.st_size
    return picture if isinstance(picture, bytes) else id(picture)


class Pixels:
    """Pictures after qwen-vl-utils and an image processor, kept until `limit` bytes are full.

    They do not depend on a model's weights, so they stay right while it learns. With a `thumbnail_size` in
    pixels, JPEGs of newly opened pictures gather in `thumbnails`, for a picture is costly to open twice.
    """

    def __init__(self, image_processor, limit: int = LIMIT):
        self.image_processor, self.limit, self.size = image_processor, limit, 0
        self._kept: dict[Hashable, tuple[Picture, Pixel]] = {}
        self._lock = threading.Lock()
        self.thumbnail_size: int | None = None
        self.thumbnails: dict[Hashable, bytes] = {}

    def __call__(self, pictures: Iterable[tuple[Picture, str]]) -> dict[Hashable, Pixel]:
        """Every distinct picture's pixels, by `key`; `pictures` come with the name of their item.

        Raises ItemError for a picture that cannot be opened.
        """
        wanted = {key(picture): (picture, name) for picture, name in pictures}
        with self._lock:
            return self._looked_up(wanted)

    def _looked_up(self, wanted: Mapping[Hashable, tuple[Picture, str]]) -> dict[Hashable, Pixel]:
        missing = {k: pair for k, pair in wanted.items() if k not in self._kept}
        fresh = dict(zip(missing, self._process(list(missing.values())), strict=True))
        for k, pixel in fresh.items():
            if self.size < self.limit:  # with the picture itself, so that no other object gets its id
                self._kept[k] = (missing[k][0], pixel)
                self.size += pixel[0].numel() * pixel[0].element_size()
        return {k: fresh[k] if k in fresh else self._kept[k][1] for k in wanted}

    def tokens(self, picture: Picture) -> int:
        """How many image tokens a picture will be, told from its size, and 0 if it cannot be read: opening it
        says why.

        An estimate if the size is not at hand, see USUAL.
        """
        merge = self.image_processor.merge_size**2
        if kept := self._kept.get(key(picture)):
            return int(kept[1][1].prod()) // merge
        try:
            width, height = _size(picture)
            return (
                self.image_processor.get_number_of_image_patches(*smart_resize(height, width, FACTOR))
                // merge
            )
        except (OSError, ValueError, Image.DecompressionBombError):
            return 0

    def _process(self, pictures: list[tuple[Picture, str]]) -> list[Pixel]:
        """As the model card's code does: qwen-vl-utils first, then the checkpoint's image processor."""
        if not pictures:
            return []
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self._open, pictures))
        output = self.image_processor(images=images, return_tensors="pt")
        sizes = output["image_grid_thw"].prod(-1).tolist()
        return list(zip(output["pixel_values"].split(sizes), output["image_grid_thw"], strict=True))

    def _open(self, pair: tuple[Picture, str]) -> Image.Image:
        image = open_image(*pair)
        if self.thumbnail_size:
            self.thumbnails[key(pair[0])] = jpeg(image, pair[1], self.thumbnail_size)
        return fetch_image({"image": image})


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height, up to their order; at most a file's header is read."""
    if isinstance(picture, Image.Image):
        return picture.size
    if callable(picture) or str(picture).startswith("data:"):
        return USUAL
    file = picture if isinstance(picture, bytes) else str(picture).removeprefix("file://")
    with (
        warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
        Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image,
    ):
        return image.size
