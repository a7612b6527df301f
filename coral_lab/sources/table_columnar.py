"""Tables in Arrow's form, whose rows can be read in any order: parquet files and tables of `datasets`. Their
pictures stay where they are: a cell is a function that reads one when it is looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pyarrow import parquet

from coral_lab.errors import ItemError, one_line
from coral_lab.sources.parquet_pictures import KeptGroups, PictureFile
from coral_lab.sources.parquet_texts import ParquetTexts
from coral_lab.sources.table_files import Rows, Table, distinct

BLOCK = 1024
"""Rows of a table of `datasets` that are read at once, fewer where pictures come with them."""

Cells = dict[str, Any] | ItemError
"""A row's cells by column, or why it cannot be read."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows: `start` is the number of the first, `batch` holds their cells, and `there` tells of
    each column of pictures which rows surely have one. A column may be in both, or in `there` alone.
    """

    start: int
    count: int
    batch: pa.RecordBatch
    there: Mapping[str, np.ndarray]


@runtime_checkable
class ArrowRows(Protocol):
    """The rows of some columns of a table: `parts` are all of them in order, `near` is a part with a row and
    at most `ahead` more that are wanted, `cells` are rows of a part by their places there.
    """

    count: int
    name: str

    def parts(self) -> Iterator[Part]: ...

    def near(self, row: int, ahead: int = 1) -> Part: ...

    def cells(self, part: Part, places: Sequence[int]) -> Iterator[Cells]: ...


def in_order(rows: ArrowRows) -> Rows:
    """All rows as those of other tables."""
    for part in rows.parts():
        for place, cells in enumerate(rows.cells(part, range(part.count))):
            yield f"{rows.name}, row {part.start + place}", cells


def read_cells(batch: pa.RecordBatch, places: Sequence[int]) -> Iterator[Cells]:
    """Rows of a batch; an error for one whose texts are no UTF-8, or with a date that Python has none for."""
    whole = len(places) == len(batch)
    chosen = batch if whole else batch.take(pa.array(np.asarray(places, np.int64)))
    try:
        yield from chosen.to_pylist() if batch.num_columns else ({} for _ in places)
    except (pa.ArrowException, OSError, OverflowError, ValueError) as error:
        if len(places) > 1:
            for place in places:
                yield from read_cells(batch, [place])
        else:
            yield ItemError("row", f"cannot be read ({one_line(str(error), 100)}); repair the row")


# Tables of `datasets`


@dataclass(frozen=True)
class PictureOfDatasets:
    """One row's picture in a table of `datasets`: calling it reads it."""

    table: Any = field(repr=False)
    column: str
    row: int

    def __call__(self) -> Image.Image | Path | bytes:
        found = self.table[self.row][self.column]
        if isinstance(found, Mapping):  # a column that is not decoded
            found = found["bytes"] or Path(found["path"])
        return found


class DatasetsRows:
    """The rows of a table of `datasets`, with its classes by name."""

    name = "table"

    def __init__(self, table: Any, names: Sequence[str]):
        self._own = table.select_columns(list(names)).with_format("arrow")
        self._kinds = {name: table.features[name] for name in names}
        held = [name for name, kind in self._kinds.items() if _holds_images(kind)]
        self._pictures = {name: table.select_columns([name]).with_format(None) for name in held}
        self.count = len(table)

    def parts(self) -> Iterator[Part]:
        block = BLOCK // 4 if self._pictures else 8 * BLOCK
        return (self.near(start, block) for start in range(0, self.count, block))

    def near(self, row: int, ahead: int = 1) -> Part:
        found = self._own[row : row + ahead]
        there = {name: _present(found[name]) for name in self._pictures}
        columns = {n: _named(kind, found[n]) for n, kind in self._kinds.items() if n not in there}
        whole = [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns.values()]
        whole = [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in whole]
        return Part(row, len(found), pa.RecordBatch.from_arrays(whole, list(columns)), there)

    def cells(self, part: Part, places: Sequence[int]) -> Iterator[Cells]:
        for place, own in zip(places, read_cells(part.batch, places), strict=True):
            yield own if isinstance(own, ItemError) else own | self._of_row(part, place)

    def _of_row(self, part: Part, place: int) -> dict[str, PictureOfDatasets | None]:
        return {
            name: PictureOfDatasets(table, name, part.start + place) if part.there[name][place] else None
            for name, table in self._pictures.items()
        }


def of_datasets(table: Any) -> Table:
    """A table of `datasets`. Raises ItemError for a column that is there twice."""
    names = distinct(table.column_names, "table")
    return Table(
        "table", names, lambda: in_order(DatasetsRows(table, names)), arrow=lambda n: DatasetsRows(table, n)
    )


def _holds_images(kind: object) -> bool:
    return any(own.__name__ == "Image" for own in type(kind).__mro__)


