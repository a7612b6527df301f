"""Hubs: products that are near every query; and two ways to turn them down, with nothing but a bank of other
queries.

`geometry.hubness` is about products among products; this is about what queries find.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp
from scipy.stats import skew

from coral_lab.errors import ItemError
from coral_lab.evaluation import Asked, Result
from coral_lab.metrics import DEPTH
from coral_lab.query import name_of
from coral_lab.sources.border import brief

Scores = Float[np.ndarray, "query product"]
BETA = 20.0
"""QB-Norm's inverse temperature, its authors' choice."""
NEAREST = 10
"""CSLS's neighbours, its authors' choice."""


def hubness(result: Result, k: int = DEPTH) -> float:
    """Skewness of how often products are among the first `k` hits: 0 where all are found alike (Radovanović
    et al. 2010). Products that are right more often are found more often, so compare it on the same queries.
    """
    found = result.ranked[:, :k]
    counts = np.bincount(found[found >= 0], minlength=len(result.products))
    return float(skew(counts)) if np.ptp(counts) else 0.0


def qb_norm(scores: Scores, bank: Float[np.ndarray, "bank _"], beta: float = BETA) -> Scores:
    """QB-Norm with the dynamic inverted softmax (Bogolin et al., CVPR 2022, 2112.12777).

    A query whose first hit is also that of a query of the bank has its scores divided by how much the bank
    likes each product, exp(beta s) / Σ_bank exp(beta s), here as a logarithm; any other keeps its own. Only
    orders within a query mean something. -inf stays out: in the bank the sum is a mean over those that may
    vote, which is the same order where all may. Raises ValueError for an empty bank, other products
    or a beta of 0 or less.
    """
    _check(scores, bank)
    if not beta > 0:
        raise ValueError(f"beta is {beta}; give a number above 0")
    hubs, votes = np.unique(bank.argmax(1)), np.isfinite(bank).sum(0)
    liked = (logsumexp(beta * bank, axis=0) - np.log(np.maximum(votes, 1))) / beta
    inverted = scores - _where_voted(liked, votes)
    return np.where(np.isin(scores.argmax(1), hubs)[:, None], inverted, scores)


def csls(scores: Scores, bank: Float[np.ndarray, "bank _"], k: int = NEAREST) -> Scores:
    """Cross-domain similarity local scaling (Conneau et al. 2018, 1710.04087): 2 s less the mean of each
    product's `k` highest scores in the bank.

    The query's own mean, which the paper takes off too, changes no order and is left out. -inf stays out.
    Raises ValueError for fewer than `k` queries in the bank, other products or k < 1.
    """
    _check(scores, bank)
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k} for a bank of {len(bank)} queries; give 1 to {len(bank)}")
    nearest = -np.partition(-bank, k - 1, axis=0)[:k]
    votes = np.isfinite(nearest).sum(0)
    mean = np.where(np.isfinite(nearest), nearest, 0).sum(0) / np.maximum(votes, 1)
    return 2 * scores - _where_voted(mean, votes)


def _where_voted(values: Float[np.ndarray, " product"], votes: np.ndarray) -> Float[np.ndarray, " product"]:
    """A product that no query of the bank may vote on is taken for an average one."""
    voted = votes > 0
    return np.where(voted, values, values[voted].mean() if voted.any() else 0.0)


WAYS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"qb-norm": qb_norm, "csls": csls}


def _check(scores: np.ndarray, bank: np.ndarray) -> None:
    if len(bank) == 0 or bank.shape[1] != scores.shape[1]:
        shapes = f"scores are of shape {scores.shape}, the bank's of {bank.shape}"
        raise ValueError(f"{shapes}; give one query or more, and the same products")


def turned_down(asked: Asked, bank: Asked, how: str = "qb-norm", k: int = 100) -> Result:
    """The `Result` of `asked` with hubs turned down by what the queries of `bank` find.

    A query's references stay out of its ranking unless they are positives. In the bank a query has no say of
    its references, nor of its positives: the papers' banks have no right answer in the pool, and one that had
    would turn down what is found rightly. Raises ValueError for another way or a bank of another index,
    ItemError for a query that is both measured and in the bank.
    """
    if how not in WAYS or bank.index is not asked.index:
        raise ValueError(
            f"how is {brief(how)}; use one of {', '.join(WAYS)}, and a bank asked of the same index"
        )
    banked = {query.id for query in bank.queries}
    for query in asked.queries:
        if query.id in banked:
            raise ItemError(name_of(query), "it is measured and in the bank; take other queries for the bank")
    votes = _scores(bank)
    for row, query in zip(votes, bank.queries, strict=True):
        row[_rows(bank, query.positives)] = -np.inf
    scores = WAYS[how](_scores(asked), votes)
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, ranked, 1).astype(np.float32)
    gone = np.isneginf(best)
    plain, best = asked.ranked(k), np.where(gone, np.float32("nan"), best)
    return replace(plain, model=f"{plain.model}, {how}", ranked=np.where(gone, -1, ranked), scores=best)


def _scores(asked: Asked) -> Scores:
    """Cosines of each query with all products, its references at -inf unless they are positives."""
    scores = (asked.embeddings @ asked.index.embeddings.T).astype(np.float64)
    for row, query in zip(scores, asked.queries, strict=True):
        row[_rows(asked, {product.id for product in query.references} - set(query.positives))] = -np.inf
    return scores


def _rows(asked: Asked, ids: Iterable[str]) -> list[int]:
    return [asked.index.row_of[id] for id in ids if id in asked.index.row_of]
