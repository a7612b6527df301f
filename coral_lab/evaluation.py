"""Measuring how well a pool is searched: ranked results, metrics with intervals, breakdowns."""

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int64

from coral_lab import metrics
from coral_lab.encoder import Settings, encode_all
from coral_lab.errors import ItemError, ModelMismatchError, one_line
from coral_lab.metrics import Estimate
from coral_lab.models.model import same_embeddings
from coral_lab.models.protocol import Embedder
from coral_lab.models.wording import family_of, read_as
from coral_lab.prompts import Format
from coral_lab.query import Product, Query, name_of
from coral_lab.retrieval import Index, index, ranking
from coral_lab.sources.border import brief
from coral_lab.sources.files import csv_text, fresh_file, write_text

METRICS = ("R@1", "R@5", "R@10", "MRR@10", "nDCG@10")
JUDGED = ("condensed nDCG@10", "judged@10")
"""What is measured besides where queries have `relevance`; their nDCG@10 is by its grades."""


def metric_names(queries: Iterable[Query]) -> tuple[str, ...]:
    """METRICS, and JUDGED for queries with `relevance`.

    Raises ValueError where some have it and others do not (queries without positives aside): the mean of
    nDCG by grades and nDCG by right and wrong would be neither.
    """
    first: dict[bool, str] = {}
    for query in queries:
        if query.positives:
            first.setdefault(bool(query.relevance), query.id)
    if len(first) > 1:
        problem = f"query {brief(first[True])} has relevance and query {brief(first[False])} has none"
        raise ValueError(f"{problem}, so that nDCG@10 would be two measures in one; evaluate them apart")
    return METRICS + JUDGED if True in first else METRICS


