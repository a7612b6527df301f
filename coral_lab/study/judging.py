"""From marks to numbers: pools to be judged blind, how far judges agree, and retrieval measured by graded
judgements, with what nobody judged said aloud.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from coral_lab.evaluation import Result
from coral_lab.metrics import DEPTH, Estimate, estimate
from coral_lab.query import Product, Query
from coral_lab.sources.judgements import GRADES, Session

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
    found = []
    for place, query in enumerate(result.queries):
        judged, hits = session.relevance(query), _hits(result, place, depth)
        found.append(np.mean([id in judged for id in hits]) if judged and hits else np.nan)
    return np.array(found, float)


def _hits(result: Result, place: int, depth: int | None = None) -> list[str]:
    return [result.products[row].id for row in result.ranked[place, :depth] if row >= 0]


def agreement(first: Session, second: Session, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Cohen's kappa of two judges over the pairs that both marked, with a 95% interval over queries.

    1 is agreement in all, 0 as much as by chance. `n` is the number of pairs; queries are drawn anew with all
    their pairs, since marks of one query are not independent. A draw in which both judges gave one and the
    same mark throughout tells nothing, and is left out. Raises ValueError where nothing was judged by both.
    """
    both = [key for key in first.judgements if key in second.judgements]
    if not both:
        raise ValueError("no pair was judged by both; let both judge some of the same hits")
    marks = np.array([[own.judgements[key].relevance for own in (first, second)] for key in both])
    queries = pd.factorize(np.array([query for query, _ in both], object))[0]
    random, count = np.random.default_rng(seed), queries.max() + 1
    tables = np.stack([_table(marks[queries == query]) for query in range(count)])
    weights = random.multinomial(count, np.full(count, 1 / count), resamples)
    draws = [kappa(np.tensordot(own, tables, 1)) for own in weights]
    low, high = np.nanquantile(draws, [0.025, 0.975]) if not np.isnan(draws).all() else (np.nan, np.nan)
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


def graded(result: Result, session: Session, depth: int = DEPTH) -> pd.DataFrame:
    """A ranking measured by graded judgements: a row a judged query.

    Columns: query, R@1 (a product marked right comes first), R@`depth`, nDCG@`depth` (gain 2^relevance - 1
    over the ideal order of all that is judged; Burges et al. 2005), condensed (the same after hits that
    nobody judged are taken out; Sakai 2007), judged@`depth` (share of the first hits that is judged). In the
    first three an unjudged hit counts as wrong: beside a judged@10 below 1 they say what is known, and not
    what would be found. Queries without any judgement are not measured. Raises ValueError where none has one.
    """
    rows = []
    for place, query in enumerate(result.queries):
        judged = session.relevance(query)
        if not judged:
            continue
        every = _hits(result, place)
        ideal = sorted(judged.values(), reverse=True)
        given = [judged.get(id, 0) for id in every]
        known = [judged[id] for id in every if id in judged]
        rows.append(
            {
                "query": query.id,
                "R@1": float(HIGHEST in given[:1]),
                f"R@{depth}": float(HIGHEST in given[:depth]),
                f"nDCG@{depth}": _ndcg(given, ideal, depth),
                "condensed": _ndcg(known, ideal, depth),
                f"judged@{depth}": float(np.mean([id in judged for id in every[:depth]])) if every else 0.0,
            }
        )
    if not rows:
        raise ValueError(f"none of {len(result.queries)} queries has a judgement; judge some of their hits")
    return pd.DataFrame(rows)


def _ndcg(given: Sequence[int], ideal: Sequence[int], depth: int) -> float:
    best = _gain(ideal[:depth])
    return _gain(given[:depth]) / best if best else 0.0


def _gain(relevances: Sequence[int]) -> float:
    return float(sum((2**own - 1) / np.log2(place + 2) for place, own in enumerate(relevances)))


def summary(table: pd.DataFrame) -> dict[str, Estimate]:
    """`graded`'s means over queries, each with its 95% interval."""
    return {name: estimate(table[name].to_numpy(float)) for name in table if name != "query"}
