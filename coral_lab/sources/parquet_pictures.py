"""Products in parquet files. Pictures are read when they are looked at, a few rows at a time: memory stays
bounded whatever the files hold, row groups of more than 2 GB too.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from coral_lab.errors import ItemError, one_line
from coral_lab.images import told_identity
from coral_lab.sources.border import brief

COLUMNS = ("idx", "image", "title", "class", "country", "language", "attribute")
BYTES_AT_ONCE = 2**26
"""Of pictures that stay in memory of one row group, and of what is decoded at once: no batch is larger unless
a single row is.
"""

TEXTS = 2**28
"""Bytes of a file's texts when they are decoded: for 500,000 products and more."""

KEPT = 2  # row groups, of all files of a split; MERIT's are read in order


_UNREADABLE = (pa.ArrowException, OSError, ValueError)


class PictureFile:
    """A parquet file of products, whose column `image` is `datasets`' struct of bytes and path, or one of the
    two.

    Raises ItemError for a file that cannot be read or lacks a column. `folder` is where paths may lead to,
    `kept` the pictures in memory, which files may share.
    """

    def __init__(
        self, file: Path, folder: Path, remote_images: bool = False, kept: "KeptGroups | None" = None
    ):
        self.file, self.folder, self.remote_images = file, folder.resolve(), remote_images
        self._kept = kept or KeptGroups()
        try:
            self._parquet = parquet.ParquetFile(file, memory_map=True)
            groups = [self._parquet.metadata.row_group(i) for i in range(self._parquet.num_row_groups)]
            names = self._parquet.schema_arrow.names
        except _UNREADABLE as error:
            raise ItemError(str(file), f"is no parquet file ({_short(error)}); download it again") from None
        if missing := [name for name in COLUMNS if names.count(name) != 1]:
            raise ItemError(str(file), f"has no field {', '.join(map(repr, missing))}, or has it twice")
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + group.num_rows)
        kind = self._parquet.schema_arrow.field("image").type
        self._full = [_all_have_bytes(group, kind) for group in groups]
        state = file.stat()
        self.state = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}"

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self) -> Iterator[dict | ItemError]:
        """All fields but the picture, row by row; an error for a row whose texts are no UTF-8.

        Raises ItemError for a file that is damaged, or whose texts are too large for memory.
        """
        number = size = 0
        for group in range(self._parquet.num_row_groups):
            for batch in self._batches(group, [name for name in COLUMNS if name != "image"]):
                size += batch.nbytes
                if size > TEXTS:
                    problem = f"the texts up to here take more than {TEXTS:,} bytes; split the file"
                    raise ItemError(f"{self.file}, row {number}", problem)
                for row in self._read(batch, number):
                    yield row
                    number += 1

    def _batches(self, group: int, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
        try:
            count = _rows_at_once(self._parquet.metadata.row_group(group), columns)
            read = self._parquet.iter_batches(count, [group], list(columns), use_threads=False)
            yield from map(_plain, read)
        except _UNREADABLE as error:
            problem = f"is damaged: {', '.join(columns)} cannot be read ({_short(error)}); download it again"
            raise ItemError(str(self.file), problem) from None

    def _read(self, batch: pa.RecordBatch, number: int) -> list[dict | ItemError]:
        try:
            return batch.to_pylist()
        except _UNREADABLE as error:  # no UTF-8, or a date that Python has none for
            if len(batch) > 1:
                rows = range(len(batch))
                return [row for i in rows for row in self._read(batch.slice(i, 1), number + i)]
            problem = f"cannot be read ({_short(error)}); repair the row"
            return [ItemError(f"{self.file}, row {number}", problem)]

    def has_bytes(self, row: int) -> bool:
        """Whether a row holds its picture, told without reading it; False also where that cannot be told."""
        return self._full[bisect_right(self._starts, row) - 1]

    def picture(self, row: int) -> "StoredPicture":
        return StoredPicture(self, row)

    def read(self, row: int) -> bytes | Path | str:
        """The picture of a row: its bytes, a path inside the folder, or an address that may be fetched.

        Raises ItemError for a row without a picture, or one that leads elsewhere.
        """
        at = f"{self.file}, row {row}"
        group = bisect_right(self._starts, row) - 1
        try:
            value = self._kept.read(self, group, row - self._starts[group])
        except ItemError as error:
            raise ItemError(at, error.problem) from None
        own = value if isinstance(value, dict) else {"bytes": value, "path": value}
        content, address = own.get("bytes"), own.get("path")
        if isinstance(content, bytes) and content:
            return content
        if not isinstance(address, str) or not address:
            raise ItemError(at, f"field 'image' is {brief(value)}; the picture should be in the file")
        if self._full[group]:  # its identity is that of a row with bytes, and a path's content may change
            problem = "field 'image' has no bytes, and the file says that it does; write the file again"
            raise ItemError(at, problem)
        if address.startswith(("http://", "https://")):
            if not self.remote_images:
                raise ItemError(
                    at,
                    f"field 'image' is the address {brief(address)}; set remote_images=True to have it "
                    "fetched",
                )
            return address
        return self._inside(address, at)

    def _inside(self, address: str, at: str) -> Path:
        try:
            path = (self.folder / address).resolve()
        except (OSError, ValueError) as error:
            raise ItemError(at, f"field 'image' is {brief(address)}, no path ({error})") from None
        if "://" in address or not path.is_relative_to(self.folder):
            raise ItemError(
                at, f"field 'image' leads to {brief(address)}, outside {self.folder}; it is not followed"
            )
        return path


def _rows_at_once(group: parquet.RowGroupMetaData, columns: Collection[str]) -> int:
    """So few that they take BYTES_AT_ONCE even if every row held all that the columns hold: a value is
    written once and repeated by a dictionary.
    """
    parts = [group.column(i) for i in range(group.num_columns)]
    size = sum(p.total_uncompressed_size for p in parts if p.path_in_schema.split(".")[0] in columns)
    return max(1, min(BYTES_AT_ONCE // max(size, 1), 1024))


def _all_have_bytes(group: parquet.RowGroupMetaData, kind: pa.DataType) -> bool:
    """By the statistics of a row group; `kind` is that of `image`, which may be of paths alone."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    name = "image.bytes" if pa.types.is_struct(plain) else "image" if any(i(plain) for i in binary) else ""
    own = [part for i in range(group.num_columns) if (part := group.column(i)).path_in_schema == name]
    return len(own) == 1 and own[0].is_stats_set and own[0].statistics.null_count == 0


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """With values in place of indices into a dictionary: what they take is seen."""
    if not any(pa.types.is_dictionary(kind) for kind in batch.schema.types):
        return batch
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _short(error: Exception) -> str:
    return one_line(str(error), 100)


class Window:
    """Batches of consecutive rows, read forwards; the last stay in memory, so many as take `most` bytes."""

    def __init__(self, batches: Iterator[pa.RecordBatch], most: int):
        self._batches, self._most = batches, most
        self._kept: list[pa.RecordBatch] = []
        self._starts: list[int] = []
        self._end = self.size = 0

    def reaches(self, row: int) -> bool:
        """Whether the row is in memory or still to come."""
        return row >= (self._starts[0] if self._starts else 0)

    def around(self, row: int) -> tuple[int, pa.RecordBatch]:
        """The batch that holds the row, and where it begins."""
        while row >= self._end:
            self._take(next(self._batches))
        at = bisect_right(self._starts, row) - 1
        return self._starts[at], self._kept[at]

    def _take(self, batch: pa.RecordBatch) -> None:
        self._kept.append(batch)
        self._starts.append(self._end)
        self._end += len(batch)
        self.size += batch.nbytes
        while self.size > self._most and len(self._kept) > 1:
            self.size -= self._kept.pop(0).nbytes
            self._starts.pop(0)


class KeptGroups:
    """The row groups whose pictures were read last, of any file."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[PictureFile, int], Window] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of pictures in memory."""
        return sum(group.size for group in self._groups.values())

    def read(self, file: PictureFile, number: int, row: int) -> object:
        """The value of `image` in a row of a row group. Raises ItemError if it cannot be read."""
        with self._lock:
            group = self._groups.pop((file, number), None)  # it comes back as the last one, if it can be read
            if group is None or not group.reaches(row):
                group = Window(file._batches(number, ["image"]), BYTES_AT_ONCE)
            try:
                start, batch = group.around(row)
                value = batch.column("image")[row - start].as_py()
            except ItemError:
                raise
            except (StopIteration, *_UNREADABLE) as error:
                problem = f"field 'image' cannot be read ({_short(error)}); download the file again"
                raise ItemError(str(file.file), problem) from None
            self._groups[file, number] = group
            if len(self._groups) > KEPT:
                self._groups.popitem(last=False)
            return value


@dataclass(frozen=True)
class StoredPicture:
    """One row's picture: calling it reads it. It is a `Picture` as any function that draws one."""

    file: PictureFile
    row: int

    def __call__(self) -> bytes | Path:
        found = self.file.read(self.row)
        if isinstance(found, str):
            from coral_lab.sources.fetching import fetch  # and httpx: only where something is fetched

        return fetch(found, f"{self.file.file}, row {self.row}") if isinstance(found, str) else found

    @property
    def place(self) -> tuple[str, int]:
        """Where it lies: pictures read in this order need each row group once."""
        return str(self.file.file), self.row

    @property
    def identity(self) -> str | None:
        """Equal for the same row of the same file, as it is on disk now; no picture is read to tell. That of
        a picture that a row points to is its content's; None if it cannot be read.
        """
        if not self.file.has_bytes(self.row):
            try:
                found = self.file.read(self.row)
            except ItemError:  # opening it says what is wrong
                return None
            if isinstance(found, Path):
                return told_identity(found)
        return f"{self.file.state}:{self.row}"
