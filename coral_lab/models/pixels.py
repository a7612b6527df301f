"""Pictures on their way to the vision tower, each distinct one opened and processed once."""

import io
import os
import threading
import warnings
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from jaxtyping import Float32, Int64
from PIL import Image
from qwen_vl_utils.vision_process import SPATIAL_MERGE_SIZE, fetch_image, smart_resize
from torch import Tensor

from coral_lab.errors import ItemError
from coral_lab.images import FORMATS, Picture, Sized, jpeg, opened, pixels_identity, told_identity

LIMIT = 2**30

USUAL = (448, 448)
"""Width and height in pixels that a picture is taken to have if it would have to be drawn, fetched or decoded
to know.
"""

TOGETHER = 16
"""Pictures that a thread opens and processes: few enough to be put together in memory that is used again."""

THREADS = min(32, os.cpu_count() or 1)
"""One a core: more of them are in one another's way (benchmarks/sampler.py, with another number here)."""

Wanted = tuple[Picture | Sized, str]
"""A picture, and the name of its item."""

Pixel = tuple[Float32[Tensor, "patch number"], Int64[Tensor, " 3"]]
"""A processed picture: `pixel_values` and its grid (time, height, width) in patches."""


def key(picture: Picture | Sized) -> Hashable:
    """What a picture goes by within one call: its path, its bytes, or the object that holds or draws it."""
    if isinstance(picture, Sized):
        return key(picture.picture), picture.limits
    if isinstance(picture, str | Path):
        return str(picture)
    return picture if isinstance(picture, bytes) else id(picture)


def as_on_the_card(picture: Picture | Sized, item: str, patch: int, straight: bool = False) -> Image.Image:
    """The picture as qwen-vl-utils hands it to the image processor: sides are multiples of two patches of so
    many pixels. One without limits of its own that goes there `straight` is as it is. Raises ItemError.
    """
    plain, limits = _parts(picture)
    with opened(plain, item) as image:
        return image.copy() if straight and not limits else _fetched(image, limits, item, patch)


def _parts(picture: Picture | Sized) -> tuple[Picture, tuple[tuple[str, int], ...]]:
    return (picture.picture, picture.limits) if isinstance(picture, Sized) else (picture, ())


def _fetched(image: Image.Image, limits: tuple[tuple[str, int], ...], item: str, patch: int) -> Image.Image:
    try:
        return fetch_image({"image": image, **dict(limits)}, image_patch_size=patch)
    except (ValueError, AssertionError) as error:  # of its smart_resize
        raise ItemError(item, f"picture does not fit {dict(limits)} ({error})") from None


