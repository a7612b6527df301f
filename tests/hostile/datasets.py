"""Folders of products and queries that strangers might send."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from coral_lab import dataset
from coral_lab.images import open_image
from tests.hostile.case import WORKS, Case
from tests.hostile.pictures import png

Make = Callable[[Path], object]
TYPES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _columns(count: int, **others: object) -> dict[str, object]:
    own: dict[str, object] = {
        "idx": list(range(count)),
        "image": pa.array([{"bytes": PICTURE, "path": None}] * count, TYPES),
        "title": ["a bag"] * count,
        "class": ["bag"] * count,
        "country": ["VN"] * count,
        "language": ["en"] * count,
        "attribute": ['{"brand": "a"}'] * count,
    }
    return own | others


PICTURE = png(56, 56, whole=True)
QUERY = {
    "query": {"0": {"brand": "a"}},
    "pos_candidate": [1],
    "query instruction": "Find a product of bag that has the same brand with "
    "<Product 1> <image>\na bag </Product 1>",
}


def _shop(count: int = 3, lines: bytes | None = None, **others: object) -> Make:
    def make(folder: Path) -> None:
        (folder / "data").mkdir()
        settings = {"compression": "zstd", "row_group_size": 10**9}
        parquet.write_table(pa.table(_columns(count, **others)), folder / "data/test-0.parquet", **settings)
        (folder / "queries-test.json").write_bytes(b"" if lines is None else lines)

    return make


def _read(folder: Path) -> None:
    shop = dataset(folder)
    for product in shop.products[:3]:
        open_image(product.image, product.id)


def _dictionary(folder: Path) -> None:
    """One title of 20 MB, written once for 500 rows."""
    title = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["a" * 20 * 2**20]))
    _shop(500, title=title)(folder)


def _keys(folder: Path) -> None:
    title = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array(["b" * 20 * 2**20]))
    _shop(500, attribute=title)(folder)


def _many_pictures(folder: Path) -> None:
    """One row group of 3 GB, written as one picture and 60 times its number."""
    (folder / "data").mkdir()
    (folder / "queries-test.json").touch()
    image = pa.array([{"bytes": PICTURE + bytes(50 * 2**20), "path": None}], TYPES)
    table = pa.concat_tables(
        [pa.table(_columns(1, image=image)).set_column(0, "idx", [[i]]) for i in range(60)]
    )
    settings = {"compression": "zstd", "dictionary_pagesize_limit": 2**28, "row_group_size": 100}
    parquet.write_table(table, folder / "data/test-0.parquet", **settings)


def _one_picture(folder: Path) -> None:
    products = dataset(folder).products
    open_image(products[len(products) // 2].image, "a product")


def _leading(address: str) -> Make:
    return _shop(3, image=pa.array([{"bytes": None, "path": address}] * 3, TYPES))


def _linked_picture(folder: Path) -> None:
    (folder / "a.png").symlink_to(_outside(folder))
    _leading("a.png")(folder)


def _outside(folder: Path) -> Path:
    other = folder.parent / f"{folder.name}-outside.png"
    other.write_bytes(PICTURE)
    return other


def _linked(name: str) -> Make:
    """A file of the folder, moved out, and a link to it."""

    def make(folder: Path) -> None:
        _shop()(folder)
        other = folder.parent / f"{folder.name}-{Path(name).name}"
        (folder / name).rename(other)
        (folder / name).symlink_to(other)

    return make


def _other(name: str, how: Make) -> Make:
    def make(folder: Path) -> None:
        _shop()(folder)
        (folder / name).unlink()
        how(folder / name)

    return make


def _truncated(folder: Path) -> None:
    _shop()(folder)
    os.truncate(folder / "data/test-0.parquet", 10**9)


def _line(**values: object) -> bytes:
    return json.dumps(QUERY | values).encode()


TWICE = b'{"query": {' + b",".join(b'"%d": {"brand": "a"}' % (i % 2) for i in range(100_000)) + b"}}"
ALL_TWICE = b'{"query": {' + b",".join(b'"%d": 1' % (i % 50_000) for i in range(100_000)) + b"}}"
MANY = b'{"query": {' + b",".join(b'"%d": {"brand": "a"}' % i for i in range(100_000)) + b"}}"
READ = {
    "a shop": (_shop(3, _line()), WORKS),
    "one title for many rows": (_dictionary, "bytes"),
    "one attribute for many rows": (_keys, "is no JSON"),
    "a path that leads up": (_leading("../../../etc/passwd"), "outside"),
    "a path from the root": (_leading("/dev/zero"), "outside"),
    "an address": (_leading("http://evil.invalid/a.png"), "is the address"),
    "another kind of address": (_leading("ftp://evil.invalid/a.png"), "leads to"),
    "a picture that is a link": (_linked_picture, "outside"),
    "products that are a link": (_linked("data/test-0.parquet"), "test-0.parquet"),
    "queries that are a link": (_linked("queries-test.json"), "queries-test.json"),
    "products through a pipe": (_other("data/test-0.parquet", os.mkfifo), "test-0.parquet"),
    "queries through a pipe": (_other("queries-test.json", os.mkfifo), "queries-test.json"),
    "products cut and filled up": (_truncated, "is no parquet file"),
    "no products": (_other("data/test-0.parquet", lambda file: file.write_text("x")), "is no parquet file"),
    "queries without end": (
        _other("queries-test.json", lambda file: file.symlink_to("/dev/zero")),
        "queries-test",
    ),
    "queries of 1 TB": (
        _other("queries-test.json", lambda file: (file.touch(), os.truncate(file, 10**12))),
        "queries-test.json",
    ),
    "a key 50,000 times": (_shop(3, TWICE), "comes twice"),
    "50,000 keys twice": (_shop(3, ALL_TWICE), "comes twice"),
    "100,000 keys": (_shop(3, MANY), "line 1"),
    "a line nested without end": (_shop(3, b"[" * 10**6), "line 1"),
    "a line nested in objects": (_shop(3, b'{"a":' * 10**5), "line 1"),
    "a number without end": (_shop(3, b'{"pos_candidate": [' + b"9" * 10**6 + b"]}"), "line 1"),
    "a line of zeros": (_shop(3, bytes(10**6)), "line 1"),
    "letters that steer a terminal": (_shop(3, _line(query={"\x1b]0;owned\x07": {"a": "b"}})), "line 1"),
    "an instruction of 10 MB": (_shop(3, _line(**{"query instruction": "<Product " * 10**6})), "line 1"),
}
CASES = {f"data: {name}": Case(make, _read, says) for name, (make, says) in READ.items()}
CASES["data: one picture of a group of 3 GB"] = Case(_many_pictures, _one_picture, WORKS)
