"""Pictures that strangers might send."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from coral_lab.images import open_image, opened, thumbnail
from coral_lab.query import Product
from tests.hostile.case import WORKS, Case

Make = Callable[[Path], object]


def _open(folder: Path) -> None:
    open_image(folder / "picture.png", "product 1")


def _written(content: bytes | Callable[[], bytes]) -> Make:
    return lambda folder: (folder / "picture.png").write_bytes(content() if callable(content) else content)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, whole: bool = False, before: bytes = b"", colour: int = 6) -> bytes:
    """A PNG of nothing; its pixels are there if it is `whole`, in a thousandth of their bytes."""
    content = b""
    if whole:
        packer, row = zlib.compressobj(1), bytes(1 + width * {6: 4, 2: 3, 0: 1}[colour])
        content = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), before, _chunk(b"IDAT", content), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _eight(folder: Path) -> None:
    content = png(6500, 6500, whole=True)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(content)


def _open_eight(folder: Path) -> None:
    def size(i: int) -> int:
        with opened(folder / f"{i}.png", f"product {i}") as image:
            return image.width

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(size, range(8))) == {6500}


def _thumbnails(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda i: thumbnail(folder / f"{i}.png", f"product {i}"), range(8)))) == 1


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(marks) (w) file closefile\nshowpage\n"


def _as(kind: str, **settings: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, kind, **settings)
    return out.getvalue()


def _bitmap(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def _tiff(width: int, height: int) -> bytes:
    entries = ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1))
    entries = (*entries, (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 10))
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", 0)


def _endless_tiff() -> bytes:
    """A directory that says it is its own next one."""
    whole = bytearray(_as("TIFF"))
    whole[4:8] = struct.pack("<I", 8)
    return bytes(whole)


def _gif(width: int, height: int) -> bytes:
    header = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    return header + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x01\x00\x00;"


def _webp(width: int, height: int) -> bytes:
    extended = struct.pack("<I", 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + extended
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _linked(target: str) -> Make:
    return lambda folder: (folder / "picture.png").symlink_to(target)


def _huge(folder: Path) -> None:
    (folder / "picture.png").write_bytes(_as("PNG"))
    os.truncate(folder / "picture.png", 10**12)


def _text_bomb() -> bytes:
    packed = zlib.compress(bytes(20 * 2**20), 9)
    return png(64, 64, whole=True, before=_chunk(b"zTXt", b"a\0\0" + packed))


def _profile_bomb() -> bytes:
    packed = zlib.compress(bytes(20 * 2**20), 9)
    return png(64, 64, whole=True, before=_chunk(b"iCCP", b"a\0\0" + packed))


def _nothing(folder: Path) -> None:
    pass


def _product(image: str) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        _ = Product("1", image=image).picture

    return call


NO_KIND = "it is no JPEG, PNG, WEBP, GIF, BMP, TIFF; convert it"
FILES: dict[str, tuple[Make, str]] = {
    "a header of 10^8 pixels": (_written(png(10_000, 10_000)), "pixels, more than 89,478,485"),
    "a header of 10^10 pixels": (_written(png(100_000, 100_000)), "pixels) exceeds limit"),
    "a header of 2^62 pixels": (_written(png(2**31 - 1, 2**31 - 1)), "picture"),
    "pixels that inflate": (
        _written(lambda: png(30_000, 9_000, whole=True, colour=0)),
        "pixels) exceeds limit",
    ),
    "as many pixels as are allowed": (_written(lambda: png(9_400, 9_400, whole=True, colour=2)), WORKS),
    "a picture cut short": (_written(lambda: png(4_000, 4_000, whole=True)[:5_000]), "cannot be read"),
    "a picture of a header": (_written(png(64, 64)), "cannot be read"),
    "a strip": (_written(lambda: png(60_000, 2, whole=True)), "longer than 200:1"),
    "notes that inflate": (_written(_text_bomb), "cannot be read"),
    "a profile that inflates": (_written(_profile_bomb), "cannot be read"),
    "a GIF of 4 gigapixels": (_written(_gif(65_535, 65_535)), "pixels) exceeds limit"),
    "a BMP of 2^60 pixels": (_written(_bitmap(2**30, 2**30)), "pixels) exceeds limit"),
    "a BMP of no pixels": (_written(_bitmap(4_000, 4_000)), "cannot be read"),
    "a TIFF of 2^60 pixels": (_written(_tiff(2**30, 2**30)), "pixels) exceeds limit"),
    "a TIFF of no pixels": (_written(_tiff(9_000, 9_000)), "cannot be read"),
    "a TIFF that is its own next": (_written(_endless_tiff), WORKS),
    "a WebP of 10^14 pixels": (_written(_webp(2**24, 2**23)), "picture"),
    "PostScript": (_written(POSTSCRIPT), NO_KIND),
    "PostScript in DOS's envelope": (
        _written(b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 32, 99, 0, 0, 0, 0, 0) + POSTSCRIPT),
        NO_KIND,
    ),
    "an icon": (_written(lambda: _as("ICO")), NO_KIND),
    "a PDF": (_written(b"%PDF-1.7\n" + POSTSCRIPT), NO_KIND),
    "an SVG": (
        _written(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://evil/"/></svg>'),
        NO_KIND,
    ),
    "a pipe": (lambda folder: os.mkfifo(folder / "picture.png"), "is no file and cannot be read"),
    "a link to no end": (_linked("/dev/zero"), "is no file and cannot be read"),
    "a link to a terminal": (_linked("/dev/tty"), "picture"),
    "a picture of 1 TB": (_huge, "bytes, more than 268,435,456"),
}
CASES = {f"picture: {name}": Case(make, _open, says) for name, (make, says) in FILES.items()}
CASES |= {
    "picture: eight large ones at once": Case(_eight, _open_eight, WORKS),
    "picture: eight large thumbnails at once": Case(_eight, _thumbnails, WORKS),
    "picture: an address": Case(_nothing, _product("https://evil.invalid/a.png"), "is remote"),
    "picture: a file's address": Case(_nothing, _product("file:///dev/zero"), "is no file"),
    "picture: ten million letters": Case(_nothing, _product("A" * 10**7), "is no path"),
    "picture: base64 that inflates": Case(
        _nothing, _product("data:image/png;base64," + "AAAA" * 10**6), "picture"
    ),
}
