"""One interleaved query, or its conditions asked one by one and put together?

The interleaved format is what the model was made for: all conditions in one query, each with its reference.
Here the same query is also asked in pieces, each condition alone, and the pieces are composed in the space of
embeddings or of rankings. Where that is better, the model does not use what interleaving tells it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32

from coral_lab.encoder import encode_all
from coral_lab.errors import ItemError, NotShownError
from coral_lab.evaluation import Result
from coral_lab.metrics import Difference, Estimate, best_ranks, estimate, holm, paired_difference, recall_at
from coral_lab.prompts import Format, format_name
from coral_lab.query import Query, name_of
from coral_lab.results import Hits, hits
from coral_lab.retrieval import Index
from coral_lab.sources.border import brief
from coral_lab.study.comparison import judged
from coral_lab.study.fusion import fused

INTERLEAVED, MEAN, PRODUCT, RRF, LESS_CLASS = WAYS = ("interleaved", "mean", "product", "rrf", "less class")
"""How a query is asked: as it is; or each condition alone, and then

mean        the mean of the embeddings: ranks as the sum of the similarities does
product     the product of (1 + cos) / 2 over the conditions: one that is not met weighs more than in a sum
rrf         reciprocal rank fusion of the rankings (`fusion.fused`), each 1,000 deep
less class  the sum of the embeddings less that of the query without conditions ("a backpack") for each
            condition after the first, so that the class counts once: the class's embedding and what each
            condition adds to it
