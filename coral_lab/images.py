"""Opening pictures safely, one way for all of them: upright, RGB, on white, or an error that names the item.

And as small pictures for HTML.
"""

import base64
import hashlib
import io
import stat
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from coral_lab.errors import ItemError

Picture = Image.Image | Path | str | bytes | Callable[[], Image.Image | Path | bytes]
"""A picture in memory, a local file, encoded bytes, or a function that draws or reads it when it is needed.
"""


@dataclass(frozen=True, eq=False)
class Sized:
    """A picture as a chat message shows it, with limits of its own: pairs of qwen-vl-utils' names and numbers
    of pixels.
    """

    picture: Picture
    limits: tuple[tuple[str, int], ...]


MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs, about 9,500 x 9,500 pixels; more is refused here."""

LONGEST_PATH = 4096
"""Characters; what is longer was meant to be something else."""

MAX_ASPECT_RATIO = 200
"""Qwen2.5-VL's image processor refuses longer strips (transformers `smart_resize`)."""


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded; Pillow knows dozens more, one of which starts another program."""

LARGEST = 2**28
"""Bytes of a picture's file."""

LARGE = 2**23
"""Pixels of a picture that threads open one after another, so that memory has a bound."""

_turn = threading.RLock()

# Pillow takes a large picture's memory in pieces that malloc keeps for the thread that asked; in one piece it
# goes back to the system.
Image.core.set_block_size(2**26)


def open_image(picture: Picture, item: str) -> Image.Image:
    """The picture as RGB, rotated as its EXIF says, transparency on white as qwen-vl-utils does.

    `item` is what an error calls it, e.g. "product 17". Raises ItemError for a missing, truncated, too large,
    too narrow or unreadable picture, for other formats than FORMATS, and for remote addresses, which are
    never fetched.
    """
    with opened(picture, item) as image:
        return image


@contextmanager
def opened(picture: Picture, item: str) -> Iterator[Image.Image]:
    """As `open_image`; while one thread has a large picture, others that open one wait."""
    with ExitStack() as held:
        try:
            image = _read(picture, item)
            _check_size(image, item)
            if image.width * image.height > LARGE:
                held.enter_context(_turn)
            image = _on_white(_upright(image))
        except ItemError:
            raise
        except FileNotFoundError as error:
            raise ItemError(item, f"picture {error.filename!r} does not exist; check the path") from error
        except UnidentifiedImageError:
            raise ItemError(
                item, f"picture cannot be read: it is no {', '.join(FORMATS)}; convert it"
            ) from None
        except Exception as error:  # on broken bytes Pillow's decoders raise whatever they run into
            problem = f"picture cannot be read ({error}); replace or leave out this item"
            raise ItemError(item, problem) from error
        yield image


def identity(picture: Picture, item: str) -> str:
    """What a picture is, by its content: its file's bytes or its pixels.

    What draws or reads one may know a quicker way, its own `identity`. Raises ItemError as `open_image` does.
    """
    return told_identity(picture) or pixels_identity(open_image(picture, item))


def told_identity(picture: Picture) -> str | None:
    """The identity if no picture has to be opened to tell; None also for a file that cannot be read."""
    if hasattr(picture, "identity"):
        return picture.identity
    if isinstance(picture, bytes):
        return digest([picture])
    if isinstance(picture, str | Path) and not str(picture).startswith("data:"):
        path = Path(str(picture).removeprefix("file://"))
        try:
            _check_file(path, "")
            return digest([path.read_bytes()])
        except (OSError, ValueError):
            pass  # opening it says what is wrong
    return None


def pixels_identity(image: Image.Image) -> str:
    """Of an opened picture."""
    return digest([f"{image.size}", np.asarray(image).tobytes()])


def digest(pieces: Iterable[str | bytes]) -> str:
    """Of texts and bytes in order; where one ends and the next begins matters."""
    found = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        content = piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else piece
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()


def _read(picture: Picture, item: str) -> Image.Image:
    if callable(picture):
        picture = picture()
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str):
        picture = _from_address(picture, item)
    if not isinstance(picture, bytes | Path):
        raise ItemError(item, f"picture is a {type(picture).__name__}; give a path, bytes or a PIL image")
    if isinstance(picture, Path):
        _check_file(picture, item)
    with warnings.catch_warnings():  # the size is checked by us, before any pixel is decoded
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=FORMATS)


def _check_file(path: Path, item: str) -> None:
    """Devices and pipes are never opened: some have no end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ItemError(item, f"picture {str(path)!r} is no file and cannot be read; check the path")
    if found.st_size > LARGEST:
        raise ItemError(item, f"picture has {found.st_size:,} bytes, more than {LARGEST:,}; shrink it first")


def _from_address(address: str, item: str) -> bytes | Path:
    if address.startswith(("http://", "https://")):
        raise ItemError(item, f"picture {address!r} is remote; download it and give the local path")
    if address.startswith("data:"):
        _, found, data = address.partition("base64,")
        if not found:
            raise ItemError(item, f"picture {address[:40]!r} is no base64; write data:image/png;base64,…")
        return base64.b64decode("".join(data.split()), validate=True)
    if len(address) > LONGEST_PATH:
        raise ItemError(
            item, f"picture {address[:40]!r}… is no path; write base64 as data:image/png;base64,…"
        )
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


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises whatever it runs into; a picture whose EXIF cannot be read has no turn
        return image


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would clip 16 bits at 255: nearly all of it white
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode in ("I", "F"):
        image = _as_bytes(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _as_bytes(values: np.ndarray) -> Image.Image:
    """Grey values of the three ranges that are in use, told by the largest: to 1 (floats), 255 and 65,535.
    Raises ValueError for others.
    """
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65_535):  # also for NaN
        raise ValueError(f"its values go from {low} to {high}; give 0 to 1, 255 or 65,535")
    top = 1 if values.dtype.kind == "f" and high <= 1 else 255 if high <= 255 else 65_535
    grey = np.multiply(values, 255 / top, dtype=np.float32)
    return Image.fromarray(np.rint(grey, out=grey).astype(np.uint8))


def jpeg(picture: Picture, item: str, size: int) -> bytes:
    """The picture as a JPEG of at most `size` pixels a side. Raises ItemError as `open_image` does."""
    buffer = io.BytesIO()
    with opened(picture, item) as image:
        image.thumbnail((size, size))
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
