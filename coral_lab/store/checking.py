"""Stores may come from strangers: nothing in one leads outside its folder, and what is read from it is looked
at.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from pyarrow import compute

from coral_lab.errors import StoreError, one_line

LONGEST, SHORTEST = 1.001, 0.999
"""Norms of embeddings, normalised in float32."""

_MAY_BE_NULL = ("thumbnail",)
_ELSEWHERE = re.compile(rb"\x92(?:\x01|\x81\x80*\x00)")
"""How field 18 of Lance's manifest begins, the base paths (protobuf: 18 << 3 | 2, as any varint of it)."""


def check_folder(uri: str) -> None:
    """Whether all of a store is in its folder. Raises StoreError for a link, a pipe or a device in it, for
    tables that lie elsewhere, and for LanceDB's list of such tables.
    """
    for folder, folders, files in os.walk(uri):
        for name in (*folders, *files):
            path = Path(folder, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # another process tidies up
                continue
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "no file"
                raise _refused(uri, f"{path.relative_to(uri)} is {kind}; a store is all in its folder")
            if name.startswith("__manifest"):
                raise _refused(uri, f"{path.relative_to(uri)} may name tables elsewhere")


def check_manifests(uri: str, table: str) -> None:
    """Whether a table's data are in the store's folder. Raises StoreError.

    A manifest may name other folders as base paths, which Lance reads from; of a data file's path it escapes
    what would lead elsewhere.
    """
    for file in sorted(Path(uri, f"{table}.lance").rglob("*.manifest")):
        try:
            found = file.stat()
            elsewhere = _has_base_paths(file, found.st_size, found.st_mtime_ns)
        except FileNotFoundError:  # another process tidies up
            continue
        except (ValueError, IndexError):
            raise _refused(uri, f"{file.name} of table {table} is damaged") from None
        if elsewhere:
            raise _refused(uri, f"{file.name} of table {table} refers to data outside the store")


@cache  # a manifest never changes: each commit writes one of its own
def _has_base_paths(file: Path, size: int, changed: int) -> bool:
    content = file.read_bytes()
    if not _ELSEWHERE.search(content):
        return False
    start = int.from_bytes(content[-16:-8], "little")
    length = int.from_bytes(content[start : start + 4], "little")
    return any(number == 18 for number in _fields(content[start + 4 : start + 4 + length]))


def _fields(message: bytes) -> Iterator[int]:
    """The numbers of a protobuf message's fields. Raises IndexError or ValueError for what is none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            _, at = _varint(message, at)
        elif key & 7 == 2:
            length, at = _varint(message, at)
            at += length
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
        else:
            raise ValueError(f"wire type {key & 7}")
        yield key >> 3
    if at > len(message):
        raise IndexError(at)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def check_rows(uri: str, rows: pa.RecordBatch | pa.Table) -> None:
    """Whether rows that were read hold what rows hold: no nulls, and vectors of norm 1. Raises StoreError
    naming the row.
    """
    for name in rows.schema.names:
        column = rows.column(name)
        inner = compute.list_flatten(column) if name == "attributes" else None
        if name not in _MAY_BE_NULL and (column.null_count or (inner is not None and inner.null_count)):
            row = compute.index(column.is_null(), True).as_py()
            raise _refused(uri, f"{_named(rows, row)} has nothing for {name}")
    if "vector" in rows.schema.names:
        vectors = matrix(rows.column("vector"))
        with np.errstate(all="ignore"):
            squares = np.vecdot(vectors, vectors)
        wrong = ~((squares > SHORTEST**2) & (squares < LONGEST**2))  # also for NaN
        if wrong.any():
            row = int(np.argmax(wrong))
            norm = float(squares[row]) ** 0.5
            raise _refused(uri, f"{_named(rows, row)} has a vector of norm {norm:.4g}, and it must be 1")


def matrix(column: Any) -> Float32[np.ndarray, "row dim"]:
    """A column of vectors, without a copy where it is in one piece."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)


def _named(rows: pa.RecordBatch | pa.Table, row: int) -> str:
    names = [name for name in ("row", "key", "id") if name in rows.schema.names]
    return f"row {rows.column(names[0])[row].as_py()!r}" if names and row >= 0 else "a row"


@contextmanager
def readable(uri: str, way_out: str = "it is damaged, make it anew") -> Iterator[None]:
    """Whatever LanceDB runs into is a StoreError; its panics are no Exceptions."""
    try:
        yield
    except StoreError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise StoreError(f"{uri!r} cannot be read ({one_line(str(error), 120)}); {way_out}") from error


def _refused(uri: str, problem: str) -> StoreError:
    return StoreError(f"store {uri!r}: {problem}; do not use it, or make it anew")
