"""Is it better, or is it chance? Edits, formats and hand-made embeddings compared on the same queries."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32

from coral_lab.evaluation import Result
from coral_lab.metrics import DEPTH, holm, paired_difference
from coral_lab.query import Product, Query
from coral_lab.retrieval import Index, ranking


def compare_edits(table: pd.DataFrame, by: str, baseline: str, k: int = 1) -> pd.DataFrame:
    """R@k of each edit or format against the baseline's on the same queries, by paired permutation tests.

    `table` is a sweep's and `by` the column "edit" or "format", one row a query and value. Indexed by value,
    with columns R@k, difference, low and high (95% interval over queries), p, p (Holm: corrected for being
    several), ranks (median shift of the positive) and worse (share of queries whose positive fell). Raises
    ValueError without the baseline, or for values that were not tried on all its queries.
    """
    ranks = table.pivot(index="query", columns=by, values="rank")
    names = [name for name in table[by].unique() if name != baseline]
    if baseline not in ranks or ranks[[baseline, *names]].isna().any(axis=None):
        raise ValueError(
            f"{by} is {', '.join(ranks)}; the baseline {baseline!r} and all others need the same queries"
        )
    right = ((ranks > 0) & (ranks <= k)).astype(float)
    rows = []
    for name in names:
        found = paired_difference(right[name].to_numpy(), right[baseline].to_numpy())
        shift = ranks[name] - ranks[baseline]
        rows.append(
            {
                by: name,
                f"R@{k}": right[name].mean(),
                "difference": found.mean,
                "low": found.low,
                "high": found.high,
                "p": found.p,
                "ranks": shift.median(),
                "worse": (shift > 0).mean(),
            }
        )
    tests = pd.DataFrame(rows).set_index(by)
    tests.insert(5, "p (Holm)", holm(tests["p"].to_numpy()))
    return tests


def change(
    own: Float[np.ndarray, " query"], base: Float[np.ndarray, " query"], name: str = "R@1"
) -> dict[str, float]:
    """How much higher `own` is than `base` on the same queries, as cells of a row: "R@1 change", its 95%
    interval and its p. Raises as `paired_difference`.
    """
    found = paired_difference(own, base)
    parts = {"": found.mean, " low": found.low, " high": found.high, " p": found.p}
    return {f"{name} change{part}": float(value) for part, value in parts.items()}


def judged(
    index: Index, queries: Sequence[Query], embeddings: Float32[np.ndarray, "query dim"], k: int = DEPTH
) -> Result:
    """The `Result` of embeddings that no model gave: sums, means, or projections of encoded queries,
    L2-normalised here.
    """
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores, found = ranking(queries, embeddings.astype(np.float32), index, k)
    return Result(index.model.name, tuple(queries), index.products, found, scores)


def first_hits(result: Result) -> list[Product]:
    """The first hit of each query. Raises ValueError for a query that has none."""
    if (result.ranked[:, 0] < 0).any():
        raise ValueError("a query found nothing but its own references; give it a larger pool")
    return [result.products[row] for row in result.ranked[:, 0]]


def conditions_met(queries: Iterable[Query], products: Iterable[Product]) -> pd.DataFrame:
    """Whether a product meets each condition of its query: one row for each pair and condition.

    Columns: query (the id), place (of the condition, from 0), attribute, met (1 or 0; NaN where no word says
    what is wanted). Raises ValueError unless there is one product a query.
    """
    return pd.DataFrame(
        [
            {
                "query": query.id,
                "place": place,
                "attribute": condition.attribute,
                "met": _number(condition.met_by(product)),
            }
            for query, product in zip(queries, products, strict=True)
            for place, condition in enumerate(query.conditions)
        ]
    )


def _number(met: bool | None) -> float:
    return float("nan") if met is None else float(met)
