"""Opening pictures safely, one way for all of them: upright, RGB, on white, or an error that names the item.

And as small pictures for HTML.
"""

import base64
import io
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path

from PIL import Image, ImageOps

from coral_lab.errors import ItemError

Picture = Image.Image | Path | str | bytes | Callable[[], Image.Image | Path | bytes]
"""A picture in memory, a local file, encoded bytes, or a function that draws or reads it when it is needed.
"""

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs, about 9,500 x 9,500 pixels; more is refused here."""

MAX_ASPECT_RATIO = 200
"""Qwen2.5-VL's image processor refuses longer strips (transformers `smart_resize`)."""


def open_image(picture: Picture, item: str) -> Image.Image:
    """The picture as RGB, rotated as its EXIF says, transparency on white as qwen-vl-utils does.

    `item` is what an error calls it, e.g. "product 17". Raises ItemError for a missing, truncated, too large,
    too narrow or unreadable picture and for remote addresses, which are never fetched.
    """
    try:
        image = _read(picture, item)
        _check_size(image, item)
        return _on_white(ImageOps.exif_transpose(image))
    except ItemError:
        raise
    except FileNotFoundError as error:
        raise ItemError(item, f"picture {error.filename!r} does not exist; check the path") from error
    except Exception as error:  # on broken bytes Pillow's decoders raise whatever they run into
        raise ItemError(item, f"picture cannot be read ({error}); replace or leave out this item") from error


def _read(picture: Picture, item: str) -> Image.Image:
    if callable(picture):
        picture = picture()
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str):
        picture = _from_address(picture, item)
    if not isinstance(picture, bytes | Path):
        raise ItemError(item, f"picture is a {type(picture).__name__}; give a path, bytes or a PIL image")
    with warnings.catch_warnings():  # the size is checked by us, before any pixel is decoded
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def _from_address(address: str, item: str) -> bytes | Path:
    if address.startswith(("http://", "https://")):
        raise ItemError(item, f"picture {address!r} is remote; download it and give the local path")
    if address.startswith("data:"):
        return base64.b64decode(address.partition("base64,")[2], validate=True)
    return Path(address.removeprefix("file://"))


def _check_size(image: Image.Image, item: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ItemError(
            item, f"picture has {width} x {height} pixels, more than {MAX_PIXELS:,}; shrink it first"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        problem = f"picture is {width} x {height}, longer than {MAX_ASPECT_RATIO}:1; crop it"
        raise ItemError(item, problem)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would clip 16 bits at 255: nearly all of it white
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def jpeg(picture: Picture, item: str, size: int) -> bytes:
    """The picture as a JPEG of at most `size` pixels a side. Raises ItemError as `open_image` does."""
    image = open_image(picture, item)
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def thumbnail(picture: Picture, item: str, size: int = 96) -> str:
    """The picture as a JPEG `data:` address of at most `size` pixels a side, for HTML."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(picture, item, size)).decode()


def img(address: str | None, size: int, alt: str, inline: bool = False, why: str = "no picture") -> str:
    """An `<img>` of `size` pixels, or without an address a dashed box that says why there is none."""
    style = f"width:{size}px;height:{size}px;object-fit:contain;border-radius:6px;"
    style += "vertical-align:middle;margin:2px" if inline else "display:block;margin:0 auto 6px"
    if address is None:
        style += ";display:inline-block;border:1px dashed #8886;text-align:center"
        return f'<span style="{style};overflow:hidden;font-size:11px">{escape(why)}</span>'
    return f'<img src="{address}" alt="{escape(alt, quote=True)}" style="{style}">'


def paste_together(images: list[Image.Image]) -> Image.Image:
    """All pictures side by side on white at the first one's height: the paper's `Cat` input."""
    height = images[0].height
    resized = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    sheet = Image.new("RGB", (sum(image.width for image in resized), height), "white")
    left = 0
    for image in resized:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet
