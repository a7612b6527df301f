"""Embeddings with their metadata on disk: one LanceDB table for each way of making them.

Rows are committed whole or not at all, whenever the process is killed. A product has one row in a table, its
newest; a row's `key` says what exactly was encoded, so that something else never gets its vector. Processes
that write to one local folder take turns; at an object store's address LanceDB's own merge keeps rows
distinct.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# By default Lance reads so far ahead that a search takes more than twice the vectors' memory; this much is as
# fast (benchmarks/store.py).
os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(32 * 2**20))
os.environ.setdefault("LANCE_IO_THREADS", "2")

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from coral_lab.errors import StoreError, require
from coral_lab.sources.files import fresh_file
from coral_lab.store.checking import LONGEST, check_folder, check_manifests, check_rows, matrix, readable
from coral_lab.store.topk import Prepared, top_k

lancedb = require("lancedb", "store")

VERSION = 1
PRODUCTS = "kind = 'product'"
MARKER = "coral_lab"  # the table that says of which version a store is
_BATCH = 1024  # rows read at a time
_TEXTS = ("row", "key", "kind", "id", "title", "class", "language", "country")


@dataclass(frozen=True)
class Record:
    """What is known of one embedded item; `attributes` are texts such as "color=red", `thumbnail` a JPEG."""

    key: str
    kind: str
    id: str = ""
    title: str = ""
    class_name: str = ""
    language: str = ""
    country: str = ""
    attributes: tuple[str, ...] = ()
    thumbnail: bytes | None = None

    @property
    def name(self) -> str:
        """A product has one row, whatever it looked like before; the same query may be edited in many
        ways.
        """
        return f"product:{self.id}" if self.kind == "product" else f"{self.kind}:{self.key}"


def address(uri: str | os.PathLike) -> str:
    """A store's address as everything uses it: a folder with `~` and `..` resolved, another address as it
    is.
    """
    text = os.fspath(uri)
    return str(Path(text).expanduser().resolve()) if _is_local(text) else text


def schema(dim: int, space: Mapping) -> pa.Schema:
    """Columns of a table; `space` says how its vectors were made."""
    fields = [pa.field(name, pa.string()) for name in _TEXTS]
    fields += [
        pa.field("attributes", pa.list_(pa.string())),
        pa.field("thumbnail", pa.binary()),
        pa.field("vector", pa.list_(pa.float32(), dim)),
    ]
    return pa.schema(fields, metadata={"coral_lab": json.dumps({"version": VERSION, **space})})


def _connect(uri: str) -> Any:
    """Raises StoreError for a folder of something else, one that leads elsewhere, or a store of another
    version.
    """
    if _is_local(uri):
        check_folder(uri)
    try:
        database = lancedb.connect(uri)
        names = _names(database)
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(f"{uri!r} cannot be opened as a store ({error}); name another folder") from error
    if MARKER not in names:
        if names or (_is_local(uri) and Path(uri).is_dir() and _others(Path(uri))):
            raise StoreError(f"{uri!r} holds something else than a store; name a new or empty folder")
        return database
    with readable(uri):
        table = _open(database, uri, MARKER)
        known = "version" in table.schema.names and len(table)
        version = table.head(1)["version"][0].as_py() if known else None
    if version != VERSION:
        raise StoreError(
            f"{uri!r} is a store of version {version}, and this coral_lab writes {VERSION}; update "
            "coral_lab, or name another folder"
        )
    return database


def _open(database: Any, uri: str, name: str) -> Any:
    """A table as it is now. Raises StoreError for one whose data lie elsewhere."""
    if _is_local(uri):
        check_manifests(uri, name)
    with readable(uri):
        return database.open_table(name)


def _names(database: Any) -> list[str]:
    return list(database.list_tables(limit=10_000).tables)


def among(names: Sequence[str]) -> str:
    """SQL's condition for the rows of those names."""
    return "row IN ({})".format(", ".join("'" + name.replace("'", "''") + "'" for name in names))


def _others(folder: Path) -> bool:
    return any(entry.name != LOCK for entry in folder.iterdir())


def _is_local(uri: str) -> bool:
    return "://" not in uri


LOCK = ".coral_lab.lock"


@dataclass(frozen=True, eq=False)
class Table:
    """The table of one space in the store at `uri`, a folder or an object store's address.

    `space` is what the vectors were made with, and `name` the table's, a digest of it. Nothing is written
    before the first commit.
    """

    uri: str
    name: str
    dim: int
    space: Mapping

    def __post_init__(self):
        _ = self.database

    @cached_property
    def database(self) -> Any:
        return _connect(self.uri)

    def turn(self):
        """This process's turn to write. A killed process's lock is free again."""
        if not _is_local(self.uri):
            return nullcontext()
        Path(self.uri).mkdir(parents=True, exist_ok=True)
        return require("filelock", "store").FileLock(Path(self.uri) / LOCK)

    @property
    def can_be_written(self) -> bool:
        """Whether rows may be added, as far as the file system tells; also of a folder yet to be made."""
        there = next(path for path in (Path(self.uri), *Path(self.uri).parents) if path.exists())
        return not _is_local(self.uri) or os.access(there, os.W_OK)

    @property
    def exists(self) -> bool:
        return self.has(self.name)

    def has(self, name: str) -> bool:
        """Whether the store has a table of that name."""
        return name in _names(self.database)

    @property
    def files(self) -> str:
        """The address of the Lance dataset that the table is."""
        return f"{self.uri.rstrip('/')}/{self.name}.lance"

    def open(self, name: str) -> Any:
        """Another table of the store, as it is now. Raises StoreError for one whose data lie elsewhere."""
        return _open(self.database, self.uri, name)

    def make(self, name: str, columns: pa.Schema) -> Any:
        """A table of the store, made if it is not there."""
        if not self.has(MARKER):
            self.database.create_table(MARKER, pa.table({"version": [VERSION]}), exist_ok=True)
        return self.database.create_table(name, schema=columns, exist_ok=True)

    def make_own(self) -> None:
        """This table, without rows, if it is not there."""
        with self.turn():
            self.make(self.name, schema(self.dim, self.space))

    def names(self) -> set[str]:
        """The names of all rows (`Record.name`)."""
        return self._names_in(self._table()) if self.exists else set()

    def batch(self, rows: Sequence[Record], vectors: Float32[np.ndarray, "row dim"]) -> pa.Table:
        """Rows as the table has them."""
        return _batch(rows, vectors, schema(self.dim, self.space))

    def _table(self):
        """The newest state. Raises StoreError for a table of another make."""
        table = _open(self.database, self.uri, self.name)
        wanted = schema(self.dim, self.space)
        # What stands beside a field may say that its content lies elsewhere; we write nothing there.
        if not table.schema.equals(wanted) or any(field.metadata for field in table.schema):
            raise StoreError(
                f"table {self.name} of {self.uri!r} has other columns than this coral_lab writes "
                f"({', '.join(table.schema.names)}); update coral_lab, or name another folder"
            )
        return table

    def __len__(self) -> int:
        return self.count()

    def count(self, where: str | None = None) -> int:
        if not self.exists:
            return 0
        table = self._table()
        with readable(self.uri):
            return table.count_rows(where)

    def batches(self, where: str | None = None) -> Iterator[pa.RecordBatch]:
        """All columns of the rows that meet `where`, some thousand at a time."""
        return self.scan(schema(self.dim, self.space).names, where)

    def find(self, keys: Sequence[str]) -> dict[str, Float32[np.ndarray, " dim"]]:
        """The vectors of those keys that are there."""
        if not self.exists or not keys:
            return {}
        table, wanted = self._table(), set(keys)
        with readable(self.uri):
            known = table.search().select(["key"]).with_row_id(True).to_arrow()
        places = [
            place
            for key, place in zip(known["key"].to_pylist(), known["_rowid"].to_pylist(), strict=True)
            if key in wanted
        ]
        found: dict[str, np.ndarray] = {}
        for start in range(0, len(places), _BATCH):
            with readable(self.uri):
                rows = table.take_row_ids(places[start : start + _BATCH]).select(["key", "vector"]).to_arrow()
            check_rows(self.uri, rows)
            found |= dict(zip(rows["key"].to_pylist(), matrix(rows["vector"]), strict=True))
        return {key: vector for key, vector in found.items() if key in wanted}

    def commit(self, rows: Sequence[Record], vectors: Float32[np.ndarray, "row dim"]) -> None:
        """Add these rows in one step; those of the same name are replaced. Raises StoreError, e.g. for a full
        disk.
        """
        if not len(rows):
            return
        names = [row.name for row in rows]
        last = {name: i for i, name in enumerate(names)}
        keep = sorted(last.values())
        batch = self.batch([rows[i] for i in keep], vectors[keep])
        try:
            with self.turn():
                self._write(batch, set(last))
        except (OSError, RuntimeError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{len(rows):,} rows could not be written to {self.uri!r} ({error}); what was committed "
                "before is safe: free space or mend the disk and run again"
            ) from error

    def _write(self, batch: pa.Table, names: set[str]) -> None:
        if not self.exists:
            self.make(self.name, batch.schema)
        table = self._table()
        if _is_local(self.uri) and names.isdisjoint(self._names_in(table)):
            table.add(batch)  # nobody else writes now: no need to look for rows to replace
        else:
            merge = table.merge_insert("row").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(batch)

    @staticmethod
    def _names_in(table) -> set[str]:
        return set(table.search().select(["row"]).to_arrow()["row"].to_pylist())

    def nearest(
        self, query: Float32[np.ndarray, " dim"], k: int, where: str | None = None
    ) -> tuple[list[Record], Float32[np.ndarray, " k"]]:
        """The `k` best rows by dot product, best first, of those that meet the SQL condition `where`.

        Exact, and in little memory: rows are read batch by batch. Ties go to the lower row name. Raises
        ValueError for a condition that cannot be understood, StoreError for an empty table.
        """
        (best,) = self.best(query[None], k, where)
        return self.rows([name for _, name in best]), np.array([-score for score, _ in best], np.float32)

    def best(
        self,
        queries: Float32[np.ndarray, "query dim"],
        k: int,
        where: str | None = None,
        size: int = _BATCH,
    ) -> list[list[tuple[float, str]]]:
        """Score, turned round, and row name of each query's `k` best, best first: all rows are read once for
        all queries, `size` at a time.
        """
        best: list[list[tuple[float, str]]] = [[] for _ in queries]
        for batch in self.scan(["row", "vector"], where, size):
            scores, places = top_k(queries, Prepared(matrix(batch["vector"]), LONGEST), k)
            names = batch["row"]
            for own, values, rows in zip(best, scores, places, strict=True):
                own += [(-float(s), names[int(i)].as_py()) for s, i in zip(values, rows, strict=True)]
                own[:] = sorted(own)[:k]
        return best

    def opened(self) -> Any:
        """The newest state. Raises StoreError for a table without rows, or of another make."""
        if not self.exists:
            raise StoreError(
                f"{self.uri!r} has no vectors of {self.space.get('model')}; encode something into it first"
            )
        return self._table()

    def scan(
        self, columns: Sequence[str], where: str | None = None, size: int = _BATCH
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of the rows that meet `where`, `size` rows at a time. Raises as `nearest` does."""
        scan = self.opened().search().select(list(columns))
        try:
            batches = (scan.where(where) if where else scan).to_batches(batch_size=size)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f'where is {where!r}, which cannot be understood ({error}); write SQL such as "class = '
                "'shoes' AND "
                f"language = 'th'\" over {', '.join(_TEXTS)}, or array_has(attributes, 'color=red')"
            ) from error
        while True:
            with readable(self.uri, f"it is damaged, make it anew, or look at the condition {where!r}"):
                batch = next(batches, None)
            if batch is None:
                return
            check_rows(self.uri, batch)
            yield batch

    def rows(self, names: Sequence[str]) -> list[Record]:
        """The rows of those names, in their order, without their vectors."""
        columns, found = [*_TEXTS, "attributes", "thumbnail"], {}
        for batch in self.scan(columns, among(names)) if names else ():
            for values in batch.to_pylist():
                own = {
                    name: values[name]
                    for name in ("key", "kind", "id", "title", "language", "country", "thumbnail")
                }
                record = Record(**own, class_name=values["class"], attributes=tuple(values["attributes"]))
                if record.name != values["row"] or record.name in found:
                    raise StoreError(
                        f"store {self.uri!r}: row {values['row']!r} is of {record.name!r}, or there twice; "
                        "make it anew"
                    )
                found[record.name] = record
        return [found[name] for name in names]

    def to_numpy(self, where: str | None = None) -> tuple[list[str], Float32[np.ndarray, "row dim"]]:
        """Ids and vectors of the rows that meet `where`, by id."""
        ids, parts = [], []
        for batch in self.scan(["id", "vector"], where):
            ids += batch["id"].to_pylist()
            parts.append(matrix(batch["vector"]))
        order = sorted(range(len(ids)), key=ids.__getitem__)
        whole = np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)
        return [ids[i] for i in order], whole[order]

    def to_parquet(self, file: str | Path, where: str | None = None) -> None:
        """Write the rows that meet `where`, with all columns, a batch at a time."""
        from pyarrow import parquet

        columns = schema(self.dim, self.space)
        with fresh_file(file) as handle, parquet.ParquetWriter(handle, columns) as writer:
            for batch in self.batches(where):
                writer.write_table(pa.Table.from_batches([batch]).cast(columns))

    def tidy(self) -> None:
        """Join the small files of many commits; searches get faster."""
        with self.turn():
            self._table().optimize()


def _batch(rows: Sequence[Record], vectors: Float32[np.ndarray, "row dim"], columns: pa.Schema) -> pa.Table:
    values = {
        name: [getattr(row, name) for row in rows]
        for name in ("key", "kind", "id", "title", "language", "country", "attributes", "thumbnail")
    }
    values |= {"row": [row.name for row in rows], "class": [row.class_name for row in rows]}
    dim = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    arrays = {name: pa.array(values[name], columns.field(name).type) for name in values}
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(flat, dim)
    return pa.table([arrays[name] for name in columns.names], schema=columns)
