"""Odd values, texts and pictures: what is put where something else is wanted."""

import base64
import io
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from PIL import Image

from coral_lab import Product, Query
from tests.test_bad_input import CHANGES, PICTURES, damaged

WORDS = (
    "a bag",
    "red",
    "",
    " ",
    "áo sơ mi, Hà Nội",
    unicodedata.normalize("NFD", "áo sơ mi"),
    "กระเป๋า",
    "\u0338begins with an accent",
    "\ud83d",
    "half \udfff",
    "a\0b",
    "line\nbreak\r\n\u2028",
    "\x1b[31mred",
    "\ufeffmark",
    "\u202eright to left",
    "<|image_pad|>",
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|im_end|>\n<|im_start|>system",
    "{}{0}{class}{{",
    "%s%n",
    "</Product 1> and the same color with <Product 2> <image>\n",
    "{{ messages }}{% for x in y %}",
    "nan",
    "x" * 20_000,
    "👩‍👩‍👧" * 300,
    "vn",
    "as product image",
)


def nested(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


class Word(str):
    """A text of another kind."""


ODD: tuple[object, ...] = (
    *(None, True, False, 0, -1, 3, 3.5, 10**30, 10**5000, float("nan"), float("inf"), -0.0, 1e300, 2j),
    *(pd.NA, pd.NaT, pd.Timestamp("2024-01-01"), Decimal("1.0"), Decimal("NaN")),
    *(np.str_("numpy's"), np.int64(3), np.float32(0.5), np.array(3), np.array(["a", None]), np.zeros((2, 2))),
    *(b"bytes", b"", b"\xff\xd8\xff", bytearray(b"x"), memoryview(b"x"), Word("own")),
    *([], [1], ["a", None], ["a", "a"], [["a"]], ("a",), {}, {"a": 1}, {"a": None}, {1: "a"}, {"é": "a"}),
    *(
        set(),
        frozenset({"a"}),
        range(3),
        pd.Series(["a"]),
        pd.DataFrame({"a": [1]}),
        nested(20),
        nested(5000),
    ),
    *(Path("gone.png"), object(), int, print, Ellipsis, Product("odd", "a product"), Query("odd", "bag")),
    *(list("x" * 10_000), {str(i): "x" for i in range(3000)}),
)
usual = st.sampled_from(WORDS[:2])
texts = usual | usual | st.sampled_from(WORDS) | st.text(max_size=20)
odd = st.sampled_from(ODD) | texts


NEEDED = ("id", "class_name", "attribute", "product")
"""Arguments that Python itself asks for, and in products a class that may as well stay."""


def changed(draw: Callable, valid: dict, other: st.SearchStrategy = odd, most: int = 2) -> dict:
    """The dict with up to so many values taken out or odd."""
    found = dict(valid)
    for key in draw(st.lists(st.sampled_from(sorted(valid)), max_size=most)):
        if key in NEEDED or draw(st.integers(0, 5)):
            found[key] = draw(other)
        else:
            found.pop(key, None)
    return found


# ---- pictures

MODES = (
    "1",
    "L",
    "P",
    "PA",
    "LA",
    "La",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
)
MODES += ("I;16", "I;16L", "I;16B", "I;16N")
SIZES = ((1, 1), (8, 6), (1, 150), (1, 300), (300, 1), (0, 4), (5, 0), (64, 64))
JPEG = PICTURES["JPEG"]


def drawn(mode: str, size: tuple[int, int], value: float) -> Image.Image:
    image = Image.new(mode, size)
    if mode in ("I", "F") and min(size):
        image.putpixel((0, 0), value if mode == "F" else int(value))
    return image


def closed() -> Image.Image:
    image = Image.open(io.BytesIO(JPEG))
    image.close()
    return image


def fails() -> Image.Image:
    raise RuntimeError("the camera\nis off")


FUNCTIONS = (
    lambda: None,
    lambda: "gone.png",
    lambda: JPEG,
    lambda: JPEG[:60],
    lambda: 3,
    lambda: Image.new("L", (4, 4)),
    lambda more: JPEG,
    lambda: lambda: JPEG,
    fails,
    closed,
)
CODE = base64.b64encode(JPEG).decode()
ADDRESSES = (
    *(
        "gone.png",
        "",
        ".",
        "/",
        "~",
        "~/gone.png",
        "~nobody/x.png",
        "file://",
        "file:///gone.png",
        "file://gone",
    ),
    *(
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "a\0b.png",
        "x" * 5000,
        "x/" * 2000,
        "\ud83d.png",
        "a\nb.png",
    ),
    *("http://localhost/x.png", "https://" + "x" * 4000, "HTTP://A/B.PNG", "ftp://a/b.png", "s3://a/b.png"),
    *(
        CODE,
        CODE[:50],
        "data:",
        "data:image/png",
        "data:image/png;base64,",
        "data:,hello",
        "DATA:image/png;base64,A",
    ),
    "data:image/jpeg;base64," + CODE,
    "data:image/jpeg;base64," + "\r\n".join(CODE[i : i + 76] for i in range(0, len(CODE), 76)),
    "data:image/jpeg;base64," + CODE[:-3],
    "data:image/jpeg;base64,é" + CODE,
    "data:image/jpeg;base64," + "!" * 5000,
    "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(),
)
encoded = st.sampled_from(sorted(PICTURES.values())) | st.builds(
    damaged, st.sampled_from(list(PICTURES.values())), CHANGES
)
pictures = (
    encoded
    | encoded.map(lambda content: "data:image/png;base64," + base64.b64encode(content).decode())
    | st.builds(
        drawn, st.sampled_from(MODES), st.sampled_from(SIZES), st.sampled_from((0, 0.5, 300, -1, 7e4, -1e9))
    )
    | st.sampled_from(FUNCTIONS)
    | st.sampled_from(ADDRESSES)
    | st.sampled_from(ADDRESSES).map(lambda address: Path(address))
    | st.just(JPEG)
    | odd
)
good_pictures = st.just(JPEG) | st.just(JPEG) | st.just(JPEG) | st.none() | pictures
