"""Which rows of a table in Arrow's form may be wrong, told column by column, a million rows in seconds.

What is not doubted here makes a product as it is; a row that is doubted is read alone, by the checks of
`tables.py`. So a doubt costs time and nothing else: kinds of cells that are rare are all doubted.
"""

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coral_lab.sources.border import composed
from coral_lab.sources.columns import ABSENT, SINGLE
from coral_lab.sources.tables import LONGEST_CELL, Reading

Mask = np.ndarray
"""One bool a row."""

DAYS = (-719_162, 2_932_896)
"""The dates that Python has, from 1 January 1970."""

SECONDS = tuple(24 * 60 * 60 * day for day in DAYS)
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

# Nothing is said, or one of ABSENT; and what begins as JSON does. Both may find more than there is.
_SILENT = r"^[^\pL\pN]*(" + "|".join(re.escape(own.strip("<>#")) for own in sorted(ABSENT)) + r")?[^\pL\pN]*$"
_JSON = r"^[^\pL\pN]*[\[{]"
_ADDRESS, _DATA = r"^https?://[^\s|;,]+$", r"^data:[^\s|;]+$"


def doubted(batch: pa.RecordBatch, there: Mapping[str, Mask], reading: Reading) -> Mask:
    """The rows that may be refused, or hold what only reading the row can tell.

    `there` tells of columns of pictures which rows surely have one.
    """
    rows, columns = len(batch), reading.columns
    try:
        batch.validate(full=True)  # texts are UTF-8
    except pa.ArrowException:
        return np.ones(rows, bool)
    present = set(batch.schema.names)
    if len({composed(name) for name in columns.attributes}) < len(columns.attributes):
        return np.ones(rows, bool)
    single = [getattr(columns, role) for role in SINGLE if role != "picture"]
    found = np.zeros(rows, bool)
    for names, test in ((filter(None, single), _single), (columns.attributes, _values)):
        for own in names:  # a column of pictures is no text, read or not
            found |= there[own] if own in there else test(batch.column(own))
            found |= _array(pc.is_valid(batch.column(own))) if {own} <= there.keys() & present else False
    pictured, unsure = _pictures(batch, there, reading)
    titled = np.zeros(rows, bool)
    if columns.title in present:
        titled = ~_silent(batch.column(columns.title))
    return found | unsure | ~(pictured | titled)


def texts_of(column: pa.Array) -> tuple[pa.Array, Mask]:
    """A column as texts where that is certain, as ids are, and where it is not."""
    kind = column.type
    if pa.types.is_integer(kind):
        return column.cast(pa.large_string()), _array(pc.is_null(column))
    if not _is_text(kind):
        return pa.nulls(len(column), pa.large_string()), np.ones(len(column), bool)
    plain = pc.match_substring_regex(column, r"^[!-~]([ -~]*[!-~])?$")
    known = pc.is_in(column, pa.array(sorted(ABSENT), kind))
    return column.cast(pa.large_string()), ~_array(plain) | _array(known) | _long(column)


def _single(column: pa.Array) -> Mask:
    """Where a cell may be no text or number that can be written."""
    kind = column.type
    if _is_text(kind):
        return _long(column)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return np.zeros(len(column), bool)
    if pa.types.is_floating(kind):
        numbers = np.abs(column.to_numpy(zero_copy_only=False).astype(np.float64))
        return numbers >= 2**53  # NaN is absent
    if pa.types.is_decimal(kind) and kind.scale >= 0:
        return np.zeros(len(column), bool)
    if pa.types.is_date32(kind):
        return _outside(column.cast(pa.int32()), *DAYS)
    if pa.types.is_timestamp(kind) and kind.tz is None:
        low, high = (own * PER_SECOND[kind.unit] for own in SECONDS)
        return _outside(column.cast(pa.int64()), max(low, -(2**63)), min(high, 2**63 - 1))
    return _array(pc.is_valid(column))


def _values(column: pa.Array) -> Mask:
    """As `_single`, for cells that may hold several values; those of JSON are doubted."""
    kind = column.type
    if _is_text(kind):
        return _long(column) | _array(pc.match_substring_regex(column, _JSON))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _single(pc.list_flatten(column))
        found = np.zeros(len(column), bool)
        found[pc.list_parent_indices(column).to_numpy()[inner]] = True
        return found
    return _single(column)


def _pictures(batch: pa.RecordBatch, there: Mapping[str, Mask], reading: Reading) -> tuple[Mask, Mask]:
    """Where a row surely has a picture, and where it may have one."""
    name, none = reading.columns.picture, np.zeros(len(batch), bool)
    held = there.get(name, none)
    if name not in batch.schema.names:
        return held, none
    column = batch.column(name)
    filled = _array(pc.is_valid(column))
    if not _is_text(column.type):
        return held, filled & ~held
    filled &= ~_array(pc.is_in(column, pa.array(["", *sorted(ABSENT)], column.type)))
    sure = _array(pc.match_substring_regex(column, _DATA))
    if reading.remote_images:
        sure |= _array(pc.match_substring_regex(column, _ADDRESS))
    rest = np.flatnonzero(filled & ~sure)
    sure[rest] = [own in reading.files for own in column.take(pa.array(rest)).to_pylist()]
    return sure, filled & ~sure


def _silent(column: pa.Array) -> Mask:
    """Where a title may be absent."""
    if not _is_text(column.type):
        return np.ones(len(column), bool)
    return _array(pc.fill_null(pc.match_substring_regex(column, _SILENT), True))


def _long(column: pa.Array) -> Mask:
    return _array(pc.greater(pc.binary_length(column), LONGEST_CELL))


def _outside(numbers: pa.Array, low: int, high: int) -> Mask:
    return _array(pc.or_(pc.less(numbers, low), pc.greater(numbers, high)))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _array(mask: pa.Array) -> Mask:
    """Null as False."""
    return pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
