"""Products of a table in Arrow's form, each made when it is looked at: a million are open in seconds and take
the memory of their ids.

All rows are checked on opening: column by column, and one by one where a column leaves a doubt.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coral_lab.errors import ItemError
from coral_lab.query import Product
from coral_lab.sources.border import brief
from coral_lab.sources.column_checks import doubted, texts_of
from coral_lab.sources.column_facts import facts_of
from coral_lab.sources.columns import SINGLE
from coral_lab.sources.table_columnar import ArrowRows, Part
from coral_lab.sources.tables import (
    LONGEST_TEXTS,
    Reading,
    id_twice,
    product_of,
    single_text,
)

AHEAD = 1024
"""Products that are made at once where all are looked at in order."""


class LazyProducts(Sequence[Product]):
    """Some rows of a table as products, in the order of `numbers`. `ids` are theirs; None where products are
    called after their rows.

    A slice is another of these. Safe for several threads. It is pickled as the tuple of its products. Looking
    at one raises ItemError where the table is not what it was when it was opened.
    """

    def __init__(self, reading: Reading, rows: ArrowRows, numbers: np.ndarray, ids: pa.Array | None):
        self._reading, self._rows = replace(reading, more=[]), rows
        self._numbers, self._ids = numbers, ids

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, i: int) -> Product: ...
    @overload
    def __getitem__(self, i: slice) -> "LazyProducts": ...
    def __getitem__(self, i: int | slice) -> "Product | LazyProducts":
        if isinstance(i, slice):
            places = np.arange(len(self))[i]
            ids = None if self._ids is None else self._ids.take(pa.array(places))
            return LazyProducts(self._reading, self._rows, self._numbers[places], ids)
        place = range(len(self))[i]  # counts from the end too, and raises IndexError
        part = self._rows.near(int(self._numbers[place]))
        return next(self._made(part, range(place, place + 1)))

    def __iter__(self) -> Iterator[Product]:
        place = 0
        while place < len(self):
            wanted = self._numbers[place : place + AHEAD]
            ahead = int(wanted.max() - wanted[0]) + 1 if wanted.max() - wanted[0] < AHEAD else AHEAD
            part = self._rows.near(int(wanted[0]), ahead)
            outside = (wanted < part.start) | (wanted >= part.start + part.count)
            count = int(outside.argmax()) if outside.any() else len(wanted)
            yield from list(self._made(part, range(place, place + count)))
            place += count

    def _made(self, part: Part, places: range) -> Iterator[Product]:
        numbers = self._numbers[places.start : places.stop]
        cells = self._rows.cells(part, (numbers - part.start).tolist())
        for place, number, row in zip(places, numbers.tolist(), cells, strict=True):
            at = f"{self._rows.name}, row {number}"
            if isinstance(row, ItemError):
                raise ItemError(at, row.problem)
            product = product_of(self._reading, row, at, number)
            if self._ids is not None and product.id != self._ids[place].as_py():
                problem = f"has id {brief(product.id)}, and had {brief(self._ids[place].as_py())} on opening"
                raise ItemError(at, f"{problem}; open the table again")
            yield product

    @cached_property
    def by_id(self) -> "ById":
        """Products by their ids, of which none is made that is not asked for."""
        return ById(self)

    def ids(self) -> Iterator[str]:
        """The products' ids in order."""
        if self._ids is None:
            return (_named(number) for number in self._numbers.tolist())
        return (own.as_py() for own in self._ids)

    def facts(self) -> Iterator[tuple[str, str, Mapping[str, tuple[str, ...]]]]:
        """The id, class and attributes of each product, which is not made for it (`column_facts.py`)."""
        arrow = self._reading.table.arrow
        if arrow is None or (np.diff(self._numbers) < 0).any():
            return ((own.id, own.class_name, own.attributes) for own in self)
        found = facts_of(arrow, self._reading.columns, self._numbers)
        return ((id, *own) for id, own in zip(self.ids(), found, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LazyProducts | tuple):
            return NotImplemented
        if len(self) != len(other):
            return False
        theirs = other.ids() if isinstance(other, LazyProducts) else (getattr(p, "id", None) for p in other)
        return all(a == b for a, b in zip(self.ids(), theirs, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple:
        return tuple, (list(self),)

    def __repr__(self) -> str:
        return f"<{len(self):,} products of {self._rows.name}>"


class ById(Mapping[str, Product]):
    """Products by id, found by bisection: of a million ids no other copy is made."""

    def __init__(self, products: LazyProducts):
        self._products = products

    @cached_property
    def _order(self) -> tuple[np.ndarray, pa.Array | np.ndarray]:
        """Places in the order of their ids, or of their rows' numbers, and these in order."""
        ids, numbers = self._products._ids, self._products._numbers
        order = np.argsort(numbers) if ids is None else pc.sort_indices(ids).to_numpy()
        return order, numbers[order] if ids is None else ids.take(pa.array(order))

    def place(self, id: object) -> int | None:
        """Where the product of this id stands; None if there is none."""
        order, known = self._order
        if not isinstance(id, str):
            return None
        wanted: Any = id
        if isinstance(known, np.ndarray):
            if not re.fullmatch(r"row-\d{6,18}", id, re.ASCII) or _named(int(id[4:])) != id:
                return None
            wanted, own = int(id[4:]), known.__getitem__
        else:
            wanted, own = id.encode("utf-8", "surrogatepass"), lambda i: known[i].as_py().encode()
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if own(middle) < wanted else (low, middle)
        return int(order[low]) if low < len(order) and own(low) == wanted else None

    def __getitem__(self, id: str) -> Product:
        if (place := self.place(id)) is None:
            raise KeyError(id)
        return self._products[place]

    def __contains__(self, id: object) -> bool:
        return self.place(id) is not None

    def __iter__(self) -> Iterator[str]:
        return self._products.ids()

    def __len__(self) -> int:
        return len(self._products)


def _named(number: int) -> str:
    return f"row-{number:06}"


# Opening


@dataclass
class _Seen:
    """What is known of the rows so far: their ids, languages, and what is wrong with some."""

    ids: list[pa.Array]
    languages: list[np.ndarray]
    names: dict[str, int]
    errors: dict[int, ItemError]
    size: int = 0

    def add_ids(self, ids: pa.Array, at: str) -> None:
        """Raises ItemError where they get too many for memory."""
        self.ids.append(ids)
        self.size += pc.sum(pc.binary_length(ids)).as_py() or 0
        if self.size > LONGEST_TEXTS:
            problem = f"the ids up to here have more than {LONGEST_TEXTS:,} characters; split the table"
            raise ItemError(at, problem)


def open_products(
    reading: Reading, refuse: Callable[[ItemError], None], stops: bool
) -> tuple[LazyProducts, tuple[str, ...]]:
    """The products of a table that has `arrow`, and their languages.

    What cannot be used is given to `refuse`, in the order of the rows; `stops` says that the first is enough.
    """
    columns = reading.columns
    used = dict.fromkeys([*(getattr(columns, role) for role in SINGLE), *columns.attributes])
    assert reading.table.arrow is not None
    rows = reading.table.arrow([name for name in used if name])
    seen = _Seen([], [], {}, {})
    count = 0
    for part in rows.parts():
        _look(part, rows, reading, seen)
        count = part.start + part.count
        if seen.errors and stops:
            count = min(seen.errors)
            break
    whole = pa.chunked_array(seen.ids, pa.large_string()).slice(0, count) if columns.id else None
    good = np.ones(count, bool)
    good[[number for number in seen.errors if number < count]] = False
    if whole is not None:
        seen.errors |= _doubles(whole, good, rows.name, columns.id)
    for number in sorted(seen.errors):
        refuse(seen.errors[number])
    good[list(seen.errors)] = False
    ids = None if whole is None else _one_piece(whole.filter(pa.array(good)))
    return LazyProducts(reading, rows, np.flatnonzero(good), ids), _languages(seen, good)


def _look(part: Part, rows: ArrowRows, reading: Reading, seen: _Seen) -> None:
    """Adds what is to be known of a part."""
    columns = reading.columns
    doubt = doubted(part.batch, part.there, reading)
    texts, unclear = None, np.zeros(part.count, bool)
    if columns.id:
        texts, unclear = texts_of(_column(part, columns.id))
    doubt |= unclear
    languages = np.zeros(part.count, np.int32)
    if columns.language:
        languages = _codes(_column(part, columns.language), doubt, columns.language, seen.names)
    read = dict(_read_alone(part, rows, reading, np.flatnonzero(doubt).tolist(), seen.errors))
    for place, product in read.items():
        languages[place] = seen.names.setdefault(product.language, len(seen.names))
    seen.languages.append(languages)
    if texts is not None:
        seen.add_ids(_with_ids(texts, doubt, read), f"{rows.name}, row {part.start + part.count - 1}")


def _column(part: Part, name: str) -> pa.Array:
    """A column as it was read; of pictures that were not, as of nothing."""
    return part.batch.column(name) if name in part.batch.schema.names else pa.nulls(part.count)


def _read_alone(
    part: Part, rows: ArrowRows, reading: Reading, places: list[int], errors: dict[int, ItemError]
) -> Iterator[tuple[int, Product]]:
    """The products of those places of a part that are some; what is wrong with others is added to
    `errors`.
    """
    for place, row in zip(places, rows.cells(part, places), strict=True):
        number = part.start + place
        at = f"{rows.name}, row {number}"
        try:
            if isinstance(row, ItemError):
                raise row
            yield place, product_of(reading, row, at, number)
        except ItemError as error:
            errors[number] = ItemError(at, error.problem)


def _with_ids(texts: pa.Array, doubt: np.ndarray, read: Mapping[int, Product]) -> pa.Array:
    """The ids of a part: of rows that were read alone those of their products, None where there is none."""
    if not doubt.any():
        return texts
    ids = [None if unclear else own.as_py() for own, unclear in zip(texts, doubt.tolist(), strict=True)]
    for place, product in read.items():
        ids[place] = product.id
    return pa.array(ids, pa.large_string())


def _codes(column: pa.Array, doubt: np.ndarray, name: str, names: dict[str, int]) -> np.ndarray:
    """Numbers of the languages of rows without a doubt; new ones are added to `names`."""
    if pa.types.is_nested(column.type):  # what is there is doubted
        return np.full(len(column), names.setdefault("", len(names)), np.int32)
    sure = pc.if_else(pa.array(~doubt), column, pa.scalar(None, column.type))
    coded = sure.dictionary_encode(null_encoding="encode")
    texts = [single_text(own, name, name) for own in coded.dictionary.to_pylist()]
    numbers = np.array([names.setdefault(own, len(names)) for own in texts], np.int32)
    return numbers[coded.indices.to_numpy()]


def _languages(seen: _Seen, good: np.ndarray) -> tuple[str, ...]:
    if not seen.names:
        return ()
    present = set(np.unique(np.concatenate(seen.languages)[: len(good)][good]).tolist())
    return tuple(sorted(name for name, code in seen.names.items() if code in present and name))


def _doubles(ids: pa.ChunkedArray, good: np.ndarray, table: str, column: str) -> dict[int, ItemError]:
    """An error for each row whose id a row before has."""
    own = ids.filter(pa.array(good))
    if len(pc.unique(own)) == len(own):
        return {}
    numbers = np.flatnonzero(good)
    known: dict[str, int] = {}
    found: dict[int, ItemError] = {}
    for number, id in zip(numbers.tolist(), (one.as_py() for one in own), strict=True):
        if id in known:
            found[number] = id_twice(id, f"row {known[id]}", f"{table}, row {number}", column)
        else:
            known[id] = number
    return found


def _one_piece(ids: pa.ChunkedArray) -> pa.Array:
    whole = ids.combine_chunks()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