def _present(column: pa.ChunkedArray) -> np.ndarray:
    """Which rows have a picture, told without copying one."""
    held = [pc.is_valid(pc.struct_field(column, name)).to_numpy() for name in ("bytes", "path")]
    return np.logical_or(*held)


def _named(kind: Any, column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """The names of classes in place of their numbers, of which those below 0 stand for none."""
    if not hasattr(kind, "int2str"):
        return column
    coded = column.combine_chunks().dictionary_encode()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    names = [kind.int2str(own) if own >= 0 else str(own) for own in coded.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(coded.indices, pa.array(names, pa.string())).dictionary_decode()


# Parquet files


class PictureColumn(PictureFile):
    """As PictureFile, for one column of any parquet file, whatever its name."""

    def __init__(self, file: Path, column: str, kept: KeptGroups):
        self.file, self.folder, self.remote_images = file, file.absolute().parent.resolve(), False
        self.column, self._kept = column, kept
        self._parquet = parquet.ParquetFile(file, memory_map=True)
        groups = [self._parquet.metadata.row_group(i) for i in range(self._parquet.num_row_groups)]
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + group.num_rows)
        self._full = [_has_all(group, column) for group in groups]
        state = file.stat()
        self.state = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}:{column}"

    def _batches(self, group: int, columns: Any) -> Iterator[pa.RecordBatch]:
        for batch in super()._batches(group, [self.column]):
            yield batch.rename_columns(["image"])

    def read(self, row: int) -> bytes | Path | str:
        try:
            return super().read(row)
        except ItemError as error:
            problem = error.problem.replace("field 'image'", f"field {self.column!r}")
            raise ItemError(error.item, problem) from None


def _has_all(group: parquet.RowGroupMetaData, column: str) -> bool:
    parts = (group.column(i) for i in range(group.num_columns))
    own = [part for part in parts if part.path_in_schema in (column, f"{column}.bytes")]
    return len(own) == 1 and own[0].is_stats_set and own[0].statistics.null_count == 0


class ParquetRows:
    """The rows of a parquet file. A column of pictures that are all there is not read."""

    def __init__(self, texts: ParquetTexts, names: Sequence[str], pictures: Mapping[str, PictureColumn]):
        self._texts, self._names = texts, tuple(names)
        self._pictures = {name: own for name, own in pictures.items() if name in names}
        self.name, self.count = str(texts.file), texts.starts[-1]

    def parts(self) -> Iterator[Part]:
        for group, start in enumerate(self._texts.starts[:-1]):
            for batch in self._texts.batches(group, self._read_in(group)):
                yield self._part(start, batch)
                start += len(batch)

    def near(self, row: int, ahead: int = 1) -> Part:
        group = self._texts.group_of(row)
        return self._part(*self._texts.around(row, self._read_in(group)))

    def _read_in(self, group: int) -> tuple[str, ...]:
        whole = {name for name, own in self._pictures.items() if own._full[group]}
        return tuple(name for name in self._names if name not in whole)

    def _part(self, start: int, batch: pa.RecordBatch) -> Part:
        names = batch.schema.names
        there = {
            name: _holds(batch.column(name)) if name in names else np.ones(len(batch), bool)
            for name in self._pictures
        }
        return Part(start, len(batch), batch, there)

    def cells(self, part: Part, places: Sequence[int]) -> Iterator[Cells]:
        for place, own in zip(places, read_cells(part.batch, places), strict=True):
            yield own if isinstance(own, ItemError) else self._with_pictures(own, part.start + place)

    def _with_pictures(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        """A row whose pictures' bytes are left in the file."""
        for name, column in self._pictures.items():
            own = row.get(name)
            if isinstance(own, dict):
                own = own.get("bytes") or own.get("path")
            row[name] = column.picture(number) if isinstance(own, bytes) or name not in row else own
        return row


def _holds(column: pa.Array) -> np.ndarray:
    """Which rows surely hold a picture's bytes."""
    own = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    if pa.types.is_struct(column.type) and not _is_binary(own.type):  # of paths alone
        return np.zeros(len(column), bool)
    return pc.fill_null(pc.greater(pc.binary_length(own), 0), False).to_numpy(zero_copy_only=False)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column is of bytes, or `datasets`' struct of bytes and path."""
    if pa.types.is_struct(kind):
        return {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
    return _is_binary(kind)


def of_parquet(file: Path) -> Table:
    """A parquet file. Raises ItemError for one that cannot be read, or has a column twice."""
    texts = ParquetTexts(file)
    names = distinct(texts.schema.names, str(file))
    kept = KeptGroups()
    pictures = {n: PictureColumn(file, n, kept) for n in names if _holds_bytes(texts.schema.field(n).type)}

    def arrow(names: Sequence[str]) -> ParquetRows:
        return ParquetRows(texts, names, pictures)

    return Table(str(file), names, lambda: in_order(arrow(names)), file.absolute().parent, arrow)
