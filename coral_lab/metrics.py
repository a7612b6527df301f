"""Retrieval metrics as MERIT's authors compute them, with bootstrap intervals and paired tests.

All metrics start from ranks: for each query the rank, from 1, of its best-placed positive, or `MISS` beyond
the depth that was looked at (arXiv 2506.03144 and the authors' metric function). Where people graded
answers there is nDCG by grades beside them, and how much of a ranking anybody judged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

MISS = -1
DEPTH = 10
UNJUDGED = -1
"""The grade of a hit that nobody judged, and of a place where the pool has no more."""

Ranks = Int[np.ndarray, " query"]
Grades = Int[np.ndarray, "query rank"]


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` queries with the bounds of its interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def best_ranks(relevant: Bool[np.ndarray, "query rank"]) -> Ranks:
    """Rank, from 1, of the first relevant result of each query; MISS where there is none."""
    return np.where(relevant.any(1), relevant.argmax(1) + 1, MISS)


def recall_at(ranks: Int[np.ndarray, "*query"], k: int) -> Float[np.ndarray, "*query"]:
    """1 where a positive is among the first `k`, else 0: the paper's R@k."""
    return ((ranks != MISS) & (ranks <= k)).astype(float)


def reciprocal_rank(ranks: Ranks, depth: int = DEPTH) -> Float[np.ndarray, " query"]:
    """1 / rank within `depth`, else 0: the mean is MRR@depth."""
    return np.where((ranks != MISS) & (ranks <= depth), 1 / np.maximum(ranks, 1), 0.0)


def ndcg(
    relevant: Bool[np.ndarray, "query rank"], positives: Int[np.ndarray, " query"], depth: int = DEPTH
) -> Float[np.ndarray, " query"]:
    """Binary nDCG@depth; `positives` counts all right answers of a query. A query without any scores 0."""
    width = min(depth, relevant.shape[1])
    discounts = 1 / np.log2(np.arange(2, depth + 2))
    gain = (relevant[:, :width] * discounts[:width]).sum(1)
    ideal = np.concatenate([[0.0], discounts.cumsum()])[np.minimum(positives, depth)]
    return np.divide(gain, ideal, out=np.zeros(len(gain)), where=ideal > 0)


def graded_ndcg(
    grades: Grades, judged: Sequence[Sequence[int]], depth: int = DEPTH
) -> Float[np.ndarray, " query"]:
    """nDCG@depth with the gain 2^grade - 1 (Burges et al. 2005), over the best order of all that is `judged`.

    `grades` are of the hits, UNJUDGED counting as 0; `judged` of all products that were judged for a query,
    in any order. A query with nothing above 0 scores 0.
    """
    best = np.zeros((len(judged), depth), int)
    for row, own in zip(best, judged, strict=True):
        first = sorted(own, reverse=True)[:depth]
        row[: len(first)] = first
    gain, ideal = _gain(grades[:, :depth]), _gain(best)
    return np.divide(gain, ideal, out=np.zeros(len(gain)), where=ideal > 0)


def _gain(grades: Grades) -> Float[np.ndarray, " query"]:
    return ((2.0 ** np.maximum(grades, 0) - 1) / np.log2(np.arange(2, grades.shape[1] + 2))).sum(1)


def condensed(grades: Grades) -> Grades:
    """The hits that somebody judged, moved up over those that nobody did (Sakai 2007); UNJUDGED behind
    them.
    """
    unknown = grades == UNJUDGED
    return np.take_along_axis(grades, np.argsort(unknown, axis=1, kind="stable"), 1)


def judged_share(
    grades: Grades, found: Bool[np.ndarray, "query rank"], depth: int = DEPTH
) -> Float[np.ndarray, " query"]:
    """Share of the first `depth` hits that somebody judged; `found` is False where the pool has no more. A
    query without hits has 0.
    """
    hits = found[:, :depth].sum(1)
    known = ((grades != UNJUDGED) & found)[:, :depth].sum(1)
    return known / np.maximum(hits, 1)


