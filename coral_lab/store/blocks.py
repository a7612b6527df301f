"""A catalogue encoded block by block: every worker writes Lance files of its own, and one commit makes all of
them rows of a store.

A block that is done is marked in a table beside the store's, with its files, and never done again. Before the
commit nothing is in the store, and after it all is, whenever a worker or the whole run was killed.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from coral_lab.encoder import Settings, encode_all
from coral_lab.errors import ItemError, StoreError, require
from coral_lab.images import digest
from coral_lab.models.protocol import Embedder
from coral_lab.query import Dataset, Product
from coral_lab.sources.border import brief
from coral_lab.store.keeping import facts
from coral_lab.store.tables import Record, Table

MOST_BLOCKS = 4000
"""Each block is a commit to the marks, which takes the longer the more there are."""


@dataclass(frozen=True)
class Source:
    """Where a worker finds products: data that it opens itself as `cl.dataset` does, or `given` ones, which
    are sent to it.
    """

    data: str = ""
    split: str = "test"
    offline: bool = False
    on_error: str = "raise"
    given: Sequence[Product] = ()

    @property
    def products(self) -> Sequence[Product]:
        """All of them. Data are opened once in a process."""
        return self._dataset.products if self.data else self.given

    @property
    def skipped(self) -> Sequence[ItemError]:
        """What of the data could not be read."""
        return self._dataset.skipped if self.data else ()

    @property
    def _dataset(self) -> Dataset:
        return _opened(self.data, self.split, self.offline, self.on_error)


@lru_cache(maxsize=1)
def _opened(data: str, split: str, offline: bool, on_error: str) -> Dataset:
    from coral_lab.sources.opening import dataset

    return dataset(data, split, offline=offline, on_error=on_error)


@dataclass(frozen=True)
class Block:
    """Products of a source by their places; `name` is a digest of the model and of what is told of them."""

    name: str
    places: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """What every worker is told. `load` gives it a model of its own."""

    store: str
    load: Callable[[], Embedder]
    source: Source
    settings: Settings = Settings()

    def products(self, block: Block) -> list[Product]:
        """A block's."""
        every = self.source.products
        return [every[place] for place in block.places]


@dataclass(frozen=True)
class Done:
    """A block's files, as Lance describes them in JSON, and what of it was left out."""

    block: str
    fragments: str
    rows: int
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Space:
    """A model's table as a worker sees it: the weights, and the dtype that its device runs best."""

    name: str
    dim: int
    space: Mapping

    @classmethod
    def of(cls, table: Table) -> "Space":
        return cls(table.name, table.dim, table.space)

    def table(self, store: str) -> Table:
        return Table(store, self.name, self.dim, self.space)


