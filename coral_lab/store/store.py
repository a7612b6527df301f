"""A durable pool of products under one checkpoint: encode into it, search it by metadata, export it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from coral_lab.encoder import UNKEPT, Settings, encode, encode_all
from coral_lab.errors import ItemError, StoreError, require
from coral_lab.models.protocol import Embedder
from coral_lab.prompts import Format
from coral_lab.query import Product, Query
from coral_lab.results import Hits, hits
from coral_lab.store.keeping import table_of
from coral_lab.store.tables import Record, Table, address, schema

PRODUCTS = "kind = 'product'"


@dataclass(frozen=True)
class Added:
    """What `Store.add` did: how many products are in the store now, and which were left out and why."""

    products: int
    skipped: tuple[ItemError, ...]

    def __repr__(self) -> str:
        lines = [
            f"{self.products:,} products in the store, {len(self.skipped):,} skipped",
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
        find = self.table.nearest_approximately if approximate else self.table.nearest
        rows, scores = find(embedding, k + len(gone), condition)
        found = [
            (_product(row), float(score))
            for row, score in zip(rows, scores, strict=True)
            if row.id not in gone
        ]
        return hits(query, found[:k])

    def make_index(self, sample: int = 100, k: int = 10, seed: int = 0) -> float:
        """An ANN index (IVF) for `search(approximate=True)`; returns its measured recall.

        That is the share of the exact `k` nearest neighbours of `sample` random products that it finds.
        Raises ValueError below 100,000 rows, where exact search is fast.
        """
        table = self.table
        table.make_index()
        return recall(table, sample, k, seed)

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


def recall(table: Table, sample: int = 100, k: int = 10, seed: int = 0) -> float:
    """Share of the exact `k` nearest neighbours of `sample` random rows that the approximate search finds."""
    _, own = table.to_numpy()
    chosen = np.random.default_rng(seed).choice(len(own), min(sample, len(own)), replace=False)
    found = []
    for query in own[chosen]:
        exact, near = (
            {row.name for row in find(query, k)[0]} for find in (table.nearest, table.nearest_approximately)
        )
        found.append(len(exact & near) / len(exact))
    return float(np.mean(found))


def _product(row: Record) -> Product:
    attributes: dict[str, tuple[str, ...]] = {}
    for fact in row.attributes:
        name, _, value = fact.partition("=")
        attributes[name] = (*attributes.get(name, ()), value)
    return Product(row.id, row.title, row.thumbnail, row.class_name, row.language, row.country, attributes)
