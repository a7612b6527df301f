"""Products from any table: a frame, a table of `datasets`, or a file in CSV, TSV, JSON lines, parquet or
Excel's format. Which column is what `columns.py` finds out; it is told in one line of the log.

What is in memory: each product's texts; of parquet files and tables of `datasets` only their ids, and what
was read last (`lazy_products.py`). Rows are read a few at a time, except that a frame is in memory already
and Excel's texts are read whole by openpyxl. No picture is opened: parquet files and tables of `datasets` are
read again for each that is looked at, paths are paths, and arrays, bytes and images of a frame, or base64 in
a file, stay as they are.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from coral_lab.errors import ItemError
from coral_lab.images import LONGEST_PATH, Picture
from coral_lab.query import Dataset, Product, Traits
from coral_lab.sources.border import brief, refused, text_of
from coral_lab.sources.columns import Columns, Given, absent, chosen, sample_of
from coral_lab.sources.files import check_own_file
from coral_lab.sources.own_files import OwnFiles
from coral_lab.sources.table_files import Table, opened_table

log = logging.getLogger(__name__)

SAMPLE = 200
"""Rows by which it is guessed what columns are."""

LONGEST_CELL = 2**17
"""Characters of a text that is no picture."""

LARGEST = 10**100
"""Of numbers; Python refuses to write some that are larger."""

LONGEST_TEXTS = 2**32
"""Characters of all texts of a table: a small file can say the same again and again."""

BETWEEN = re.compile(r"\s*(?:\||(?<!&amp)(?<!&quot)(?<!&lt)(?<!&gt)(?<!&nbsp)(?<!&#39);)\s*")
"""What stands between values of a cell; commas are in prose too, and some semicolons end a sign of HTML."""


def read_table(
    source: Any, *, columns: Given = None, on_error: str = "raise", remote_images: bool = False
) -> Dataset:
    """The products of a table, without queries.

    `columns` sets by hand what `columns_of` guesses wrong: a mapping such as `{"title": "Name", "picture":
    None}`, or all of them as Columns. Values of a cell are separated by `|` or `;`, or are a list, in JSON
    too; None, NaN and empty cells are absent. Of several pictures in a cell the first is taken, and the log
    says of how many. Paths of pictures are relative to the table's file and never lead out of its folder;
    those of a frame or a table of `datasets` are the caller's own. `remote_images` lets addresses be fetched,
    when pictures are looked at; `fetch_pictures` keeps them. `on_error` "skip" leaves out what cannot be used
    and lists it in `Dataset.skipped`. All rows are checked on opening, of parquet and `datasets` too, whose
    products are made when they are looked at; columns that are left out are not read. Raises
    FileNotFoundError, ItemError naming row and column, ValueError for arguments.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {brief(on_error)}; use raise or skip")
    table = opened_table(source)
    found = _columns(table, columns)
    log.info("%s: %r", table.name, found)
    skipped: list[ItemError] = []
    reading = Reading(table, found, remote_images)
    products, languages = _read(reading, skipped.append if on_error == "skip" else _raise)
    if reading.more:
        log.info("%s: %d cells hold several pictures; the first is taken", table.name, len(reading.more))
    traits = Traits(languages=languages, columns=repr(found))
    return Dataset(table.name, products, (), tuple(skipped), traits)


def _read(
    reading: "Reading", refuse: Callable[[ItemError], None]
) -> tuple[Sequence[Product], tuple[str, ...]]:
    """Products and their languages, lazily where that can be done."""
    if reading.table.arrow is not None:
        from coral_lab.sources.lazy_products import open_products  # and pyarrow: only where tables are its

        return open_products(reading, refuse, refuse is _raise)
    products = tuple(_products(reading, refuse))
    return products, tuple(sorted({product.language for product in products} - {""}))


def columns_of(source: Any, columns: Given = None) -> Columns:
    """Which column of a table is what, as `cl.dataset(source, columns=…)` reads it. By the first 200 rows.

    Raises FileNotFoundError, ItemError for a file that cannot be read, ValueError for what is no table.
    """
    return _columns(opened_table(source), columns)


def _columns(table: Table, given: Given) -> Columns:
    rows = [row for _, row in islice(table.rows(), SAMPLE) if not isinstance(row, ItemError)]
    return chosen(table.names, sample_of(table.names, rows), given, table.name)