"""

DEEP = 1000
LEAST = 1e-6
"""What (1 + cos) / 2 counts as at least, of an opposite: its logarithm would be endless."""


def several(queries: Iterable[Query]) -> tuple[Query, ...]:
    """The queries that there is something to compose of: two conditions or more. Raises NotShownError for
    none.
    """
    queries = tuple(queries)
    found = tuple(query for query in queries if len(query.conditions) > 1)
    if not found:
        raise NotShownError(
            f"none of {len(queries)} queries has two conditions, so that there is nothing to compose; ask "
            "some with more, as mini's or sampled ones are"
        )
    return found


def singles(query: Query) -> list[Query]:
    """The query with each of its conditions alone; class and free text stay."""
    return [query.edited(conditions=(condition,)) for condition in query.conditions]


def composed(
    index: Index,
    queries: Iterable[Query],
    ways: Sequence[str] = WAYS,
    *,
    format: str | Format | None = None,
    k: int = 100,
) -> dict[str, Result]:
    """The pool ranked to depth `k` for the same queries in each of `ways`: a `Result` each, by way.

    A query's references stay out of all its rankings, as in `evaluate`. `format` is the index's own by
    default. Scores of "product" are logarithms, those of "rrf" sums of reciprocals. Raises ValueError for
    another way or a depth below 1, ItemError for a query of fewer than two conditions, or without class and
    text where "less class" is asked for, before anything is encoded.
    """
    queries = tuple(queries)
    _check(queries, ways, k)
    whole = [query for query in queries if INTERLEAVED in ways]
    bare = [query.edited(conditions=()) for query in queries if LESS_CLASS in ways]
    parts = [single for query in queries for single in singles(query) if {*ways} != {INTERLEAVED}]
    settings = replace(index.settings, on_error="raise")
    worded = format or index.format
    encoded = encode_all(index.model, [*whole, *bare, *parts], worded, settings).embeddings
    own, classes, alone = np.split(encoded, np.cumsum([len(whole), len(bare)]))
    ends = np.cumsum([len(query.conditions) for query in queries])[:-1]
    pieces = np.split(alone, ends) if len(alone) else []
    make = {
        INTERLEAVED: lambda: judged(index, queries, own, k),
        MEAN: lambda: _judged(index, queries, _summed(pieces), k),
        PRODUCT: lambda: _product(index, queries, pieces, k),
        RRF: lambda: _rank_fusion(index, queries, pieces, k),
        LESS_CLASS: lambda: _judged(index, queries, _less(pieces, classes), k),
    }
    return {way: replace(make[way](), model=index.model.name, format=format_name(worded)) for way in ways}


def search(
    index: Index, query: Query, k: int = 10, *, way: str = MEAN, format: str | Format | None = None
) -> Hits:
    """The `k` best products for one query, composed by one of WAYS; of a query of fewer than two conditions,
    of which there is nothing to compose, as it is. Raises as `composed` does.
    """
    if len(query.conditions) < 2:
        return index.search(query, k, format=format)
    found = composed(index, [query], [way], format=format, k=k)[way]
    best = zip(found.ranked[0], found.scores[0], strict=True)
    return hits(query, ((index.products[row], float(score)) for row, score in best if row >= 0))


def _check(queries: Sequence[Query], ways: Sequence[str], k: int) -> None:
    wrong = [way for way in ways if way not in WAYS]
    if wrong or not ways or not queries or k < 1:
        problem = f"ways are {brief(tuple(ways))}, k {k} and queries {len(queries)}"
        raise ValueError(
            f"{problem}; use some of {', '.join(WAYS)}, a k of 1 or more, and one query at least"
        )
    for query in queries:
        if len(query.conditions) < 2:
            count = len(query.conditions)
            raise ItemError(
                name_of(query), f"it has {count} conditions, and composing takes two; leave it out"
            )
        if LESS_CLASS in ways and not (query.class_name or query.text.strip()):
            problem = f"it has neither class nor text, so there is no {LESS_CLASS!r}; leave that way out"
            raise ItemError(name_of(query), problem)


def _judged(
    index: Index, queries: Sequence[Query], embeddings: Float32[np.ndarray, "query dim"], k: int
) -> Result:
    for query, length in zip(queries, np.linalg.norm(embeddings, axis=1), strict=True):
        if length < LEAST:
            raise ItemError(name_of(query), "the embeddings of its conditions cancel out; leave it out")
    return judged(index, queries, embeddings, k)


def _summed(pieces: Sequence[Float32[np.ndarray, "_ dim"]]) -> Float32[np.ndarray, "query dim"]:
    return np.stack([own.sum(0) for own in pieces])


def _less(
    pieces: Sequence[Float32[np.ndarray, "_ dim"]], classes: Float32[np.ndarray, "query dim"]
) -> Float32[np.ndarray, "query dim"]:
    times = np.array([[len(own) - 1] for own in pieces], np.float32)
    return _summed(pieces) - times * classes


def _product(
    index: Index, queries: Sequence[Query], pieces: Sequence[Float32[np.ndarray, "_ dim"]], k: int
) -> Result:
    count = min(k, len(index.products))
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full(rows.shape, np.nan, np.float32)
    for place, (query, own) in enumerate(zip(queries, pieces, strict=True)):
        values = _log_product(own, index.embeddings)
        gone = [p.id for p in query.references if p.id in index.row_of and p.id not in query.positives]
        values[[index.row_of[id] for id in gone]] = -np.inf
        order = np.argsort(-values, kind="stable")[: min(count, len(values) - len({*gone}))]
        rows[place, : len(order)], scores[place, : len(order)] = order, values[order]
    return Result(index.model.name, tuple(queries), index.products, rows, scores)


def _log_product(
    pieces: Float32[np.ndarray, "condition dim"], products: Float32[np.ndarray, "product dim"]
) -> Float[np.ndarray, " product"]:
    return np.log(np.maximum((1 + (pieces @ products.T).astype(np.float64)) / 2, LEAST)).sum(0)


def _rank_fusion(
    index: Index, queries: Sequence[Query], pieces: Sequence[Float32[np.ndarray, "_ dim"]], k: int
) -> Result:
    """Queries of as many conditions together: each place of them is a ranking."""
    rows = np.full((len(queries), k), -1, np.int64)
    scores = np.full(rows.shape, np.nan, np.float32)
    alike: dict[int, list[int]] = defaultdict(list)
    for place, query in enumerate(queries):
        alike[len(query.conditions)].append(place)
    for count, places in alike.items():
        some = [queries[place] for place in places]
        rankings = [
            judged(index, some, np.stack([pieces[place][i] for place in places]), max(DEEP, k))
            for i in range(count)
        ]
        found = fused(rankings)
        width = min(k, found.ranked.shape[1])
        rows[places, :width], scores[places, :width] = found.ranked[:, :width], found.scores[:, :width]
    return Result(index.model.name, tuple(queries), index.products, rows, scores)


def compare_ways(results: Mapping[str, Result], k: int = 1, baseline: str = INTERLEAVED) -> pd.DataFrame:
    """R@k of each way beside the baseline's on the same queries, of all and by the number of conditions, by
    paired permutation tests. `results` are `composed`'s.

    Columns: conditions ("all" or their number), way, queries, R@k with low and high (95% interval over
    queries), difference (from the baseline) with its interval, p and p (Holm: corrected for all in the
    table); none of these for the baseline. Raises ValueError without it, or for results of other queries.
    """
    found_by, numbers = _hits(results, k, baseline)
    chosen = {"all": np.ones(len(numbers), bool)} | {str(n): numbers == n for n in np.unique(numbers)}
    rows = []
    for name, some in chosen.items():
        for way, own in found_by.items():
            found = estimate(own[some])
            row = {"conditions": name, "way": way, "queries": found.n}
            row |= {f"R@{k}": found.mean, "low": found.low, "high": found.high}
            if way != baseline:
                row |= _columns(paired_difference(own[some], found_by[baseline][some]))
            rows.append(row)
    table = pd.DataFrame(rows)
    if len(found_by) > 1:
        tested = table["way"] != baseline
        table.loc[tested, "p (Holm)"] = holm(table.loc[tested, "p"].to_numpy())
    return table


def fusion_gap(results: Mapping[str, Result], k: int = 1) -> Difference:
    """R@k of the interleaved query less that of the mean of its conditions asked alone, on the same queries.

    Above 0 the model uses what interleaving tells it; below 0 it does better without. Raises ValueError as
    `compare_ways`.
    """
    chosen = {way: results[way] for way in (INTERLEAVED, MEAN) if way in results}
    found, _ = _hits(chosen, k, INTERLEAVED, MEAN)
    return paired_difference(found[INTERLEAVED], found[MEAN])


def in_words(results: Mapping[str, Result]) -> str:
    """`fusion_gap` in a line."""
    gap = fusion_gap(results)
    ours, mean = (results[way].metrics["R@1"].mean for way in (INTERLEAVED, MEAN))
    interval = Estimate(gap.mean, gap.low, gap.high, gap.n)
    return (
        f"fusion gap: R@1 {ours:.3f} interleaved, {mean:.3f} by the mean of its conditions asked alone: "
        f"{interval}, p {gap.p:.2g}, {gap.n:,} queries of two conditions or more"
    )


def _hits(
    results: Mapping[str, Result], k: int, *needed: str
) -> tuple[dict[str, Float[np.ndarray, " query"]], np.ndarray]:
    """Whether each query found a positive among its first `k`, by way; and its number of conditions."""
    if missing := [way for way in needed if way not in results]:
        raise ValueError(
            f"no result of {brief(missing[0])} among {', '.join(results) or 'none'}; compose it too"
        )
    ids = {way: [query.id for query in result.queries] for way, result in results.items()}
    for way, own in ids.items():
        if own != ids[needed[0]]:
            raise ValueError(f"{way!r} and {needed[0]!r} ranked other queries; compose them together")
    numbers = np.array([len(query.conditions) for query in results[needed[0]].queries])
    found = {way: recall_at(best_ranks(result.relevant[:, :k]), k) for way, result in results.items()}
    return found, numbers


def _columns(found: Difference) -> dict[str, float]:
    return {
        "difference": found.mean,
        "difference low": found.low,
        "difference high": found.high,
        "p": found.p,
    }
