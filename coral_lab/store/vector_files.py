"""Files of vectors with their ids, however they were exported: parquet, NumPy, safetensors, LanceDB."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from coral_lab.errors import one_line, require
from coral_lab.sources.border import brief
from coral_lab.store.checking import check_folder, check_manifests, readable

ID = ("id", "_id", "ids", "idx", "key", "product_id", "query_id", "corpus_id", "doc_id", "docid")
VECTOR = ("embedding", "vector", "embeddings", "vectors", "sentence_embedding", "emb")
"""What files call them, in columns and as arrays; the first that is there."""

SUFFIXES = (".parquet", ".npy", ".npz", ".safetensors")

KINDS = ("product", "query")
READS = ".parquet, .npy or .safetensors with ids, .npz, or a LanceDB folder"


def is_vector_file(name: object) -> bool:
    """Whether a name is that of a file of vectors, and so of no checkpoint."""
    return isinstance(name, str | Path) and Path(name).suffix in SUFFIXES and Path(name).is_file()


@dataclass(frozen=True)
class VectorTable:
    """What a file holds: an id and a vector a row and, where the file says it, the kind of each."""

    ids: tuple[str, ...]
    numbers: Float32[np.ndarray, "row dim"]
    kinds: tuple[str, ...] | None = None


def read_vectors(file: Path, ids: str | Path | Sequence[str] | None = None) -> VectorTable:
    """A file's rows. Nothing is unpickled. Raises ValueError, naming the file and the way out, for one
    without ids or vectors, for rows that differ in number or length, and FileNotFoundError.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; give a file of vectors: {READS}")
    if file.is_dir():
        return _columns(file, _lance(file))
    if file.suffix == ".parquet":
        from pyarrow import parquet

        with _mendable(file):
            return _columns(file, parquet.read_table(file))
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    if file.suffix not in readers:
        raise ValueError(f"{file} is no file of vectors that is read; give {READS}")
    with _mendable(file):
        numbers, own = readers[file.suffix](file)
    found = _ids(file, ids) if own is None or ids is not None else _texts(file, own.tolist())
    return VectorTable(found, _matrix(file, numbers, len(found)))


def _npy(file: Path) -> tuple[Any, None]:
    return np.load(file, allow_pickle=False), None


def _npz(file: Path) -> tuple[Any, Any]:
    with np.load(file, allow_pickle=False) as found:
        return found[_named(file, VECTOR, found.files)], found[_named(file, ID, found.files)]


def _safetensors(file: Path) -> tuple[Any, None]:
    from safetensors import safe_open

    with safe_open(file, "pt") as found:  # NumPy has no bfloat16
        return found.get_tensor(_named(file, VECTOR, list(found.keys()))).float().numpy(), None


def _lance(folder: Path) -> Any:
    """The one table of a LanceDB folder, or of a store of ours the one with vectors."""
    lancedb = require("lancedb", "store")
    check_folder(str(folder))
    with readable(str(folder)):
        database = lancedb.connect(str(folder))
        names = [name for name in database.list_tables(limit=100).tables if name != "coral_lab"]
        if len(names) != 1:
            raise ValueError(
                f"{folder} has {len(names)} tables; give a folder with one, or export it to parquet"
            )
        check_manifests(str(folder), names[0])
        return database.open_table(names[0]).to_arrow()


def _columns(file: Path, table: Any) -> VectorTable:
    """Of an arrow table; further columns are not looked at."""
    names = table.schema.names
    ids = _texts(file, table[_named(file, ID, names)].to_pylist())
    column = table[_named(file, VECTOR, names)].combine_chunks()
    lengths = column.value_lengths().unique().to_pylist() if hasattr(column, "value_lengths") else [None]
    if len(lengths) > 1 or None in lengths or column.null_count:
        raise ValueError(
            f"{file} has vectors of lengths {brief(lengths)}; give each row one, all of a length"
        )
    numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(len(ids), -1)
    kinds = tuple(table["kind"].to_pylist()) if "kind" in names else None
    if kinds is not None and (other := {*kinds} - {*KINDS}):
        raise ValueError(f"{file} has rows of kind {brief(other.pop())}; use {' or '.join(KINDS)}")
    return VectorTable(ids, _matrix(file, numbers, len(ids)), kinds)


def _matrix(file: Path, numbers: Any, count: int) -> Float32[np.ndarray, "row dim"]:
    if numbers.ndim != 2 or numbers.dtype.kind not in "fiu" or 0 in numbers.shape:
        problem = f"{file} has {numbers.dtype} of shape {numbers.shape}"
        raise ValueError(f"{problem}; give numbers of shape (rows, dimensions)")
    if len(numbers) != count:
        raise ValueError(f"{file} has {len(numbers):,} vectors and {count:,} ids; give each its own")
    return np.ascontiguousarray(numbers, np.float32)


def _named(file: Path, wanted: Sequence[str], names: Sequence[str]) -> str:
    for name in wanted:
        if name in names:
            return name
    what = "an id" if wanted is ID else "a vector"
    raise ValueError(f"{file} has {brief(list(names))}, and none is {what}; call it {wanted[0]!r}")


def _ids(file: Path, ids: str | Path | Sequence[str] | None) -> tuple[str, ...]:
    """Given, or of the file that is beside."""
    if ids is not None and not isinstance(ids, str | Path):
        return _texts(file, list(ids))
    places = [file.with_name(f"{file.stem}.ids{kind}") for kind in (".txt", ".json")]
    places = places if ids is None else [Path(ids)]
    for place in places:
        if place.is_file():
            text = place.read_text(encoding="utf-8")
            with _mendable(place):
                return _texts(place, json.loads(text) if place.suffix == ".json" else text.splitlines())
    sought = " or ".join(place.name for place in places)
    raise ValueError(f"{file} says not whose its vectors are, and there is no {sought}; give ids=")


def _texts(file: Path, ids: Any) -> tuple[str, ...]:
    if not isinstance(ids, list) or not all(
        isinstance(id, str | int) and not isinstance(id, bool) for id in ids
    ):
        found = (
            next((id for id in ids if not isinstance(id, str | int)), ids) if isinstance(ids, list) else ids
        )
        raise ValueError(f"{file} has the id {brief(found)}; ids are texts or whole numbers")
    return tuple(map(str, ids))


@contextmanager
def _mendable(file: Path) -> Iterator[None]:
    """Whatever a reader runs into is an error of that file."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file} cannot be read ({one_line(str(error), 120)}); export it again") from error
    except Exception as error:
        raise ValueError(f"{file} cannot be read ({one_line(str(error), 120)}); export it again") from error
