"""Exact nearest neighbours by dot product."""

import numpy as np
from jaxtyping import Float32, Int64

BLOCK_BYTES = 256 * 2**20
"""Memory for one block of scores."""


def top_k(
    queries: Float32[np.ndarray, "query dim"], candidates: Float32[np.ndarray, "candidate dim"], k: int
) -> tuple[Float32[np.ndarray, "query k"], Int64[np.ndarray, "query k"]]:
    """Scores and row numbers of the `k` best candidates of each query, best first; ties go to the lower row.

    Fewer than `k` columns if there are fewer candidates. Raises ValueError for arrays that do not fit, k < 1, or
    embeddings that are not finite.
    """
    _check(queries, candidates, k)
    k = min(k, len(candidates))
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    step = max(1, BLOCK_BYTES // (4 * max(1, len(candidates))))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        scores[block], rows[block] = _best(queries[block] @ candidates.T, k)
    return scores, rows


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row in order; whatever ties with the k-th is looked at, so that the lower row wins."""
    if k == scores.shape[1]:
        order = np.argsort(-scores, axis=1, kind="stable")
        return np.take_along_axis(scores, order, 1), order
    threshold = np.partition(scores, -k, axis=1)[:, -k]
    rows = np.empty((len(scores), k), np.int64)
    for i, row in enumerate(scores):
        near = np.flatnonzero(row >= threshold[i])
        rows[i] = near[np.argsort(-row[near], kind="stable")[:k]]
    return np.take_along_axis(scores, rows, 1), rows


def _check(queries: np.ndarray, candidates: np.ndarray, k: int) -> None:
    if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"shapes are {queries.shape} and {candidates.shape}; give [query, dim] and [candidate, dim]"
        )
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least 1")
    for name, array in (("queries", queries), ("candidates", candidates)):
        with np.errstate(invalid="ignore"):  # infinities of both signs
            total = array.sum(dtype=np.float64)
        if not np.isfinite(total):
            raise ValueError(
                f"{name} hold NaN or infinity in row {int(np.argmin(np.isfinite(array).all(1)))}"
            )
