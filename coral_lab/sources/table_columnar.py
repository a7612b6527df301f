"""Tables in Arrow's form, a few rows at a time: parquet files and tables of `datasets`. Their pictures stay
where they are: a cell is a function that reads one when it is looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pyarrow import parquet

from coral_lab.errors import ItemError, one_line
from coral_lab.sources.parquet_pictures import KeptGroups, PictureFile
from coral_lab.sources.table_files import Rows, Table, distinct


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


def of_datasets(table: Any) -> Table:
    """A table of `datasets`, with its classes by name. Raises ItemError for a column that is there twice."""
    names = distinct(table.column_names, "table")
    kinds = {name: table.features[name] for name in names}
    pictures = {n: table.select_columns([n]).with_format(None) for n, k in kinds.items() if _holds_images(k)}

    def rows() -> Rows:
        start = 0
        for batch in table.with_format("arrow").iter(batch_size=256):
            cells = {n: batch[n].to_pylist() for n in names if n not in pictures}
            there = {n: _present(batch[n]) for n in pictures}
            for i in range(batch.num_rows):
                own = {n: _named(kinds[n], cells[n][i]) for n in cells}
                for n, flags in there.items():
                    own[n] = PictureOfDatasets(pictures[n], n, start + i) if flags[i] else None
                yield f"table, row {start + i}", own
            start += batch.num_rows

    return Table("table", names, rows)


def _holds_images(kind: object) -> bool:
    return any(own.__name__ == "Image" for own in type(kind).__mro__)


def _present(column: pa.ChunkedArray) -> list[bool]:
    """Which rows have a picture, told without copying one."""
    held = (pc.is_valid(pc.struct_field(column, name)) for name in ("bytes", "path"))
    return pc.or_(*held).to_pylist()


def _named(kind: Any, value: Any) -> Any:
    """The name of a class in place of its number."""
    return (
        kind.int2str(value) if hasattr(kind, "int2str") and isinstance(value, int) and value >= 0 else value
    )


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


class _Parquet(PictureFile):
    """A parquet file with whatever columns it has."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self._parquet = parquet.ParquetFile(file, memory_map=True)
            self.schema = self._parquet.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            problem = f"is no parquet file ({one_line(str(error), 100)}); write it again"
            raise ItemError(str(file), problem) from None
        self.names = distinct(self.schema.names, str(file))
        kept = KeptGroups()
        held = [n for n in self.names if _holds_bytes(self.schema.field(n).type)]
        self.pictures = {n: PictureColumn(file, n, kept) for n in held}

    def cells(self) -> Rows:
        """All rows; of a column of pictures only what tells whether they are there."""
        number = 0
        for group in range(self._parquet.num_row_groups):
            whole = [n for n, own in self.pictures.items() if own._full[group]]
            rest = [n for n in self.names if n not in whole]
            for row in self._texts(group, rest, number):
                own = row if isinstance(row, ItemError) else self._with_pictures(row, number)
                yield f"{self.file}, row {number}", own
                number += 1

    def _texts(self, group: int, names: Sequence[str], start: int) -> Iterator[dict | ItemError]:
        if not names:  # pictures alone
            yield from ({} for _ in range(self._parquet.metadata.row_group(group).num_rows))
            return
        for batch in self._batches(group, names):
            yield from self._read(batch, start)
            start += len(batch)

    def _with_pictures(self, row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        """A row whose pictures' bytes are left in the file."""
        found = {name: row.get(name) for name in self.names}
        for name, column in self.pictures.items():
            own = found[name]
            if isinstance(own, dict):
                own = own.get("bytes") or own.get("path")
            found[name] = column.picture(number) if isinstance(own, bytes) or name not in row else own
        return found


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column is of bytes, or `datasets`' struct of bytes and path."""
    if pa.types.is_struct(kind):
        return {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def of_parquet(file: Path) -> Table:
    """A parquet file. Raises ItemError for one that cannot be read, or has a column twice."""
    own = _Parquet(file)
    return Table(str(file), own.names, own.cells, file.absolute().parent)
