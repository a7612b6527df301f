"""From marks to numbers: pools to be judged blind, how far judges agree, and rankings measured by what was
marked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from coral_lab.errors import ItemError
from coral_lab.evaluation import Result
from coral_lab.metrics import DEPTH, Estimate, judged_share
from coral_lab.query import Product, Query, name_of
from coral_lab.sources.judgements import GRADES, Session, check_same

HIGHEST = max(GRADES.values())


@dataclass(frozen=True)
class Pool:
    """A query's products to be judged: what any of several models has among its first hits, shuffled, and
    not said by whom.
    """

    query: Query
    products: tuple[Product, ...]


def pools(results: Sequence[Result], depth: int = DEPTH, seed: int = 0) -> list[Pool]:
    """The pools of the queries that all `results` have, in the first one's order (pooling as TREC does it).

    The order of a pool depends on seed and query alone, not on who found what. Raises ValueError for no
    results, a depth below 1, and results of different pools of products.
    """
    if not results or depth < 1:
        raise ValueError(f"{len(results)} results to depth {depth}; give at least one, and 1 or more")
    by_id = [{query.id: row for row, query in enumerate(own.queries)} for own in results]
    ids = [[product.id for product in own.products] for own in results]
    if any(own != ids[0] for own in ids):
        raise ValueError("the results are over different products; rank the same pool, as compare does")
    made = []
    for query in results[0].queries:
        if not all(query.id in rows for rows in by_id):
            continue
        found = {
            int(row)
            for own, rows in zip(results, by_id, strict=True)
            for row in own.ranked[rows[query.id], :depth]
        }
        chosen = [results[0].products[row] for row in sorted(found - {-1})]
        Random(f"{seed} {query.id}").shuffle(chosen)
        made.append(Pool(query, tuple(chosen)))
    return made


def progress(session: Session, results: Sequence[Result], depth: int = DEPTH) -> pd.DataFrame:
    """How much of each result is judged: a row a result. Columns: model, queries (with any judgement), judged
    (share of their first `depth` hits), whole (queries whose first `depth` are all judged).
    """
    rows = []
    for result in results:
        shares = _shares(session, result, depth)
        begun = shares[~np.isnan(shares)]
        judged = float(begun.mean()) if len(begun) else 0.0
        row = {"model": result.model, "queries": len(begun), f"judged@{depth}": judged}
        rows.append(row | {"whole": int((begun == 1).sum())})
    return pd.DataFrame(rows)


def _shares(session: Session, result: Result, depth: int) -> Float[np.ndarray, " query"]:
    """Of each query the share of its first hits that is judged; NaN for one of which nothing is."""
    queries = [replace(query, relevance=session.relevance(query)) for query in result.queries]
    found = result.ranked >= 0
    begun = found.any(1) & np.array([bool(query.relevance) for query in queries])
    shares = judged_share(replace(result, queries=queries).grades, found, depth)
    return np.where(begun, shares, np.nan)


def agreement(first: Session, second: Session, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Cohen's kappa of two judges over the pairs that both marked, with a 95% interval over queries.

    1 is agreement in all, 0 as much as by chance. `n` is the number of pairs; queries are drawn anew with all
    their pairs, since marks of one query are not independent. A draw in which both judges gave one and the
    same mark throughout tells nothing, and is left out; one query alone has no interval (NaN), for it says
    nothing of others. Raises ValueError where nothing was judged by both, and as `check_same` does.
    """
    check_same((first, second))
    both = [key for key in first.judgements if key in second.judgements]
    if not both:
        raise ValueError("no pair was judged by both; let both judge some of the same hits")
    marks = np.array([[own.judgements[key].relevance for own in (first, second)] for key in both])
    queries = pd.factorize(np.array([query for query, _ in both], object))[0]
    random, count = np.random.default_rng(seed), queries.max() + 1
    tables = np.stack([_table(marks[queries == query]) for query in range(count)])
    weights = random.multinomial(count, np.full(count, 1 / count), resamples)
    draws = [kappa(np.tensordot(own, tables, 1)) for own in weights]
    known = count > 1 and not np.isnan(draws).all()
    low, high = np.nanquantile(draws, [0.025, 0.975]) if known else (np.nan, np.nan)
    return Estimate(kappa(tables.sum(0)), float(low), float(high), len(both))


def _table(marks: Int[np.ndarray, "pair 2"]) -> Int[np.ndarray, "grade grade"]:
    table = np.zeros((HIGHEST + 1, HIGHEST + 1), int)
    np.add.at(table, (marks[:, 0], marks[:, 1]), 1)
    return table


def kappa(table: Int[np.ndarray, "grade grade"]) -> float:
    """Cohen's kappa of a table of two judges' counts (Cohen 1960); NaN where both gave one and the same mark
    throughout, which chance would too.
    """
    share = table / table.sum()
    chance = float(share.sum(0) @ share.sum(1))
    return float((np.trace(share) - chance) / (1 - chance)) if chance < 1 else float("nan")


def graded(result: Result, session: Session, least: str = "right") -> Result:
    """The same rankings over the queries that were judged, measured by `session.test_set(least)`: its
    positives and its grades take the place of what the queries brought.

    For rankings that are there: of new queries `evaluate(model, test.queries, test.products)` gives the same.
    Queries without an answer that is as good are in `skipped`. Raises ItemError for a query that was judged
    with other conditions, ValueError where none is left.
    """
    test = session.test_set(least)
    judged, pool = {query.id: query for query in test.queries}, {own.id for own in result.products}
    places, skipped = [], list(test.skipped)
    for place, query in enumerate(result.queries):
        own = judged.get(query.id)
        if own is not None and _asked(own) != _asked(query):
            raise ItemError(name_of(query), "was judged with other conditions; rank it as it was judged")
        if own is not None and pool.isdisjoint(own.positives):
            skipped.append(ItemError(name_of(query), "none of its positives is in the pool; rank all of it"))
        elif own is not None:
            places.append(place)
    if not places:
        problem = f"none of {len(result.queries)} queries has an answer that is marked {least}"
        raise ValueError(f"{problem}; judge some of their hits")
    queries = tuple(judged[result.queries[place].id] for place in places)
    rows, scores = result.ranked[places], result.scores[places]
    left_out = (*result.skipped, *skipped)
    return replace(result, queries=queries, ranked=rows, scores=scores, skipped=left_out)


def _asked(query: Query) -> Query:
    return replace(query, positives=(), hard_negatives=(), relevance={})