@dataclass(frozen=True, eq=False)
class Result:
    """What `evaluate` measured: of each query the `ranked` rows of the pool, and the metrics they give.

    R@k, MRR@10 and nDCG@10 are as MERIT's authors compute them, from positives. Of queries with `relevance`
    nDCG@10 is by grades (`metrics.graded_ndcg`), the best order being that of the judged products in the
    pool; condensed nDCG@10 is the same of all that was ranked less the hits that nobody judged, and judged@10
    the share of the first ten hits that somebody did.

    A row is -1 and its score NaN where the pool has no more. `skipped` are queries that could not be used, if
    that was allowed, and `skipped_products` what the pool went without; they are not among `queries` and
    `products`. Of a store `products` are only those that were ranked or have a part in a query, of the
    `stored` ones; `searched` says how, if not exactly.
    """

    model: str
    queries: Sequence[Query]
    products: Sequence[Product]
    ranked: Int64[np.ndarray, "query k"]
    scores: Float32[np.ndarray, "query k"]
    format: str = "seq"
    skipped: tuple[ItemError, ...] = ()
    skipped_products: tuple[ItemError, ...] = ()
    searched: str = ""
    stored: int | None = None

    @property
    def pool(self) -> int:
        """How many products were searched."""
        return len(self.products) if self.stored is None else self.stored

    @cached_property
    def ids(self) -> np.ndarray:
        return np.array([product.id for product in self.products] + [""], dtype=object)

    @cached_property
    def relevant(self) -> Bool[np.ndarray, "query k"]:
        """Whether each result is a positive."""
        found = self.ids[self.ranked]
        return np.array(
            [[id in set(q.positives) for id in row] for q, row in zip(self.queries, found, strict=True)]
        )

    @cached_property
    def per_query(self) -> pd.DataFrame:
        """One row a query: its groups, the rank of its best positive (-1 beyond 10) and its metrics. Raises
        ValueError as `metric_names` does.
        """
        ranks = metrics.best_ranks(self.relevant[:, : metrics.DEPTH])
        in_pool = set(self.ids)
        positives = np.array([len(in_pool.intersection(query.positives)) for query in self.queries])
        values = {f"R@{k}": metrics.recall_at(ranks, k) for k in (1, 5, 10)}
        values |= {
            "MRR@10": metrics.reciprocal_rank(ranks),
            "nDCG@10": metrics.ndcg(self.relevant, positives),
        }
        if set(JUDGED) <= set(self.names):
            values |= self._by_grades(in_pool)
        groups = [
            {
                "query": q.id,
                "language": q.title_language,
                "class": q.class_name,
                "conditions": len(q.conditions),
                "attributes": tuple(c.attribute for c in q.conditions),
            }
            for q in self.queries
        ]
        return pd.DataFrame(groups).assign(rank=ranks, **values)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics: `metric_names` of the queries."""
        return metric_names(self.queries)

    @cached_property
    def grades(self) -> Int64[np.ndarray, "query k"]:
        """The grade of each result, `metrics.UNJUDGED` where nobody judged it."""
        found = self.ids[self.ranked]
        pairs = zip(self.queries, found, strict=True)
        rows = [[query.relevance.get(id, metrics.UNJUDGED) for id in row] for query, row in pairs]
        return np.array(rows, np.int64).reshape(self.ranked.shape)

    def _by_grades(self, in_pool: set[str]) -> dict[str, np.ndarray]:
        judged = [[own for id, own in q.relevance.items() if id in in_pool] for q in self.queries]
        return {
            "nDCG@10": metrics.graded_ndcg(self.grades, judged),
            "condensed nDCG@10": metrics.graded_ndcg(metrics.condensed(self.grades), judged),
            "judged@10": metrics.judged_share(self.grades, self.ranked >= 0),
        }

    @cached_property
    def metrics(self) -> dict[str, Estimate]:
        """Each metric over all queries, with its 95% bootstrap interval."""
        return {name: metrics.estimate(self.per_query[name].to_numpy()) for name in self.names}

    @property
    def note(self) -> str:
        """How it was searched, if not exactly, and what unjudged hits mean for these metrics, if some are."""
        sentences = [f"Searched by {self.searched}."] if self.searched else []
        known = self.metrics.get("judged@10")
        if known is not None and known.mean < 1:
            sentences.append(
                f"An unjudged hit counts as wrong: judged@10 is {known.mean:.2f}, so R@k, MRR@10 and nDCG@10 "
                "say what is known, not what would be found; condensed nDCG@10 leaves unjudged hits out."
            )
        return " ".join(sentences)

    def by(self, group: str) -> pd.DataFrame:
        """Metrics by "language", "class", "attribute" or "conditions"; a query counts for each attribute it
        asks.
        """
        if group not in ("language", "class", "attribute", "conditions"):
            raise ValueError(f"group is {group!r}; choose language, class, attribute or conditions")
        frame = self.per_query
        if group == "attribute":
            frame = frame.explode("attributes").rename(columns={"attributes": "attribute"})
        rows = [_metric_row(group, value, part, self.names) for value, part in frame.groupby(group)]
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """All breakdowns in one tidy frame: group, value, queries, and each metric with its interval."""
        overall = pd.DataFrame([_metric_row("overall", "all", self.per_query, self.names)])
        return pd.concat(
            [overall, *map(self.by, ("language", "class", "attribute", "conditions"))], ignore_index=True
        )

    def met_by_first(self) -> dict[str, float]:
        """How often the first hit has the wanted class, and meets a condition, by its attribute."""
        met: dict[str, list[bool]] = {}
        for query, row in zip(self.queries, self.ranked[:, 0], strict=True):
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
        """The run in TREC's format: `query Q0 product rank score name`, one line a result.

        Raises ItemError for an id with white space or control characters in it, or one that stands twice: no
        tool would read it back.
        """
        name = "".join("_" if c in "/ " or not c.isprintable() else c for c in self.model) or "_"
        _check_ids([query.id for query in self.queries], "query")
        _check_ids([product.id for product in self.products], "product")
        with fresh_file(file) as handle:
            for query, rows, scores in zip(self.queries, self.ranked, self.scores, strict=True):
                for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1):
                    if row >= 0:
                        line = f"{query.id} Q0 {self.products[row].id} {rank} {score:.6f} {name}\n"
                        handle.write(line.encode("utf-8"))

    def write_json(self, file: str | Path, **facts: Any) -> None:
        """The metrics from 0 to 1, number of queries and pool size as JSON, with further `facts`."""
        content = {
            "metrics": {name: value.mean for name, value in self.metrics.items()},
            "intervals": {name: [value.low, value.high] for name, value in self.metrics.items()},
            "n_queries": len(self.queries),
            "pool": self.pool,
            "model": self.model,
            "format": self.format,
            "skipped": [str(error) for error in self.skipped],
            "skipped_products": [str(error) for error in self.skipped_products],
            **({"note": self.note} if self.note else {}),
            **facts,
        }
        write_text(file, json.dumps(content, indent=2) + "\n")

    def write_csv(self, file: str | Path) -> None:
        """`table` to four places; no cell of it is run by a spreadsheet."""
        write_text(file, csv_text(self.table().round(4)))

    def __repr__(self) -> str:
        head = (
            f"{one_line(self.model)}: {len(self.queries):,} queries over {self.pool:,} products, "
            "95% intervals"
        )
        counts = {"queries": len(self.skipped), "products": len(self.skipped_products)}
        left_out = [f"  {count:,} {kind} skipped" for kind, count in counts.items() if count]
        width = max(8, *map(len, self.names))
        lines = [f"  {name:{width}s} {value}" for name, value in self.metrics.items()]
        return "\n".join([head, *lines, *([f"  {self.note}"] if self.note else []), *left_out])


def _check_ids(ids: Sequence[str], kind: str) -> None:
    seen: set[str] = set()
    for id in ids:
        if not id.isprintable() or any(map(str.isspace, id)):
            problem = "its id has white space or control characters, which TREC's files cannot; rename it"
            raise ItemError(f"{kind} {id!r}", problem)
        if id in seen:
            raise ItemError(f"{kind} {id!r}", "its id stands twice; give each its own")
        seen.add(id)


def _metric_row(group: str, value: object, frame: pd.DataFrame, names: Iterable[str]) -> dict:
    row = {"group": group, "value": str(value), "queries": len(frame)}
    for name in names:
        found = metrics.estimate(frame[name].to_numpy())
        row |= {name: found.mean, f"{name} low": found.low, f"{name} high": found.high}
    return row


def evaluate(
    model: Embedder,
    queries: Iterable[Query],
    products: Iterable[Product] | Index,
    format: str | Format | None = None,
    *,
    k: int = 100,
    settings: Settings | None = None,
) -> Result:
    """Rank the pool for every query, to depth `k`, and measure it as MERIT's authors do.

    `products` may be an index that was made before: it owns its format and settings, which `format` and
    `settings` replace for this call. Reference products are left out of their own query's ranking unless they
    are positives (`Index.evaluate` can keep them). Queries with `relevance` are measured by its grades too
    (`Result`). Raises ModelMismatchError for an index of another model, and what `measure` does.
    """
    queries = tuple(queries)
    metric_names(queries)
    if not isinstance(products, Index):
        pool = index(model, products, format or "seq", settings or Settings())
        return measure(pool, queries, k=k)
    if not same_embeddings(model, products.model):
        raise ModelMismatchError(
            f"the index was made by {products.model.name!r} and the model is {model.name!r}; use "
            f"index.evaluate(queries), "
            "or give the products themselves"
        )
    return measure(products, queries, format, k=k, settings=settings)


def measure(
    index: Index,
    queries: Iterable[Query],
    format: str | Format | None = None,
    *,
    k: int = 100,
    exclude_references: bool = True,
    settings: Settings | None = None,
) -> Result:
    """What `Index.evaluate` gives: `asked`, ranked to depth `k`. Raises ValueError also for k < 10."""
    if k < metrics.DEPTH:
        raise ValueError(f"queries are to be ranked to depth {k}; give at least {metrics.DEPTH}")
    return asked(index, queries, format, settings).ranked(k, exclude_references)


@dataclass(frozen=True, eq=False)
class Asked:
    """Queries of an index, encoded: to be ranked once or several times. `skipped` are not among `queries`."""

    index: Index
    queries: Sequence[Query]
    embeddings: Float32[np.ndarray, "query dim"]
    format: str
    skipped: tuple[ItemError, ...]

    def ranked(self, k: int = 100, exclude_references: bool = True) -> Result:
        """The `k` best of the pool for each query."""
        pool = self.index
        scores, rows = ranking(self.queries, self.embeddings, pool, k, exclude_references=exclude_references)
        skipped = (self.skipped, pool.skipped)
        return Result(pool.model.name, self.queries, pool.products, rows, scores, self.format, *skipped)


def asked(
    index: Index,
    queries: Iterable[Query],
    format: str | Format | None = None,
    settings: Settings | None = None,
) -> Asked:
    """Encode queries of an index, in its format and by its settings unless others are named.

    With `on_error` "skip" queries that cannot be read, and those without a positive in the pool, are left out
    and listed. Raises ValueError for no queries and as `metric_names` does, ItemError for such a query.
    """
    found = read_queries(
        index.model, index.row_of, queries, format or index.format, settings or index.settings
    )
    return Asked(index, *found)


def read_queries(
    model: Embedder,
    pool: Container[str],
    queries: Iterable[Query],
    format: str | Format,
    settings: Settings,
) -> tuple[tuple[Query, ...], Float32[np.ndarray, "query dim"], str, tuple[ItemError, ...]]:
    """Queries that have a positive in a `pool` of ids, their embeddings, how they were worded, and what was
    left out. Raises as `asked` does.
    """
    queries = tuple(queries)
    if not queries:
        raise ValueError("0 queries are given; give one, or sample some: cl.dataset(…, sample=500)")
    metric_names(queries)
    answered, skipped = _with_answers(pool, queries)
    if skipped and settings.on_error == "raise":
        raise skipped[0]
    found = encode_all(model, answered, format, settings)
    gone = {i for i, _ in found.skipped}
    kept = [i for i in range(len(answered)) if i not in gone]
    skipped += [error for _, error in found.skipped]
    if not kept:
        raise ValueError(
            f"none of {len(queries)} queries can be used ({skipped[0]}); give at least one that can"
        )
    chosen = tuple(answered[i] for i in kept)
    name = read_as(chosen, format, family_of(model))
    return chosen, found.embeddings[kept], name, tuple(skipped)


def _with_answers(pool: Container[str], queries: Sequence[Query]) -> tuple[list[Query], list[ItemError]]:
    answered, skipped = [], []
    for query in queries:
        if any(id in pool for id in query.positives):
            answered.append(query)
        else:
            problem = f"none of its {len(query.positives)} positives is in the pool; check the split"
            skipped.append(ItemError(name_of(query), problem))
    return answered, skipped
