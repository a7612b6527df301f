"""Every picture comes out upright, RGB and on white, or as one ItemError that names its item."""

import base64
import io
import os
import pickle
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from coral_lab import images
from coral_lab.errors import ItemError
from coral_lab.images import open_image, opened, paste_together, thumbnail

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"0")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette(transparency: bool) -> bytes:
    """Two pixels: the first of colour 0, which may be transparent, the second red."""
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, *RED])
    image.putdata([0, 1])
    return encoded(image, transparency=0) if transparency else encoded(image)


def refused(picture, item: str = "product 17") -> str:
    with pytest.raises(ItemError) as caught:
        open_image(picture, item)
    assert caught.value.item == item
    assert str(caught.value).startswith(f"{item}: ")
    return caught.value.problem


@pytest.mark.parametrize("size", [(1, 1), (200, 1), (1, 200), (640, 480)])
def test_any_size_up_to_200_to_1_keeps_its_size(size):
    image = open_image(encoded(Image.new("RGB", size, RED)), "x")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", size, RED)


@pytest.mark.parametrize("size", [(8000, 10), (10, 8000), (201, 1), (0, 5)])
def test_a_strip_longer_than_200_to_1_is_refused(size):
    assert f"{size[0]} x {size[1]}" in refused(Image.new("RGB", size))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("LA", (0, 0), WHITE),
        ("LA", (0, 255), (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("L", 77, (77, 77, 77)),
        ("1", 1, WHITE),
        ("1", 0, (0, 0, 0)),
        ("I;16", 0, (0, 0, 0)),
        ("I;16", 128 * 257, (128, 128, 128)),
        ("I;16", 65535, WHITE),
    ],
)
def test_every_mode_becomes_the_colour_one_sees(mode, colour, expected):
    image = Image.new(mode, (3, 2), colour)
    as_file = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    for picture in (image, as_file):
        opened = open_image(picture, "x")
        assert (opened.mode, opened.getpixel((1, 1))) == ("RGB", expected)


@pytest.mark.parametrize(("transparency", "first"), [(True, WHITE), (False, (0, 0, 255))])
def test_a_palette_keeps_its_colours_and_its_transparency(transparency, first):
    image = open_image(palette(transparency), "x")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [first, RED]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_comes_upright(orientation):
    upright = Image.new("RGB", (20, 10), WHITE)
    upright.paste(RED, (0, 0, 5, 5))
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(stored, exif=exif), "x")
    assert (opened.size, opened.tobytes()) == (upright.size, upright.tobytes())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_refused(format):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    whole = encoded(noise, format)
    assert open_image(whole, "x").size == (64, 64)
    assert "cannot be read" in refused(whole[: len(whole) // 2])


@pytest.mark.parametrize("content", [b"", b"hello, I am a text", b"<html></html>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(content, tmp_path):
    assert "cannot be read" in refused(content)
    (tmp_path / "picture.png").write_bytes(content)
    assert "cannot be read" in refused(tmp_path / "picture.png")


def test_a_missing_file_is_named(tmp_path):
    for picture in (tmp_path / "gone.png", str(tmp_path / "gone.png")):
        assert "gone.png' does not exist" in refused(picture)


def test_a_folder_is_refused(tmp_path):
    assert "is no file and cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("size", [(12_000, 12_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.size))
    started = time.process_time()
    assert "pixels" in refused(png_header(*size))
    assert time.process_time() - started < 1
    assert not decoded


@pytest.mark.parametrize("address", ["http://example.org/a.png", "https://example.org/a.png"])
def test_remote_addresses_are_never_fetched(address, monkeypatch):
    monkeypatch.setattr("socket.socket", None)
    assert f"{address!r} is remote; download it" in refused(address)


def test_a_path_may_be_text_or_a_file_address(tmp_path):
    file = tmp_path / "ภาพ 1.png"
    file.write_bytes(encoded(Image.new("RGB", (3, 2), RED)))
    for picture in (file, str(file), f"file://{file}"):
        assert open_image(picture, "x").getpixel((0, 0)) == RED


def test_a_data_address_is_decoded():
    address = "data:image/png;base64," + base64.b64encode(encoded(Image.new("RGB", (3, 2), RED))).decode()
    assert open_image(address, "x").getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    "content", ["", "%%%", "aGVsbG8=", f"%{base64.b64encode(encoded(Image.new('L', (3, 2)))).decode()}"]
)
def test_a_broken_data_address_is_refused(content):
    assert "cannot be read" in refused(f"data:image/png;base64,{content}")
    assert "is no base64" in refused(f"data:{content}")


def test_a_function_draws_the_picture_when_it_is_needed():
    assert open_image(lambda: Image.new("RGBA", (3, 2)), "x").getpixel((0, 0)) == WHITE


def test_a_function_that_fails_is_refused_and_the_cause_is_kept():
    def draw():
        raise OSError("the font is missing")

    assert "the font is missing" in refused(draw)
    with pytest.raises(ItemError) as caught:
        open_image(draw, "x")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_wrong_type_is_refused():
    assert "picture is a int; give a path" in refused(lambda: 7)
    with pytest.raises((ItemError, TypeError)):  # TypeError where the tests check types
        open_image(7, "product 17")


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_give_an_item_error_and_nothing_else(content):
    refused(content)


@pytest.mark.parametrize(
    "format", ["DDS", "TGA", "PPM", "ICO", "EPS", "PDF", "PCX", "SGI", "JPEG2000", "AVIF"]
)
def test_other_formats_than_the_usual_are_refused(format):
    assert "no JPEG, PNG, WEBP, GIF, BMP, TIFF" in refused(encoded(Image.new("RGB", (8, 8)), format))


def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), str(tmp_path), "file:///dev/urandom"):
        assert "is no file" in refused(path)


def test_a_file_too_large_to_be_a_picture_is_not_read(tmp_path):
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**40)  # a hole
    assert "has 1,099,511,627,776 bytes" in refused(tmp_path / "large.png")


