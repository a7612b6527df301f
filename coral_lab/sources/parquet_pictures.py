"""Pictures in parquet files, read a row group at a time when they are looked at."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from coral_lab.errors import ItemError

COLUMNS = ("idx", "image", "title", "class", "country", "language", "attribute")
KEPT = 2  # row groups of pictures in memory; MERIT's are read in order


class PictureFile:
    """A parquet file of products, whose column `image` is `datasets`' struct of bytes and path.

    Raises ItemError for a file that cannot be read or lacks a column. `folder` is where paths may lead to.
    """

    def __init__(self, file: Path, folder: Path, remote_images: bool = False):
        self.file, self.folder, self.remote_images = file, folder.resolve(), remote_images
        try:
            self._parquet = parquet.ParquetFile(file, memory_map=True)
        except (pa.ArrowException, OSError) as error:
            raise ItemError(str(file), f"is no parquet file ({error}); download it again") from None
        missing = [name for name in COLUMNS if name not in self._parquet.schema_arrow.names]
        if missing:
            raise ItemError(str(file), f"has no field {', '.join(map(repr, missing))}")
        self._starts = [0]
        for group in range(self._parquet.num_row_groups):
            self._starts.append(self._starts[-1] + self._parquet.metadata.row_group(group).num_rows)
        self._kept: OrderedDict[int, list] = OrderedDict()
        self._lock = threading.Lock()
        state = file.stat()
        self.state = f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}"

    def __len__(self) -> int:
        return self._starts[-1]

    def rows(self) -> Iterator[dict]:
        """All fields but the picture, row by row."""
        names = [name for name in COLUMNS if name != "image"]
        try:
            for batch in self._parquet.iter_batches(columns=names):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ItemError(str(self.file), f"is damaged ({error}); download it again") from None

    def picture(self, row: int) -> "StoredPicture":
        return StoredPicture(self, row)

    def read(self, row: int) -> bytes | Path | str:
        """The picture of a row: its bytes, a path inside the folder, or an address that may be fetched.

        Raises ItemError for a row without a picture, or one that leads elsewhere.
        """
        at = f"{self.file}, row {row}"
        value = self._group(row, at)
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict) and value.get("bytes"):
            return value["bytes"]
        address = value.get("path") if isinstance(value, dict) else value
        if not address or not isinstance(address, str):
            raise ItemError(at, "field 'image' is empty; the picture should be in the file")
        if address.startswith(("http://", "https://")):
            if not self.remote_images:
                raise ItemError(
                    at,
                    f"field 'image' is the address {address[:200]!r}; set remote_images=True to have it "
                    "fetched",
                )
            return address
        return self._inside(address, at)

    def _group(self, row: int, at: str):
        group = next(g for g, start in enumerate(self._starts[1:]) if row < start)
        with self._lock:
            if group not in self._kept:
                try:
                    table = self._parquet.read_row_group(group, columns=["image"])
                except (pa.ArrowException, OSError) as error:
                    raise ItemError(
                        at, f"field 'image' cannot be read ({error}); download it again"
                    ) from None
                self._kept[group] = table.column("image")
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            return self._kept[group][row - self._starts[group]].as_py()

    def _inside(self, address: str, at: str) -> Path:
        try:
            path = (self.folder / address).resolve()
        except (OSError, ValueError) as error:
            raise ItemError(at, f"field 'image' is {address[:200]!r}, no path ({error})") from None
        if "://" in address or not path.is_relative_to(self.folder):
            raise ItemError(
                at, f"field 'image' leads to {address[:200]!r}, outside {self.folder}; it is not followed"
            )
        return path


@dataclass(frozen=True)
class StoredPicture:
    """One row's picture: calling it reads it. It is a `Picture` as any function that draws one."""

    file: PictureFile
    row: int

    def __call__(self) -> bytes | Path:
        found = self.file.read(self.row)
        return fetch(found, f"{self.file.file}, row {self.row}") if isinstance(found, str) else found

    @property
    def identity(self) -> str:
        """Equal for the same row of the same file, as it is on disk now; no picture is read to tell."""
        return f"{self.file.state}:{self.row}"


LONGEST = 20 * 2**20  # bytes of a fetched picture
PATIENCE = 30  # seconds


def fetch(address: str, item: str) -> bytes:
    """The bytes at an http(s) address, at most 20 MB within 30 seconds. Raises ItemError."""
    import httpx

    try:
        with httpx.stream("GET", address, timeout=PATIENCE, follow_redirects=True) as answer:
            answer.raise_for_status()
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > LONGEST:
                    raise ItemError(
                        item, f"picture {address[:200]!r} has more than {LONGEST:,} bytes; shrink it"
                    )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ItemError(item, f"picture {address[:200]!r} cannot be fetched ({error})") from error
    return bytes(content)