def estimate(
    values: Float[np.ndarray, " query"], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over queries with its percentile bootstrap interval, as an Estimate; NaN for no queries."""
    values = np.asarray(values, float)
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    if np.ptp(values) == 0:  # every resample is the same
        return Estimate(values[0], values[0], values[0], len(values))
    # Values repeat (hits are 0 or 1), so draw how often each occurs instead of drawing rows: same law, far
    # less work.
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    means = draws @ distinct / len(values)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(values.mean(), low, high, len(values))


def crossed_estimate(
    values: Float[np.ndarray, "query seed"], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean over queries and training seeds; the interval draws both anew (pigeonhole bootstrap, Owen 2007).

    Other queries and other runs are both possible, so it is wider than one over queries alone. Raises
    ValueError for no values.
    """
    draw = _crossed(values.shape, resamples, seed)
    return _percentiles(values.mean(), draw(values), len(values), confidence)


def crossed_change(
    values: Float[np.ndarray, "query seed"],
    baseline: Float[np.ndarray, "query seed"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Relative change of the mean against a baseline's on the same queries and seeds: 0.5 is half as much
    again.

    The interval is that of `crossed_estimate`, both drawn alike. Raises ValueError for values that do not
    pair up, or a baseline that is zero throughout.
    """
    if values.shape != baseline.shape or not baseline.any():
        raise ValueError(
            f"values are of shape {values.shape}, the baseline's of {baseline.shape} with mean "
            f"{baseline.mean():.3g}; "
            "give both systems' values for the same queries and seeds, the baseline's not all 0"
        )
    draw = _crossed(values.shape, resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw in which the baseline has no hit
        changes = draw(values) / draw(baseline) - 1
    return _percentiles(values.mean() / baseline.mean() - 1, changes, len(values), confidence)


def _crossed(shape: tuple[int, int], resamples: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from values [query, seed] to their means in so many draws of queries and seeds."""
    if 0 in shape:
        raise ValueError(f"values are of shape {shape}; give at least one query and one seed")
    random = np.random.default_rng(seed)
    queries, seeds = (random.multinomial(count, np.full(count, 1 / count), resamples) for count in shape)
    # Divided at last: sums of hits are whole numbers, the same on every processor.
    return lambda values: ((queries @ values) * seeds).sum(1) / (shape[0] * shape[1])


def _percentiles(mean: float, draws: np.ndarray, n: int, confidence: float) -> Estimate:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(mean), float(low), float(high), n)


@dataclass(frozen=True)
class Difference:
    """A mean difference of paired values with its interval, and the p-value of a paired permutation test."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def paired_difference(
    a: Float[np.ndarray, " query"], b: Float[np.ndarray, " query"], seed: int = 0
) -> Difference:
    """How much higher `a` is than `b` on the same queries; two-sided sign-flip permutation test.

    Raises ValueError if the two do not pair up.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"{len(a)} values against {len(b)}; give both systems' values for the same queries")
    difference = np.asarray(a, float) - np.asarray(b, float)
    interval = estimate(difference, seed=seed)
    if len(a) == 1 or not difference.any():  # flipping signs tells nothing
        return Difference(interval.mean, interval.low, interval.high, 1.0, len(a))
    test = stats.permutation_test(
        (difference,),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
        rng=seed,
        batch=256,
    )
    return Difference(interval.mean, interval.low, interval.high, float(test.pvalue), len(a))


def detectable_difference(spread: float, n: int, wanted: float = 0.8) -> float:
    """The smallest true mean difference that a two-sided test at 0.05 finds in a share `wanted` of samples of
    `n` queries, whose paired differences have the standard deviation `spread` (normal approximation).

    Where a test finds nothing it says what there was to find. NaN for no spread, from which nothing can be
    said. Raises ValueError for fewer than two queries, a negative spread, or a share outside 0.05 to 1. Over
    training seeds it is `replication.seeds.detectable`.
    """
    if n < 2 or not 0.05 < wanted < 1 or not spread >= 0:
        raise ValueError(
            f"n is {n}, wanted {wanted}, spread {spread}; give 2 or more, 0.05 to 1, and 0 or more"
        )
    reach = stats.norm.isf(0.025) + stats.norm.ppf(wanted)
    return float(reach * spread / np.sqrt(n)) if spread else float("nan")


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p-values corrected for being several (Holm 1979): never below the given ones, never above 1."""
    order = np.argsort(p)
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected
