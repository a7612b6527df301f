"""A durable pool of products under one checkpoint: encode into it, search it by metadata, export it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from coral_lab.encoder import UNKEPT, Settings, encode, encode_all
from coral_lab.errors import ItemError, StoreError, require
from coral_lab.models.protocol import Embedder
from coral_lab.prompts import Format
from coral_lab.query import Product, Query
from coral_lab.results import Hits, hits
from coral_lab.store import approximate as ann
from coral_lab.store.approximate import Approximation
from coral_lab.store.checking import matrix
from coral_lab.store.keeping import table_of
from coral_lab.store.tables import PRODUCTS, Record, Table, address, schema

if TYPE_CHECKING:
    from coral_lab.evaluation import Result


@dataclass(frozen=True)
class Added:
    """What `Store.add` did: how many products are in the store now, and which were left out and why. `check`
    says what let an encoder in that is not our own.
    """

    products: int
    skipped: tuple[ItemError, ...]
    check: str = ""

    def __repr__(self) -> str:
        lines = [
            f"{self.products:,} products in the store, {len(self.skipped):,} skipped",
            *([self.check] if self.check else []),
            *map(str, self.skipped),
        ]
        return "\n  ".join(lines)


@dataclass(frozen=True, eq=False)
class Store:
    """Products and their embeddings by one checkpoint, at a folder or an object store's address.

    `format` is how queries are worded. A store may hold many checkpoints; this is the view of one, as its
    weights are now. A product's id has one row, its newest: keep catalogues that share ids in stores of their
    own.
    """

    uri: str
    model: Embedder
    format: str | Format = "seq"

    @property
    def table(self) -> Table:
        return table_of(self.uri, self.model)

    def add(self, products: Iterable[Product], settings: Settings = Settings()) -> Added:
        """Encode what is not there yet, committing as it goes; killed at any moment, the next call goes on.

        Whatever store the settings name, it is this one. Raises StoreError if it cannot be written.
        """
        table = self.table
        if not table.can_be_written:
            raise StoreError(f"{self.uri!r} cannot be written; name another folder, or ask its owner")
        found = encode_all(self.model, products, settings=replace(settings, store=self.uri))
        table.tidy()
        return Added(len(self), tuple(error for _, error in found.skipped))

    def search(
        self,
        query: Query,
        k: int = 10,
        where: str | None = None,
        *,
        exclude_references: bool = True,
        approximate: bool = False,
    ) -> Hits:
        """The `k` best products for one query, of those that meet the SQL condition `where`.

        Columns are id, title, class, language, country and attributes: `"class = 'shoes' AND language =
        'th'"`, `"array_has(attributes, 'color=red')"`. Exact; `approximate` uses the index that `make_index`
        made. The query's references are left out unless they are positives. Raises ValueError for a condition
        that cannot be understood.
        """
        gone = (
            {product.id for product in query.references} - set(query.positives)
            if exclude_references
            else set()
        )
        condition = PRODUCTS if where is None else f"{PRODUCTS} AND ({where})"
        embedding = encode(self.model, query, self.format, UNKEPT)[0]
        table, count = self.table, k + len(gone)
        if approximate:
            own = self.index
            if own is None:
                raise StoreError(f"{self.uri!r} has no index; make_index() makes one")
            rows, scores = ann.nearest(table, embedding, count, condition, own.effort)
        else:
            rows, scores = table.nearest(embedding, count, condition)
        found = [
            (product_of(row), float(score))
            for row, score in zip(rows, scores, strict=True)
            if row.id not in gone
        ]
        return hits(query, found[:k])

    @property
    def index(self) -> Approximation | None:
        """The index for `search(approximate=True)` and what it was measured to find; None without one."""
        return ann.saved(self.table)

    def make_index(
        self,
        recall: float = 0.95,
        kind: str = "ivf-pq",
        queries: Sequence[Query] = (),
        sample: int = 100,
        k: int = 10,
    ) -> Approximation:
        """An index for `search(approximate=True)`, tuned to find the wished share of the exact `k` nearest.

        `kind` is "ivf-pq", the smallest, "ivf-hnsw-sq" or "ivf-flat". What it finds is measured with
        `queries`, or else with `sample` products as if they were queries, which are found more easily. Rows
        added later are found at once. Raises ValueError below 100,000 rows, where exact search is fast, and
        for a recall that is none.
        """
        if not 0 < recall <= 1:
            raise ValueError(f"recall is {recall}; wish for more than 0 and at most 1")
        table = self.table
        ann.build(table, kind)
        asked = encode(self.model, queries, self.format, UNKEPT) if queries else ann.sample(table, sample)
        found = ann.tune(table, asked, recall, kind, k, "queries" if queries else "products")
        ann.save(table, found)
        return found

    def evaluate(
        self,
        queries: Iterable[Query],
        k: int = 100,
        *,
        exclude_references: bool = True,
        approximate: bool = False,
        settings: Settings = UNKEPT,
    ) -> "Result":
        """Rank the whole store for every query, to depth `k`, and measure it as `evaluation.measure` does.

        Exact; `approximate` uses the index that `make_index` made, and the result says what that finds of the
        exact nearest, by up to 100 of these queries. All rows are read once, and those that were found kept,
        with their thumbnails. Raises as `evaluation.measure` does, and StoreError without an index.
        """
        from coral_lab.store.evaluating import evaluate

        asked = tuple(queries)
        return evaluate(self, asked, k, exclude_references, approximate, settings)

    def in_batches(self, size: int = 8_192) -> Iterator[tuple[list[str], Float32[np.ndarray, "product dim"]]]:
        """Ids and embeddings of all products, so many at a time, in the order in which they lie there."""
        for batch in self.table.scan(["id", "vector"], PRODUCTS, size):
            yield batch["id"].to_pylist(), matrix(batch["vector"])

    def products(self, ids: Sequence[str]) -> list[Product]:
        """Products by their ids, their pictures thumbnails. Raises KeyError for an id that is not there."""
        return [product_of(row) for row in self.table.rows([Record("", "product", id).name for id in ids])]

    def to_numpy(self) -> tuple[list[str], Float32[np.ndarray, "product dim"]]:
        """Ids, in order, and embeddings of all products."""
        return self.table.to_numpy(PRODUCTS)

    def to_parquet(self, file: str | os.PathLike) -> None:
        """All products with metadata, thumbnails and embeddings."""
        self.table.to_parquet(Path(file), PRODUCTS)

    def to_dataset(self) -> Any:
        """All products as a `datasets.Dataset`; needs that package. Pictures are thumbnails."""
        datasets = require("datasets", "data")
        table = self.table
        rows = pa.Table.from_batches(table.batches(PRODUCTS), schema(table.dim, {}).remove_metadata())
        return datasets.Dataset(rows).cast_column("thumbnail", datasets.Image())

    def __len__(self) -> int:
        return self.table.count(PRODUCTS)

    def __repr__(self) -> str:
        return (
            f"Store({self.uri!r}: {len(self):,} products, {self.model.name!r}, {self.model.dim} dimensions)"
        )


def open_store(uri: str | os.PathLike, model: Embedder, format: str | Format = "seq") -> Store:
    """Open or make a store. Raises StoreError for a folder of something else, or a version this coral_lab
    does not know.
    """
    found = Store(address(uri), model, format)
    _ = found.table
    return found


def product_of(row: Record) -> Product:
    """The product that a row is of, its picture a thumbnail."""
    attributes: dict[str, tuple[str, ...]] = {}
    for fact in row.attributes:
        name, _, value = fact.partition("=")
        attributes[name] = (*attributes.get(name, ()), value)
    return Product(row.id, row.title, row.thumbnail, row.class_name, row.language, row.country, attributes)
