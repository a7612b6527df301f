"""How well a store is searched, exactly or by its index. Only what was found is read, whatever else there
is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from coral_lab.encoder import Settings
from coral_lab.errors import StoreError
from coral_lab.evaluation import Result, read_queries
from coral_lab.metrics import DEPTH, estimate
from coral_lab.query import Product, Query
from coral_lab.store import approximate as ann
from coral_lab.store.approximate import Approximation
from coral_lab.store.store import Store, product_of
from coral_lab.store.tables import PRODUCTS, Record, Table, among

AT_ONCE = 5_000  # names in one condition
COMPARED = 100
"""Queries that are searched exactly too, to say what the index finds."""

Ranked = Sequence[tuple[float, str]]
"""Score, turned round, and row name of a query's best, best first."""


def evaluate(
    store: Store,
    queries: Sequence[Query],
    k: int,
    exclude_references: bool,
    approximate: bool,
    settings: Settings,
) -> Result:
    """What `Store.evaluate` gives. (Six parameters: its own.)"""
    if k < DEPTH:
        raise ValueError(f"queries are to be ranked to depth {k}; give at least {DEPTH}")
    table, own = store.table, store.index if approximate else None
    if approximate and own is None:
        raise StoreError(f"{store.uri!r} has no index; make_index() makes one")
    known = _known(table, queries)
    ids = {record.id for record in known}
    chosen, embeddings, worded, skipped = read_queries(store.model, ids, queries, store.format, settings)
    gone = [_left_out(query) if exclude_references else set() for query in chosen]
    found, searched = _search(table, embeddings, k, max(map(len, gone)), own)
    kept = [
        [(score, name) for score, name in row if name not in out][:k]
        for row, out in zip(found, gone, strict=True)
    ]
    products, ranked, scores = _ranking(table, kept, known, min(k, len(store)))
    result = Result(store.model.name, chosen, products, ranked, scores, worded, skipped)
    return replace(result, searched=searched, stored=len(store))


def _known(table: Table, queries: Sequence[Query]) -> list[Record]:
    """Of the queries' positives, and what was judged of them, what the store has."""
    ids = dict.fromkeys(id for query in queries for id in (*query.positives, *query.relevance))
    wanted, there = [_name(id) for id in ids], set()
    for part in _parts(wanted):
        for batch in table.scan(["row"], among(part)):
            there |= {*batch["row"].to_pylist()}
    return _records(table, [name for name in wanted if name in there])


def _name(id: str) -> str:
    return Record("", "product", id).name


def _left_out(query: Query) -> set[str]:
    """The references' rows: the query shows them, so finding them proves nothing."""
    return {_name(id) for id in {product.id for product in query.references} - {*query.positives}}


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(names), AT_ONCE):
        yield names[at : at + AT_ONCE]


def _records(table: Table, names: Sequence[str]) -> list[Record]:
    return [record for part in _parts(names) for record in table.rows(part)]


def _search(
    table: Table, embeddings: Float32[np.ndarray, "query dim"], k: int, spare: int, own: Approximation | None
) -> tuple[Sequence[Ranked], str]:
    """The `k` + `spare` best of each query, and how they were found, if by an index."""
    if own is None:
        return table.best(embeddings, k + spare, PRODUCTS, ann.VECTORS), ""
    found = ann.ranked(table, embeddings, k + spare, PRODUCTS, own.effort)
    some = np.random.default_rng(0).permutation(len(embeddings))[:COMPARED]
    right = table.best(embeddings[some], k, PRODUCTS, ann.VECTORS)
    shares = {
        depth: [_share(found[i], best, depth) for i, best in zip(some, right, strict=True)]
        for depth in (DEPTH, k)
    }
    told = " and ".join(f"recall@{depth} {estimate(np.array(own))}" for depth, own in shares.items())
    how = f"{own.kind} ({own.effort}), which finds of the exact nearest"
    return found, f"{how}, by {len(some)} of these queries, {told}"


def _share(found: Ranked, right: Ranked, depth: int) -> float:
    """Of the exact `depth` nearest, those among as many found."""
    exact = {name for _, name in right[:depth]}
    return len(exact & {name for _, name in found[:depth]}) / len(exact)


def _ranking(
    table: Table, found: Sequence[Ranked], known: Sequence[Record], k: int
) -> tuple[list[Product], np.ndarray, np.ndarray]:
    """All products that were found or are `known`, and places among them and scores of each query's."""
    products = {record.name: record for record in known}
    new = dict.fromkeys(name for row in found for _, name in row if name not in products)
    products |= {record.name: record for record in _records(table, list(new))}
    place = {name: i for i, name in enumerate(products)}
    ranked, scores = np.full((len(found), k), -1), np.full((len(found), k), np.nan, np.float32)
    for i, row in enumerate(found):
        ranked[i, : len(row)] = [place[name] for _, name in row]
        scores[i, : len(row)] = [-turned for turned, _ in row]
    return [product_of(record) for record in products.values()], ranked, scores
