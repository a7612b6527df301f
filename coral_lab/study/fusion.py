"""Several models' rankings made one, and embeddings made shorter: what two models know together, and how few
dimensions it takes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int64

from coral_lab.errors import ItemError
from coral_lab.evaluation import Asked, Result, metric_names
from coral_lab.query import name_of
from coral_lab.retrieval import Index
from coral_lab.sources.border import brief

RRF_K = 60
"""As in Cormack et al. 2009."""


def _reciprocal(scores: Float[np.ndarray, " rank"], k: int) -> Float[np.ndarray, " rank"]:
    return 1 / (k + np.arange(1, len(scores) + 1))


def _min_max(scores: Float[np.ndarray, " rank"], _: int) -> Float[np.ndarray, " rank"]:
    spread = np.ptp(scores)
    return (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))


def _z(scores: Float[np.ndarray, " rank"], _: int) -> Float[np.ndarray, " rank"]:
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros(len(scores))


WAYS: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "rrf": _reciprocal,
    "z": _z,
    "min-max": _min_max,
}
"""What each place of a ranking is worth, before these are added."""


def fused(results: Sequence[Result], how: str = "rrf", k: int = RRF_K) -> Result:
    """One ranking of several models', over the same queries and pool.

    "rrf" adds 1 / (k + rank) over the rankings (reciprocal rank fusion, Cormack et al. 2009: k = 60), "z" and
    "min-max" the scores, normalised for each query over the ranking as deep as it goes. A product that a
    ranking does not have gets nothing from it by "rrf", and by scores what its last one gets: rank deeper
    (`Asked.ranked`) if that matters. Ties go to the product that stands first in the pool. As deep as the
    deepest. Raises ValueError for fewer than two results, other queries or products, or another way.
    """
    _check_same(results, how, k)
    first, depth = results[0], max(result.ranked.shape[1] for result in results)
    ranked = np.full((len(first.queries), depth), -1, np.int64)
    scores = np.full(ranked.shape, np.nan, np.float32)
    for place in range(len(ranked)):
        rows, values = _added([(own.ranked[place], own.scores[place]) for own in results], how, k)
        order = np.lexsort((rows, -values))[:depth]
        ranked[place, : len(order)], scores[place, : len(order)] = rows[order], values[order]
    name = f"{how}({' + '.join(result.model for result in results)})"
    return replace(first, model=name, ranked=ranked, scores=scores)


def _added(
    rankings: Sequence[tuple[np.ndarray, np.ndarray]], how: str, k: int
) -> tuple[Int64[np.ndarray, " found"], Float[np.ndarray, " found"]]:
    """Rows of the pool that any ranking of a query has, ascending, and the sum of what they are worth.

    `rankings` are rows and scores, of any depth.
    """
    kept = [(rows[rows >= 0], scores[rows >= 0].astype(np.float64)) for rows, scores in rankings]
    every = np.unique(np.concatenate([rows for rows, _ in kept]))
    total = np.zeros(len(every))
    for rows, scores in kept:
        if not len(rows):
            continue
        worth = WAYS[how](scores, k)
        own = np.full(len(every), 0.0 if how == "rrf" else worth.min())
        own[np.searchsorted(every, rows)] = worth
        total += own
    return every, total


def _check_same(results: Sequence[Result], how: str, k: int) -> None:
    if how not in WAYS or k < 0:
        raise ValueError(f"how is {brief(how)} and k {k}; use one of {', '.join(WAYS)}, and 0 or more")
    if len(results) < 2:
        raise ValueError(f"{len(results)} results are given; give at least two")
    ids = [([q.id for q in own.queries], [p.id for p in own.products]) for own in results]
    for result, own in zip(results, ids, strict=True):
        if own != ids[0]:
            problem = f"{brief(result.model)} ranked other queries or products than {brief(results[0].model)}"
            raise ValueError(f"{problem}; rank the same, as compare does")


def truncated(asked: Asked, dim: int, k: int = 100) -> Result:
    """The `Result` of embeddings cut to their first `dim` dimensions and L2-normalised again, to depth `k`.

    What a model gives up if its embeddings are kept shorter (Kusupati et al. 2022 train for it). Raises
    ValueError for a number of dimensions that there is not, ItemError for an embedding of which nothing is
    left.
    """
    pool = asked.index
    full = pool.embeddings.shape[1]
    if not 1 <= dim <= full:
        raise ValueError(f"dim is {dim}; give 1 to {full}")
    products = _cut(pool.embeddings, dim, [name_of(product) for product in pool.products])
    queries = _cut(asked.embeddings, dim, [name_of(query) for query in asked.queries])
    short = Index(pool.model, pool.products, products, pool.format, pool.settings, pool.skipped)
    result = replace(asked, index=short, embeddings=queries).ranked(k)
    return replace(result, model=f"{result.model}, {dim} of {full} dimensions")


def truncations(asked: Asked, dims: Iterable[int], k: int = 100) -> pd.DataFrame:
    """How quality falls with length: a row a number of dimensions, `truncated` each.

    Columns: dim, bytes an embedding (float32), and each metric with its 95% interval over queries.
    """
    rows = []
    for dim in dims:
        row: dict[str, float | int] = {"dim": dim, "bytes an embedding": 4 * dim}
        for name, value in truncated(asked, dim, k).metrics.items():
            row |= {name: value.mean, f"{name} low": value.low, f"{name} high": value.high}
        rows.append(row)
    bounds = [f"{name}{part}" for name in metric_names(asked.queries) for part in ("", " low", " high")]
    return pd.DataFrame(rows, columns=["dim", "bytes an embedding", *bounds])


def _cut(
    embeddings: Float32[np.ndarray, "item dim"], dim: int, names: Sequence[str]
) -> Float32[np.ndarray, "item short"]:
    short = embeddings[:, :dim]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    if len(empty := np.flatnonzero(lengths[:, 0] == 0)):
        raise ItemError(names[empty[0]], f"its first {dim} dimensions are all 0; keep more of them")
    return (short / lengths).astype(np.float32)
