"""A parquet file's cells a part at a time, in any order, in bounded memory whatever the file holds. Columns
of pictures are read by `parquet_pictures.py`.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from coral_lab.errors import ItemError, one_line
from coral_lab.sources.parquet_pictures import BYTES_AT_ONCE, Window

KEPT_BYTES = 2**28
"""Of the row groups that were read last: of a million products nearly all."""

MOST_ROWS = 8192
"""At once."""

SLACK = 64
"""How many times as long as on average some rows may be."""

PLAIN = frozenset({"PLAIN", "RLE", "BIT_PACKED", "BYTE_STREAM_SPLIT", "DELTA_LENGTH_BYTE_ARRAY"})
DICTIONARY = frozenset({"RLE_DICTIONARY", "PLAIN_DICTIONARY"})
"""Encodings in which a value takes its own bytes, and those whose values stand in a dictionary."""

_UNREADABLE = (pa.ArrowException, OSError, ValueError)


class ParquetTexts:
    """A parquet file with whatever columns it has. Raises ItemError for one that cannot be read.

    `starts` are the numbers of the row groups' first rows, and of all rows.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            self._parquet = parquet.ParquetFile(file, memory_map=True)
            self.schema = self._parquet.schema_arrow
            own = [self._parquet.schema.column(i) for i in range(len(self._parquet.schema))]
            texts = [c.path for c in own if _is_text(c)]
            self._coded = parquet.ParquetFile(file, memory_map=True, read_dictionary=texts)
        except _UNREADABLE as error:
            problem = f"is no parquet file ({one_line(str(error), 100)}); write it again"
            raise ItemError(str(file), problem) from None
        self.starts = [0]
        for i in range(self._parquet.num_row_groups):
            self.starts.append(self.starts[-1] + self._parquet.metadata.row_group(i).num_rows)
        self._windows: OrderedDict[tuple[int, tuple[str, ...]], Window] = OrderedDict()
        self._lock = threading.Lock()

    def group_of(self, row: int) -> int:
        """The row group that holds a row."""
        return bisect_right(self.starts, row) - 1

    def batches(self, group: int, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of a row group, in order. Raises ItemError if they cannot be read."""
        try:
            count = self._rows_at_once(group, columns)
            for batch in self._parquet.iter_batches(count, [group], list(columns), use_threads=False):
                yield _decoded(batch)
        except _UNREADABLE as error:
            if isinstance(error, ItemError):
                raise
            problem = f"is damaged: {', '.join(columns)} cannot be read ({one_line(str(error), 100)})"
            raise ItemError(str(self.file), f"{problem}; download it again") from None

    def around(self, row: int, columns: tuple[str, ...]) -> tuple[int, pa.RecordBatch]:
        """A batch that holds a row, and the number of its first; what was read last stays in memory."""
        group = self.group_of(row)
        first = self.starts[group]
        with self._lock:
            window = self._windows.pop((group, columns), None)
            if window is None or not window.reaches(row - first):
                window = Window(self.batches(group, columns), KEPT_BYTES)
            try:
                start, batch = window.around(row - first)
            except StopIteration:
                raise ItemError(f"{self.file}, row {row}", "is not in the file; write it again") from None
            self._windows[group, columns] = window
            while len(self._windows) > 1 and sum(own.size for own in self._windows.values()) > KEPT_BYTES:
                self._windows.popitem(last=False)
        return first + start, batch

    def _rows_at_once(self, group: int, columns: Collection[str]) -> int:
        """So many that they take BYTES_AT_ONCE even if they are SLACK times as long as on average, or as long
        as the longest value of a dictionary, which is written once and may be said again in every row.
        """
        about = self._parquet.metadata.row_group(group)
        parts = (about.column(i) for i in range(about.num_columns))
        own = [part for part in parts if _is_of(part.path_in_schema, columns)]
        size = max(1, sum(part.total_uncompressed_size for part in own))
        encodings = {own for part in own for own in part.encodings}
        known = encodings <= PLAIN | DICTIONARY  # others may repeat what stood in the row before
        count = BYTES_AT_ONCE * about.num_rows // (SLACK * size) if known else BYTES_AT_ONCE // size
        if encodings & DICTIONARY and count > 1:
            first = next(self._coded.iter_batches(1, [group], list(columns), use_threads=False), None)
            longest = sum(map(_longest, first.columns)) if first is not None else 0
            count = min(count, BYTES_AT_ONCE // max(1, longest))
        return max(1, min(count, MOST_ROWS))


def _is_text(column: parquet.ColumnSchema) -> bool:
    return column.physical_type == "BYTE_ARRAY" and column.converted_type in ("UTF8", "NONE", "JSON", "ENUM")


def _is_of(path: str, columns: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _longest(column: pa.Array) -> int:
    """Bytes of the longest value of a column's dictionaries, of each of its fields."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        values = column.dictionary
        texts = pa.types.is_binary(values.type) or pa.types.is_string(values.type)
        return pc.max(pc.binary_length(values)).as_py() or 0 if texts else 0
    if pa.types.is_struct(kind):
        return sum(_longest(column.field(i)) for i in range(kind.num_fields))
    if pa.types.is_map(kind):
        return _longest(column.keys) + _longest(column.items)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _longest(column.values)
    return kind.byte_width if pa.types.is_fixed_size_binary(kind) else 0


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With values in place of indices into a dictionary: what they take is seen."""
    if not any(pa.types.is_dictionary(kind) for kind in batch.schema.types):
        return batch
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)