def _raise(error: ItemError) -> None:
    raise error


@dataclass(frozen=True)
class Reading:
    """What rows are read by; `more` are the places of cells that hold several pictures."""

    table: Table
    columns: Columns
    remote_images: bool
    more: list[str] = field(default_factory=list)

    @cached_property
    def files(self) -> OwnFiles:
        """The table's own, where it has a folder."""
        return OwnFiles(self.table.folder)


def _products(reading: Reading, refuse: Callable[[ItemError], None]) -> Iterator[Product]:
    known: dict[str, str] = {}
    size = 0
    for number, (at, row) in enumerate(reading.table.rows()):
        try:
            if isinstance(row, ItemError):
                raise row
            product = product_of(reading, row, at, number)
            if product.id in known:
                raise id_twice(product.id, known[product.id], at, reading.columns.id)
        except ItemError as error:
            refuse(ItemError(at, error.problem))
            continue
        known[product.id] = at.rpartition(", ")[2]
        size += len(product.title) + sum(len(v) for own in product.attributes.values() for v in own)
        if size > LONGEST_TEXTS:
            problem = f"the texts up to here have more than {LONGEST_TEXTS:,} characters; split the table"
            raise ItemError(at, problem)
        yield product


def id_twice(id: str, before: str, at: str, column: str) -> ItemError:
    problem = f"field {column!r}: id {brief(id)} was there before, in {before}; ids must be distinct"
    return ItemError(at, f'{problem}; name another column, or none: columns={{"id": None}}, or skip the row')


def product_of(reading: Reading, row: Mapping[str, Any], at: str, number: int) -> Product:
    columns = reading.columns
    id, title, class_name, language, country = (
        single_text(row.get(own), at, own) if own else ""
        for own in (columns.id, columns.title, columns.class_name, columns.language, columns.country)
    )
    if columns.id and not id:
        raise ItemError(at, f'field {columns.id!r} is empty; give an id, or set columns={{"id": None}}')
    picture = _picture(reading, row, at) if columns.picture else None
    if not title and picture is None:
        names = " and ".join(repr(own) for own in (columns.title, columns.picture) if own)
        raise ItemError(at, f"field {names} is empty; a product needs a title or a picture")
    attributes = attributes_of_cells(columns.attributes, row, at)
    return Product(id or f"row-{number:06}", title, picture, class_name, language, country, attributes)


# Texts


def single_text(value: Any, item: str, field: str) -> str:
    """A cell as text, "" if it is absent. Numbers are as they are written; of a fraction that is whole, as a
    column with gaps makes of whole numbers, the whole number. Raises ItemError for what is no text or number.
    """
    if absent(value):
        return ""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str):
        value = _written(value, item, field)
    if len(value) > LONGEST_CELL:
        raise ItemError(item, f"field {field!r} has {len(value):,} characters, more than {LONGEST_CELL:,}")
    return text_of(value, item, field).strip()


def _written(value: Any, item: str, field: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value) or abs(value) >= 2**53:
            raise refused(item, field, value, "it may have lost digits; write it as text")
        return str(int(value)) if value == int(value) else repr(value)
    if isinstance(value, datetime) and value.time() == time():
        value = value.date()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, int | Decimal) and -LARGEST < value < LARGEST:
        return str(value)
    raise refused(item, field, value, "give text or a number")


def attributes_of_cells(
    columns: Iterable[str], row: Mapping[str, Any], at: str
) -> dict[str, tuple[str, ...]]:
    """The values of each attribute that has some."""
    found: dict[str, tuple[str, ...]] = {}
    for column in columns:
        value = _unpacked(row.get(column))
        own = value if isinstance(value, Mapping) else {column: value}
        for name, cell in _named(own, at, column):
            values = tuple(_values(cell, at, column))
            if name in found:
                raise ItemError(at, f"field {column!r} has {brief(name)}, which another column has; keep one")
            if values:
                found[name] = values
    return found


def _named(own: Mapping[Any, Any], at: str, column: str) -> Iterator[tuple[str, Any]]:
    """The names of attributes in a cell, as text, with what each has."""
    for name, cell in own.items():
        yield text_of(name, at, column), cell