class Pixels:
    """Pictures after qwen-vl-utils and an image processor, kept by content until `limit` bytes are full.

    They do not depend on a model's weights, so they stay right while it learns. `options` go to the image
    processor, and `straight` leaves qwen-vl-utils out. With a `thumbnail_size` in pixels, JPEGs of newly
    opened pictures gather in `thumbnails`, for a picture is costly to open twice.
    """

    def __init__(
        self,
        image_processor,
        limit: int = LIMIT,
        options: Mapping[str, bool] | None = None,
        straight: bool = False,
    ):
        self.image_processor, self.limit, self.size = image_processor, limit, 0
        self.straight = straight
        self.options = dict(options or {})
        self._kept: dict[Hashable, Pixel] = {}
        self._lock = threading.Lock()
        self.thumbnail_size: int | None = None
        self.thumbnails: dict[Hashable, bytes] = {}

    def __call__(self, pictures: Iterable[tuple[Picture | Sized, str]]) -> dict[Hashable, Pixel]:
        """Every distinct picture's pixels, by `key`; `pictures` come with the name of their item.

        Raises ItemError for a picture that cannot be opened.
        """
        wanted = {key(picture): (picture, name) for picture, name in pictures}
        with self._lock:
            return self._looked_up(wanted)

    def _looked_up(self, wanted: Mapping[Hashable, tuple[Picture | Sized, str]]) -> dict[Hashable, Pixel]:
        with ThreadPoolExecutor(THREADS) as pool:
            looks = dict(zip(wanted, pool.map(self._look, wanted, wanted.values()), strict=True))
            missing = {content: k for k, (content, _) in looks.items() if content not in self._kept}
            keys = list(missing.values())
            read = {**wanted, **_read_in_order({k: wanted[k] for k in keys if looks[k][1] is None})}
            groups = [keys[at : at + TOGETHER] for at in range(0, len(keys), TOGETHER)]
            made = pool.map(
                lambda some: self._process([looks[k][1] or self._open(k, read[k])[1] for k in some]), groups
            )
            fresh = dict(zip(missing, chain.from_iterable(made), strict=True))
        for content, pixel in fresh.items():
            if self.size < self.limit:
                self._kept[content] = pixel
                self.size += pixel[0].numel() * pixel[0].element_size()
        return {k: fresh.get(content) or self._kept[content] for k, (content, _) in looks.items()}

    def tokens(self, picture: Picture | Sized) -> int:
        """How many image tokens a picture will be, told from its size, and 0 if it cannot be read: opening it
        says why.

        An estimate if the size is not at hand, see USUAL.
        """
        merge = self.image_processor.merge_size**2
        plain, limits = _parts(picture)
        if hasattr(plain, "identity") and (kept := self._kept.get((plain.identity, limits))):
            return int(kept[1].prod()) // merge
        try:
            patch = self.image_processor.patch_size
            if self.straight and not limits:
                width, height = _size(plain)
            else:
                height, width = _size_on_the_card(plain, dict(limits), patch * SPATIAL_MERGE_SIZE)
            if not self.options.get("do_resize", True):
                return (height // patch) * (width // patch) // merge
            return self.image_processor.get_number_of_image_patches(height, width) // merge
        except (OSError, ValueError, AssertionError, Image.DecompressionBombError):
            return 0

    def _process(self, images: list[Image.Image]) -> list[Pixel]:
        if not images:
            return []
        output = self.image_processor(images=images, return_tensors="pt", **self.options)
        sizes = output["image_grid_thw"].prod(-1).tolist()
        return list(zip(output["pixel_values"].split(sizes), output["image_grid_thw"], strict=True))

    def _look(self, own: Hashable, pair: tuple[Picture | Sized, str]) -> tuple[Hashable, Image.Image | None]:
        """What a picture is, with its limits, and as the image processor gets it if it had to be opened."""
        plain, limits = _parts(pair[0])
        told = told_identity(plain)
        return ((told, limits), None) if told else self._open(own, pair)

    def _open(self, own: Hashable, pair: tuple[Picture | Sized, str]) -> tuple[Hashable, Image.Image]:
        (plain, limits), item = _parts(pair[0]), pair[1]
        with opened(plain, item) as image:
            if self.thumbnail_size:
                self.thumbnails[own] = jpeg(image, item, self.thumbnail_size)
            told = told_identity(plain) or pixels_identity(image)
            if self.straight and not limits:
                return (told, limits), image.copy()
            return (told, limits), _fetched(image, limits, item, self.image_processor.patch_size)


def _read_in_order(wanted: Mapping[Hashable, Wanted]) -> dict[Hashable, Wanted]:
    """Those that lie in rows of a file, read as they lie there: one by one by several threads, row groups
    would be read again and again. What cannot be read is left to be opened, which says why.
    """
    stored: dict[Hashable, Any] = {k: _parts(own)[0] for k, (own, _) in wanted.items()}
    stored = {k: own for k, own in stored.items() if hasattr(own, "place")}
    found: dict[Hashable, Wanted] = {}
    for k in sorted(stored, key=lambda k: stored[k].place):
        limits, item = _parts(wanted[k][0])[1], wanted[k][1]
        with suppress(ItemError):
            content = stored[k]()
            found[k] = (Sized(content, limits) if limits else content), item
    return found


def _size_on_the_card(picture: Picture, limits: dict[str, int], factor: int) -> tuple[int, int]:
    """Height and width as `fetch_image` makes them, multiples of `factor`."""
    if "resized_height" in limits:
        return smart_resize(limits["resized_height"], limits["resized_width"], factor)
    width, height = _size(picture)
    return smart_resize(height, width, factor, limits.get("min_pixels"), limits.get("max_pixels"))


def _size(picture: Picture) -> tuple[int, int]:
    """Width and height, up to their order; at most a file's header is read."""
    if isinstance(picture, Image.Image):
        return picture.size
    if callable(picture) or str(picture).startswith("data:"):
        return USUAL
    file = picture if isinstance(picture, bytes) else str(picture).removeprefix("file://")
    with (
        warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
        Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image,
    ):
        return image.size