def plan(table: Table, source: Source, size: int | None = None) -> list[Block]:
    """Blocks of `size` products that have no row in the table yet: 256 by default, more of a large catalogue.

    Raises ItemError for a product whose id another has.
    """
    there, new, seen = table.names(), [], set()
    for place, product in enumerate(source.products):
        if product.id in seen:
            raise ItemError(f"product {brief(product.id)}", "is there twice; give each an id of its own")
        seen.add(product.id)
        if Record("", "product", product.id).name not in there:
            new.append((place, _told(product)))
    size = size or max(256, -(-len(new) // MOST_BLOCKS))
    parts = [new[at : at + size] for at in range(0, len(new), size)]
    return [
        Block(digest([table.name, *(told for _, told in own)]), tuple(i for i, _ in own)) for own in parts
    ]


def _told(product: Product) -> str:
    own = (product.id, product.title, product.class_name, product.language, product.country)
    return digest([*own, *facts(product)])


class _Rows:
    """Takes the place of a table while a block is encoded."""

    can_be_written, uri = True, ""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.vectors: list[np.ndarray] = []

    def find(self, keys: Sequence[str]) -> dict[str, Float32[np.ndarray, " dim"]]:
        return {}

    def commit(self, rows: Sequence[Record], vectors: Float32[np.ndarray, "row dim"]) -> None:
        self.records += rows
        self.vectors += list(vectors)


def encode_block(
    model: Embedder, table: Table, block: Block, products: Sequence[Product], settings: Settings
) -> Done:
    """Encode a block and write its rows where the table will find them; they are none of it yet."""
    rows = _Rows()
    found = encode_all(model, products, settings=settings, keep=rows)
    skipped = tuple((error.item, error.problem) for _, error in found.skipped)
    fragments = (
        write_fragments(table, rows.records, np.array(rows.vectors, np.float32)) if rows.records else []
    )
    return Done(block.name, json.dumps(fragments), len(rows.records), skipped)


def write_fragments(
    table: Table, rows: Sequence[Record], vectors: Float32[np.ndarray, "row dim"]
) -> list[dict]:
    """Lance's description of files with these rows, which nothing refers to yet. Raises StoreError."""
    lance = require("lance", "cluster")
    try:
        made = lance.fragment.write_fragments(table.batch(rows, vectors), table.files)
    except OSError as error:
        raise StoreError(f"{len(rows):,} rows could not be written to {table.uri!r} ({error})") from error
    return [fragment.to_json() for fragment in made]


MARKS = pa.schema(
    [("block", pa.string()), ("fragments", pa.string()), ("rows", pa.int64()), ("skipped", pa.string())]
)


@dataclass(frozen=True, eq=False)
class Marks:
    """Which blocks of a table are done: a small table beside it, while a run lasts."""

    table: Table

    @property
    def name(self) -> str:
        return f"{self.table.name}_blocks"

    def read(self) -> dict[str, Done]:
        """What is done, by the blocks' names."""
        if not self.table.has(self.name):
            return {}
        rows = self.table.open(self.name).to_arrow().to_pylist()
        return {row["block"]: _done(self.table.uri, row) for row in rows}

    def add(self, done: Iterable[Done]) -> None:
        rows = [{**vars(own), "skipped": json.dumps(own.skipped)} for own in done]
        if rows:
            with self.table.turn():
                self.table.make(self.name, MARKS).add(pa.Table.from_pylist(rows, MARKS))

    def drop(self) -> None:
        if self.table.has(self.name):
            self.table.database.drop_table(self.name)


def _done(uri: str, row: Mapping[str, Any]) -> Done:
    """A mark may be a stranger's: its files are in the table's own folder, or it is refused."""
    try:
        files = [file for fragment in json.loads(row["fragments"]) for file in fragment["files"]]
        inside = all(file.get("base_id") is None and "/" not in file["path"] for file in files)
        skipped = tuple((str(item), str(problem)) for item, problem in json.loads(row["skipped"]))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{uri!r}: mark {brief(row['block'])} is damaged ({error}); make the store anew"
        ) from error
    if not inside:
        raise StoreError(f"{uri!r}: mark {brief(row['block'])} names files elsewhere; make the store anew")
    return Done(row["block"], row["fragments"], row["rows"], skipped)


def commit(table: Table, blocks: Sequence[Block], source: Source, version: int) -> list[Done]:
    """Make all blocks rows of the table in one step, and forget their marks. Raises StoreError if one is not
    done.

    If the table is no longer of the `version` that the blocks were planned for, those with a product that has
    a row by now are left out: what is not returned is to be planned again. Of two runs of one job that both
    come here the second finds its marks gone, and is told to run again: then all products are there. (At an
    object store's address nobody takes turns, and what is added in this very moment is not seen.)
    """
    marks = Marks(table)
    with table.turn():
        found = marks.read()
        if missing := sum(block.name not in found for block in blocks):
            raise StoreError(
                f"{table.uri!r}: {missing:,} of {len(blocks):,} blocks are not done; run it again"
            )
        if table.opened().version != version:
            blocks = _free(blocks, source, table.names())
        done = [found[block.name] for block in blocks]
        append(table, [own for one in done for own in json.loads(one.fragments)])
        marks.drop()
    return done


def _free(blocks: Sequence[Block], source: Source, there: set[str]) -> list[Block]:
    """The blocks none of whose products has a row."""
    products = source.products
    return [
        block
        for block in blocks
        if there.isdisjoint(Record("", "product", products[place].id).name for place in block.places)
    ]


def append(table: Table, fragments: Sequence[dict]) -> None:
    """Make files that `write_fragments` wrote rows of the table, in one step."""
    if not fragments:
        return
    lance = require("lance", "cluster")
    described = [lance.FragmentMetadata.from_json(json.dumps(own)) for own in fragments]
    operation, version = lance.LanceOperation.Append(described), lance.dataset(table.files).version
    lance.LanceDataset.commit(table.files, operation, read_version=version)
