"""Searching a pool with queries, and measuring how well that goes."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from coral_lab import metrics
from coral_lab.encoder import encode, encode_all
from coral_lab.hits import Hits, hits
from coral_lab.images import ItemError
from coral_lab.interleaved import Format, Product, Query, name_of
from coral_lab.metrics import Estimate
from coral_lab.models.loading import Model
from coral_lab.store.topk import Pool, prepare, top_k

METRICS = ("R@1", "R@5", "R@10", "MRR@10", "nDCG@10")


@dataclass(frozen=True, eq=False)
class Index:
    """An encoded candidate pool: `embeddings` [product, dim] are L2-normalised float32, rows as `products`.

    `skipped` says which products could not be used, if that was allowed; they are not among `products`.
    """

    model: Model
    products: Sequence[Product]
    embeddings: Float32[np.ndarray, "product dim"]
    format: str | Format = "seq"
    skipped: tuple[ItemError, ...] = ()

    @cached_property
    def rows(self) -> Mapping[str, int]:
        return {product.id: row for row, product in enumerate(self.products)}

    @cached_property
    def pool(self) -> Pool:
        """The embeddings prepared for many searches: a large pool takes a quarter more memory."""
        return prepare(self.embeddings)

    def search(self, query: Query, k: int = 10, *, exclude_references: bool = True) -> Hits:
        """The `k` best products for one query. Its references are left out unless they are positives."""
        embedding = encode(self.model, query, format=self.format, store="")
        scores, rows = ranking([query], embedding, self, k, exclude_references=exclude_references)
        found = zip(scores[0], rows[0], strict=True)
        return hits(query, ((self.products[row], score) for score, row in found if row >= 0))

    def __repr__(self) -> str:
        return f"Index({len(self.products):,} products, {self.model.name!r}, {self.model.dim} dimensions)"


def index(
    model: Model,
    products: Iterable[Product],
    *,
    format: str | Format = "seq",
    batch_size: int = 32,
    progress: bool | None = None,
    store: str | os.PathLike | None = None,
    on_error: str = "raise",
) -> Index:
    """Encode a pool of products; `store`, `batch_size` and `on_error` are those of `encode`.

    With `on_error` "skip" the pool goes without products that cannot be used; `Index.skipped` lists them. Raises
    ItemError for two products with one id, ValueError for a pool of which nothing is left.
    """
    products = tuple(products)
    seen: set[str] = set()
    for product in products:
        if product.id in seen:
            raise ItemError(name_of(product), "its id stands twice in the pool; give every product its own")
        seen.add(product.id)
    found = encode_all(
        model, products, batch_size=batch_size, progress=progress, store=store, on_error=on_error
    )
    gone = {i for i, _ in found.skipped}
    kept = [i for i in range(len(products)) if i not in gone]
    if not kept:
        raise ValueError(f"the pool has no products ({len(gone)} were skipped); give at least one")
    return Index(model, tuple(products[i] for i in kept), found.rows[kept], format,
                 tuple(error for _, error in found.skipped))  # fmt: skip


def ranking(
    queries: Sequence[Query], embeddings: Float32[np.ndarray, "query dim"], index: Index, k: int, *,
    exclude_references: bool = True,
) -> tuple[Float32[np.ndarray, "query k"], Int64[np.ndarray, "query k"]]:  # fmt: skip
    """Scores and rows of the `k` best of each query; row -1 and score NaN where the pool has no more."""
    left_out = [_left_out(query, index) if exclude_references else () for query in queries]
    spare = max(map(len, left_out), default=0)
    scores, rows = top_k(embeddings, index.pool, k + spare)
    kept = np.array([~np.isin(row, list(out)) for row, out in zip(rows, left_out, strict=True)]).reshape(
        rows.shape
    )
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    gone = ~np.take_along_axis(kept, order, 1)
    rows, scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
    return np.where(gone, np.float32("nan"), scores), np.where(gone, -1, rows)


def _left_out(query: Query, index: Index) -> set[int]:
    """Rows of the references: the query shows them, so finding them proves nothing."""
    ids = {product.id for product in query.references} - set(query.positives)
    return {index.rows[id] for id in ids if id in index.rows}


@dataclass(frozen=True, eq=False)
class Result:
    """What `evaluate` measured: ranked rows [query, k] of the pool, and the metrics they give."""

    model: str
    queries: Sequence[Query]
    products: Sequence[Product]
    rows: Int64[np.ndarray, "query k"]
    scores: Float32[np.ndarray, "query k"]

    @cached_property
    def ids(self) -> np.ndarray:
        return np.array([product.id for product in self.products] + [""], dtype=object)

    @cached_property
    def relevant(self) -> np.ndarray:
        """Whether each result is a positive: bool [query, k]."""
        found = self.ids[self.rows]
        return np.array(
            [[id in set(q.positives) for id in row] for q, row in zip(self.queries, found, strict=True)]
        )

    @cached_property
    def per_query(self) -> pd.DataFrame:
        """One row a query: its groups, the rank of its best positive (-1 beyond 10) and its metrics."""
        ranks = metrics.best_ranks(self.relevant[:, : metrics.DEPTH])
        in_pool = set(self.ids)
        positives = np.array([len(in_pool.intersection(query.positives)) for query in self.queries])
        values = {f"R@{k}": metrics.recall_at(ranks, k) for k in (1, 5, 10)}
        values |= {
            "MRR@10": metrics.reciprocal_rank(ranks),
            "nDCG@10": metrics.ndcg(self.relevant, positives),
        }
        groups = [
            {"query": q.id, "language": q.title_language, "class": q.class_name, "conditions": len(q.conditions),
             "attributes": tuple(c.attribute for c in q.conditions)}
            for q in self.queries
        ]  # fmt: skip
        return pd.DataFrame(groups).assign(rank=ranks, **values)

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """Each metric over all queries, with its 95% bootstrap interval."""
        return {name: metrics.estimate(self.per_query[name].to_numpy()) for name in METRICS}

    def by(self, group: str) -> pd.DataFrame:
        """Metrics by "language", "class", "attribute" or "conditions"; a query counts for each attribute it asks."""
        if group not in ("language", "class", "attribute", "conditions"):
            raise ValueError(f"group is {group!r}; choose language, class, attribute or conditions")
        frame = self.per_query
        if group == "attribute":
            frame = frame.explode("attributes").rename(columns={"attributes": "attribute"})
        rows = [_metric_row(group, value, part) for value, part in frame.groupby(group)]
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """All breakdowns in one tidy frame: group, value, queries, and each metric with its interval."""
        overall = pd.DataFrame([_metric_row("overall", "all", self.per_query)])
        return pd.concat(
            [overall, *map(self.by, ("language", "class", "attribute", "conditions"))], ignore_index=True
        )

    def met_by_first(self) -> dict[str, float]:
        """How often the first hit has the wanted class, and meets a condition, by its attribute."""
        met: dict[str, list[bool]] = {}
        for query, row in zip(self.queries, self.rows[:, 0], strict=True):
            if row < 0:  # nothing but its own references in the pool
                continue
            first = self.products[row]
            met.setdefault("first class", []).append(first.class_name == query.class_name)
            for condition in query.conditions:
                verdict = condition.met_by(first)
                if verdict is not None:
                    met.setdefault(f"first {condition.attribute}", []).append(verdict)
        return {name: sum(values) / len(values) for name, values in met.items()}

    def write_trec(self, file: str | Path) -> None:
        """The run in TREC's format: `query Q0 product rank score name`, one line a result."""
        name = self.model.replace(" ", "_").replace("/", "_")
        with Path(file).open("w", encoding="utf-8") as handle:
            for query, rows, scores in zip(self.queries, self.rows, self.scores, strict=True):
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1):
                    if row >= 0:
                        handle.write(f"{query.id} Q0 {self.products[row].id} {rank} {score:.6f} {name}\n")

    def write_json(self, file: str | Path, **facts) -> None:
        """The metrics from 0 to 1, number of queries and pool size as JSON, with further `facts`."""
        content = {
            "metrics": {name: value.mean for name, value in self.metrics.items()},
            "intervals": {name: [value.low, value.high] for name, value in self.metrics.items()},
            "n_queries": len(self.queries), "pool": len(self.products), "model": self.model, **facts,
        }  # fmt: skip
        Path(file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        head = (
            f"{self.model}: {len(self.queries):,} queries over {len(self.products):,} products, 95% intervals"
        )
        return "\n".join([head, *(f"  {name:8s} {value}" for name, value in self.metrics.items())])


def _metric_row(group: str, value, frame: pd.DataFrame) -> dict:
    row = {"group": group, "value": str(value), "queries": len(frame)}
    for name in METRICS:
        found = metrics.estimate(frame[name].to_numpy())
        row |= {name: found.mean, f"{name} low": found.low, f"{name} high": found.high}
    return row


def evaluate(
    model: Model,
    queries: Iterable[Query],
    products: Iterable[Product] | Index,
    *,
    format: str | Format = "seq",
    k: int = 100,
    exclude_references: bool = True,
    batch_size: int = 32,
    progress: bool | None = None,
    store: str | os.PathLike | None = None,
) -> Result:
    """Rank the pool for every query, to depth `k`, and measure it as MERIT's authors do.

    `products` may be an index that was made before; `store` is that of `encode`. Reference products are left out of
    their own query's ranking unless they are positives. Raises ValueError for no queries or k < 10, ItemError for a
    query without positives in the pool.
    """
    queries = tuple(queries)
    if not queries or k < metrics.DEPTH:
        raise ValueError(f"{len(queries)} queries to depth {k}; give at least 1 and {metrics.DEPTH}")
    pool = (
        products
        if isinstance(products, Index)
        else index(model, products, batch_size=batch_size, progress=progress, store=store)
    )
    for query in queries:
        if not any(id in pool.rows for id in query.positives):
            raise ItemError(
                name_of(query),
                f"none of its {len(query.positives)} positives is in the pool; check the split",
            )
    embeddings = encode(model, queries, format=format, batch_size=batch_size, progress=progress, store=store)
    scores, rows = ranking(queries, embeddings, pool, k, exclude_references=exclude_references)
    return Result(model.name, queries, pool.products, rows, scores)
