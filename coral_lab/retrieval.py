"""An encoded candidate pool and its search."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64

from coral_lab.encoder import UNKEPT, Settings, encode, encode_all
from coral_lab.errors import ItemError
from coral_lab.models.protocol import Embedder
from coral_lab.prompts import Format, format_name, format_of
from coral_lab.query import Product, Query, name_of
from coral_lab.results import Hits, hits
from coral_lab.store.topk import Prepared, prepare, top_k

if TYPE_CHECKING:
    from coral_lab.evaluation import Result


@dataclass(frozen=True, eq=False)
class Index:
    """An encoded candidate pool: `embeddings` [product, dim] are L2-normalised float32, one for each of
    `products`.

    What queries must agree with has its owner here: the `model`, and the `format` that queries are worded in
    unless a call names another. `settings` are how the pool was encoded, and how queries are. `skipped` says
    which products could not be used, if that was allowed; they are not among `products`.
    """

    model: Embedder
    products: Sequence[Product]
    embeddings: Float32[np.ndarray, "product dim"]
    format: str | Format = "seq"
    settings: Settings = field(default=Settings(), repr=False)
    skipped: tuple[ItemError, ...] = ()

    @cached_property
    def row_of(self) -> Mapping[str, int]:
        """Each product's place, by id."""
        return {product.id: row for row, product in enumerate(self.products)}

    @cached_property
    def candidates(self) -> Prepared:
        """The embeddings prepared for many searches: a large pool takes a quarter more memory."""
        return prepare(self.embeddings)

    def encode(
        self, queries: Query | Iterable[Query], format: str | Format | None = None
    ) -> Float32[np.ndarray, "query dim"]:
        """Embeddings of queries by the index's model, in its format unless told another; they are not
        kept.
        """
        return encode(self.model, queries, format or self.format, UNKEPT)

    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        format: str | Format | None = None,
        exclude_references: bool = True,
    ) -> Hits:
        """The `k` best products for one query. Its references are left out unless they are positives."""
        scores, rows = ranking(
            [query], self.encode(query, format), self, k, exclude_references=exclude_references
        )
        found = zip(scores[0], rows[0], strict=True)
        return hits(query, ((self.products[row], score) for score, row in found if row >= 0))

    def evaluate(
        self,
        queries: Iterable[Query],
        format: str | Format | None = None,
        *,
        k: int = 100,
        exclude_references: bool = True,
    ) -> "Result":
        """Rank the pool for every query, to depth `k`, and measure it as MERIT's authors do; see
        `evaluation.measure`.
        """
        from coral_lab.evaluation import measure

        return measure(self, queries, format, k=k, exclude_references=exclude_references)

    def __repr__(self) -> str:
        worded = f", format {format_name(self.format)!r}" if self.format != "seq" else ""
        count = f"{len(self.products):,} products"
        return f"Index({count}, {self.model.name!r}, {self.model.dim} dimensions{worded})"


def index(
    model: Embedder,
    products: Iterable[Product],
    format: str | Format = "seq",
    settings: Settings = Settings(),
) -> Index:
    """Encode a pool of products; `format` is how its queries will be worded.

    With `on_error` "skip" the pool goes without products that cannot be used; `Index.skipped` lists them.
    Raises ItemError for two products with one id, ValueError for a pool of which nothing is left or an
    unknown format.
    """
    format_of(format)
    products = tuple(products)
    seen: set[str] = set()
    for product in products:
        if product.id in seen:
            raise ItemError(name_of(product), "its id stands twice in the pool; give every product its own")
        seen.add(product.id)
    found = encode_all(model, products, settings=settings)
    gone = {i for i, _ in found.skipped}
    kept = [i for i in range(len(products)) if i not in gone]
    if not kept:
        raise ValueError(f"the pool has no products ({len(gone)} were skipped); give at least one")
    chosen, skipped = tuple(products[i] for i in kept), tuple(error for _, error in found.skipped)
    return Index(model, chosen, found.embeddings[kept], format, settings, skipped)


def ranking(
    queries: Sequence[Query],
    embeddings: Float32[np.ndarray, "query dim"],
    index: Index,
    k: int,
    *,
    exclude_references: bool = True,
) -> tuple[Float32[np.ndarray, "query k"], Int64[np.ndarray, "query k"]]:
    """Scores and rows of the `k` best of each query; row -1 and score NaN where the pool has no more."""
    left_out = [_left_out(query, index) if exclude_references else () for query in queries]
    spare = max(map(len, left_out), default=0)
    scores, rows = top_k(embeddings, index.candidates, k + spare)
    gone = np.array([np.isin(row, list(out)) for row, out in zip(rows, left_out, strict=True)])
    order = np.argsort(gone.reshape(rows.shape), axis=1, kind="stable")[:, :k]
    gone = np.take_along_axis(gone.reshape(rows.shape), order, 1)
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    return np.where(gone, np.float32("nan"), scores), np.where(gone, -1, rows)


def _left_out(query: Query, index: Index) -> set[int]:
    """Rows of the references: the query shows them, so finding them proves nothing."""
    ids = {product.id for product in query.references} - set(query.positives)
    return {index.row_of[id] for id in ids if id in index.row_of}