def _unpacked(value: Any) -> Any:
    """A list or mapping in place of JSON that holds one; a list of pairs, as Arrow's maps are, as mapping."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            value = json.loads(value, parse_float=str, parse_int=str, parse_constant=lambda _: None)
        except (ValueError, RecursionError):  # a text that begins so
            return value
    if isinstance(value, list) and value and all(isinstance(p, tuple) and len(p) == 2 for p in value):
        return dict(value)
    return value


def _values(value: Any, at: str, column: str) -> Iterator[str]:
    """The values of a cell, each once."""
    if isinstance(value, str):
        value = BETWEEN.split(value)
    elif isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    elif not isinstance(value, list | tuple | set | frozenset):
        value = [value]
    yield from dict.fromkeys(text for own in value if (text := single_text(own, at, column)))


# Pictures


@dataclass(frozen=True)
class RemotePicture:
    """A picture at an address: calling it fetches it."""

    address: str
    item: str

    def __call__(self) -> bytes:
        from coral_lab.sources.fetching import fetch  # and httpx: only where something is fetched

        return fetch(self.address, self.item)


@dataclass(frozen=True, eq=False)
class ArrayPicture:
    """An array of pixels as a picture."""

    pixels: np.ndarray

    def __call__(self) -> Image.Image:
        return Image.fromarray(self.pixels.squeeze(-1) if self.pixels.shape[-1] == 1 else self.pixels)


def _picture(reading: Reading, row: Mapping[str, Any], at: str) -> Picture | None:
    """The first picture of a cell, unopened; None if there is none."""
    column = reading.columns.picture
    value = _unpacked(row.get(column))
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and not value.startswith("data:"):
        between = r"\s*[|;,]\s*(?=https?://)" if value.startswith("http") else r"\s*[|;]\s*"
        value = re.split(between, value.strip())
    several = [own for own in value if not absent(own)] if isinstance(value, list | tuple) else [value]
    if len(several) > 1:
        reading.more.append(at)
    return _one_picture(several[0], reading, at, column) if several else None


def _one_picture(value: Any, reading: Reading, at: str, column: str) -> Picture | None:
    if absent(value):
        return None
    if isinstance(value, np.ndarray):
        return _from_array(value, at, column)
    if isinstance(value, bytes | Image.Image) or callable(value):
        return value or None if isinstance(value, bytes) else value
    if isinstance(value, Mapping):
        return _one_picture(value.get("bytes") or value.get("path"), reading, at, column)
    if not isinstance(value, str | Path):
        raise refused(at, column, value, "give a path, bytes, an image or an array of bytes")
    address = str(value)
    if address.startswith("data:"):
        return address
    if address.startswith(("http://", "https://")):
        if not reading.remote_images:
            way = 'set remote_images=True to have it fetched, or columns={"picture": None}'
            raise ItemError(at, f"field {column!r} is the address {brief(address)}; {way}")
        return RemotePicture(address, at)
    if reading.table.folder is not None and address in reading.files:
        return reading.table.folder / address
    return _local(address, reading.table.folder, at, column)


def _from_array(pixels: np.ndarray, at: str, column: str) -> Picture:
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4))
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        problem = f"field {column!r} is an array of shape {pixels.shape} and type {pixels.dtype}"
        raise ItemError(at, f"{problem}; give uint8 of shape (height, width) or (height, width, 3)")
    return ArrayPicture(pixels)


def _local(address: str, folder: Path | None, at: str, column: str) -> Path:
    """A picture's file. Raises ItemError for one that is missing, or leads out of a file's folder."""
    way = "give the path of a file in the table's folder, such as images/1.png"
    try:
        if len(address) > LONGEST_PATH or "://" in address or "\0" in address:
            raise ValueError("it is none")
        file = Path(address).expanduser() if folder is None else folder / _inside(address)
        if folder is not None:
            check_own_file(file, folder)
        found = file.is_file()
    except ItemError as error:
        raise ItemError(at, f"field {column!r} leads to {brief(address)}, which {error.problem}") from None
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, a link to itself
        problem = f"field {column!r} is {brief(address)}, no path of a picture ({error})"
        raise ItemError(at, f"{problem}; {way}") from None
    if not found:
        raise ItemError(at, f"field {column!r} is {brief(address)}, which does not exist; {way}")
    return file


def _inside(address: str) -> PurePosixPath:
    inside = PurePosixPath(address)
    if inside.is_absolute() or ".." in inside.parts or "\\" in address or ":" in address:
        raise ValueError("it leads out of the folder")
    return inside