def test_threads_open_large_pictures_one_after_another(monkeypatch):
    monkeypatch.setattr(images, "LARGE", 100)
    held, most = [], 0

    def look(size):
        nonlocal most
        with opened(Image.new("RGB", (size, size)), "x") as image:
            held.append(image)
            time.sleep(0.02)
            most = max(most, sum(own.width > 10 for own in held))
            held.remove(image)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(look, [5, 20] * 8))
    assert most == 1


FILES = [
    encoded(Image.new(mode, (24, 16)), format)
    for mode, format in [
        ("RGB", "PNG"),
        ("P", "GIF"),
        ("RGB", "JPEG"),
        ("RGB", "WEBP"),
        ("L", "BMP"),
        ("RGBA", "TIFF"),
    ]
]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_a_damaged_file_opens_or_gives_an_item_error(content, damage):
    damaged = bytearray(content)
    for position, value in damage:
        damaged[position % len(damaged)] = value
    try:
        opened = open_image(bytes(damaged), "x")
    except ItemError:
        return
    assert opened.mode == "RGB"


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ItemError("product 17", "it is gone")))
    assert (type(error), error.item, error.problem, str(error)) == (
        ItemError,
        "product 17",
        "it is gone",
        "product 17: it is gone",
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 100), (96, 32)), ((100, 300), (32, 96)), ((10, 5), (10, 5)), ((200, 1), (96, 1))],
)
def test_a_thumbnail_fits_its_size_and_can_be_decoded(size, expected):
    address = thumbnail(Image.new("RGBA", size, RED), "x")
    assert address.startswith("data:image/jpeg;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert (image.format, image.size) == ("JPEG", expected)
    assert open_image(address, "x").size == expected


def test_a_thumbnail_leaves_the_picture_as_it_was():
    image = Image.new("RGB", (300, 100))
    thumbnail(image, "x", size=10)
    assert image.size == (300, 100)


def test_pasting_together_keeps_order_shape_and_the_first_height():
    images = [
        Image.new("RGB", (30, 20), "red"),
        Image.new("RGB", (40, 40), "lime"),
        Image.new("RGB", (1, 200), "blue"),
    ]
    sheet = paste_together(images)
    assert sheet.size == (30 + 20 + 1, 20)  # the last would be a tenth of a pixel wide
    assert [sheet.getpixel((x, 10)) for x in (0, 29, 30, 49, 50)] == [
        RED,
        RED,
        (0, 255, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]


def test_pasting_one_picture_gives_that_picture():
    image = Image.effect_noise((31, 17), 50).convert("RGB")
    assert paste_together([image]).tobytes() == image.tobytes()


def with_exif(content: bytes, exif: bytes) -> bytes:
    """A PNG with an eXIf chunk of these bytes."""
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    return content[:33] + chunk + content[33:]


@pytest.mark.parametrize(
    "exif",
    [b"", b"\0", b"Exif", b"no header at all", b"II*\0" + b"\xff" * 20, b"MM\0*\0\0\0\x08\0\x05\x01\x12"],
)
def test_a_picture_whose_exif_cannot_be_read_stands_as_it_is(exif):
    image = Image.new("RGB", (4, 2), RED)
    image.putpixel((0, 0), WHITE)
    assert open_image(with_exif(encoded(image), exif), "x").tobytes() == image.tobytes()


def test_exif_without_its_header_still_turns_the_picture():
    image = Image.new("RGB", (4, 2), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    bare = exif.tobytes().removeprefix(b"Exif\0\0")
    assert open_image(with_exif(encoded(image), bare), "x").size == (2, 4)


def in_steps(top: float, dtype: str) -> Image.Image:
    return Image.fromarray((np.linspace(0, 1, 256) * top).round(6).astype(dtype).reshape(16, 16))


@pytest.mark.parametrize(
    ("top", "dtype"),
    [(1, "float32"), (255, "float32"), (255, "int32"), (65_535, "int32"), (65_535, "float32")],
)
def test_grey_values_of_every_range_in_use_are_seen_in_their_steps(top, dtype):
    grey = np.asarray(open_image(in_steps(top, dtype), "x"))
    assert (grey == grey[..., :1]).all()
    assert np.array_equal(grey[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("values", [[[float("nan"), 1]], [[-0.5, 1]], [[0, 1e6]], [[0, float("inf")]]])
def test_grey_values_of_no_known_range_are_refused(values):
    assert "give 0 to 1, 255 or 65,535" in refused(Image.fromarray(np.array(values, "float32")))


@pytest.mark.parametrize("length", [100, 4_000_000])
def test_bare_base64_is_an_error_of_one_line(length):
    text = base64.b64encode(encoded(Image.effect_noise((20, 20), 9)) * (length // 400 + 1)).decode()[:length]
    with pytest.raises(ItemError) as caught:
        open_image(text, "product 17")
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)
    assert length == 100 or "write base64 as data:image/png;base64" in str(caught.value)


@pytest.mark.parametrize(
    "address", ["data:image/png,%89PNG", "data:", "data:image/png;base64,*", "data:;base64"]
)
def test_data_addresses_without_a_picture_are_refused_in_a_line(address):
    assert refused(address)
