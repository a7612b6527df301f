"""Exact nearest neighbours by dot product: a quick pass finds all that could be among the best, a second
scores those.

The score of a pair is NumPy's float32 dot product of the two vectors, whatever else is asked in the same
call, so that block sizes and the number of queries change nothing. The quick pass multiplies whole blocks, in
float32 or, where the processor has instructions for it (VNNI), in int8, at about four times the speed and a
quarter of the memory. Either has an error that is bounded, and whatever lies within it is scored in the
second pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

BLOCK_BYTES = 64 * 2**20
"""Memory for one block of scores."""
ROWS = 512  # at once, where they are converted: 4 MB of 2048 dimensions, which stay in the cache
PAIRS = 128  # at once, where rows are gathered
QUERIES, PART = 1024, 8192  # queries and candidates of a block of int8 scores
TILE = 2048  # candidates of one product
GROUP = 16  # scores whose maximum is looked at first
SPARE = 64  # candidates kept of the int8 pass, at least; most queries have fewer within its error
SIZE = 2**24
"""Numbers that candidates hold, from which int8 pays: below, choosing the best costs more than it saves."""
MANY = 384  # queries from which it pays to prepare candidates for one call


@dataclass(frozen=True, eq=False)
class Prepared:
    """Candidates prepared for many calls of `top_k`; see `prepare`.

    `codes` are int8 of the rows less `centre`, each with its own of `scales`, and take a quarter of float32's
    memory; None without VNNI, and for a pool too small to gain by them. `norm`, `radius` and `residual` are
    the largest norms of the rows, of what remains of them without the centre, and of what the codes leave out
    of that.
    """

    rows: Float[Any, "candidate dim"] = field(repr=False)
    norm: float
    codes: Any = field(default=None, repr=False)
    scales: Any = field(default=None, repr=False)
    centre: Float32[np.ndarray, " dim"] | None = field(default=None, repr=False)
    radius: float = 0.0
    residual: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)


def prepare(candidates: Float[Any, "candidate dim"]) -> Prepared:
    """Candidates checked and converted once, for many calls of `top_k`.

    `candidates` are a float32 NumPy array or a floating-point tensor. Either may be mapped from a file that
    is larger than memory, such as `torch.from_file(file, shared=False, size=rows * dim,
    dtype=torch.bfloat16).view(rows, dim)`. They are kept, not copied: do not change them afterwards. Raises
    ValueError for rows that are not finite.
    """
    if candidates.ndim != 2:
        raise ValueError(f"shape of candidates is {tuple(candidates.shape)}; give [candidate, dim]")
    norm = _largest_norm(candidates, "candidates")
    large = len(candidates) * candidates.shape[1] >= SIZE
    return _encode(candidates, norm) if large and _has_int8() else Prepared(candidates, norm)


def top_k(
    queries: Float32[np.ndarray, "query dim"], candidates: Float[Any, "candidate dim"] | Prepared, k: int
) -> tuple[Float32[np.ndarray, "query k"], Int64[np.ndarray, "query k"]]:
    """Scores and row numbers of the `k` best candidates of each query, best first; ties go to the lower row.

    `candidates` are what `prepare` takes or returns; prepared, they are searched much faster. Fewer than `k`
    columns if there are fewer candidates. Raises ValueError for arrays that do not fit, k < 1, or embeddings
    that are not finite.
    """
    rows = candidates.rows if isinstance(candidates, Prepared) else candidates
    if queries.ndim != 2 or rows.ndim != 2 or queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"shapes are {queries.shape} and {tuple(rows.shape)}; give [query, dim] and [candidate, dim]"
        )
    if k < 1:
        raise ValueError(f"k is {k}; ask for at least 1")
    queries = np.ascontiguousarray(queries, np.float32)
    _largest_norm(queries, "queries")
    k, kept = min(k, len(rows)), max(SPARE, 4 * k)
    large = len(rows) >= 2 * GROUP * kept and len(rows) * rows.shape[1] >= SIZE
    if isinstance(candidates, Prepared):
        prepared = candidates
    elif large and len(queries) >= MANY:
        prepared = prepare(candidates)
    else:
        prepared = Prepared(rows, _largest_norm(rows, "candidates"))
    scores, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    left = np.arange(len(queries))
    for more in (kept, 16 * kept):  # int8 twice is still quicker than float32 once
        if prepared.codes is not None and len(rows) >= 2 * GROUP * more:
            left = _by_int8(queries, prepared, k, more, left, scores, found)
    if len(rows):
        _by_float32(queries, prepared, k, left, scores, found)
    return scores, found


def _by_float32(
    queries, prepared: Prepared, k: int, which: np.ndarray, scores: np.ndarray, found: np.ndarray
) -> None:
    """Fills in the queries `which`: blocks of them against all candidates."""
    step = max(1, BLOCK_BYTES // (4 * len(prepared)))
    for start in range(0, len(which), step):
        some = which[start : start + step]
        asked, block = queries[some], np.empty((len(some), len(prepared)), np.float32)
        for part in _slices(len(prepared), PART):
            block[:, part] = asked @ _float32(prepared.rows[part]).T
        # Both this pass and the second err, once for the k-th best and once for another.
        least = _best(block, k) - 2 * _rounding(asked, prepared.norm)
        query, row = np.divmod(np.flatnonzero(block >= least[:, None]), len(prepared))
        score = _scores(asked, prepared, query, row)
        scores[some], found[some] = _ranked(query, row, score, len(some), k)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest of each row."""
    return np.partition(scores, -k, axis=1)[:, -k]


def _by_int8(
    queries, prepared: Prepared, k: int, kept: int, which: np.ndarray, scores: np.ndarray, found: np.ndarray
) -> Int64[np.ndarray, " left"]:
    """Fills in those of the queries `which` for which int8 is exact enough, and returns the others.

    With q = q̂ + r and c - centre = ĉ + s, q·c is q·centre + q̂·ĉ within |r| |c - centre| + |q̂| |s|, and
    rounding. A query is left if one of `kept` or more candidates may be, by that, among the best k.
    """
    left = [np.empty(0, np.int64)]
    for block in _slices(len(which), max(1, QUERIES * SPARE // kept)):  # no more memory for a longer list
        some = which[block]
        asked = queries[some]
        codes, scale, residual = _codes(asked)
        values, near = _largest(codes, prepared, kept)
        size, constant = np.linalg.norm(asked, axis=1), asked.astype(np.float64) @ prepared.centre
        error = residual * prepared.radius + (size + residual) * prepared.residual
        error += _rounding(asked, prepared.norm + prepared.radius)
        first = _scores(asked, prepared, np.arange(len(asked)).repeat(k), near[:, :k].ravel()).reshape(-1, k)
        highest = (constant + error)[:, None] + values * scale[:, None]
        possible = ~(highest < first.min(1)[:, None])  # what overflows is possible too
        left.append(some[possible[:, -1]])
        possible[possible[:, -1]] = np.arange(kept) < k
        query, place = np.nonzero(possible)
        row, score = near[query, place], first[query, np.minimum(place, k - 1)]
        more = place >= k
        score[more] = _scores(asked, prepared, query[more], row[more])
        scores[some], found[some] = _ranked(query, row, score, len(asked), k)
    return np.concatenate(left)


def _largest(codes, prepared: Prepared, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Products in int8 of the `kept` candidates where they are largest, in order, and their rows."""
    import torch

    values, rows = [], []
    step = -(
        -len(prepared) // -(-len(prepared) // PART)
    )  # equal parts, so that none is too small for its groups
    products = torch.empty(len(codes) * TILE, dtype=torch.int32)
    scores = torch.empty((len(codes), -(-step // GROUP) * GROUP))
    for part in _slices(len(prepared), step):
        scores[:, part.stop - part.start :] = -torch.inf
        for tile in _slices(part.stop - part.start, TILE):
            own = slice(part.start + tile.start, part.start + tile.stop)
            product = products[: len(codes) * (own.stop - own.start)].view(len(codes), -1)
            torch._int_mm(codes, prepared.codes[own].T, out=product)
            torch.mul(product, prepared.scales[own], out=scores[:, tile])
        # The largest few are all in the groups of the largest maxima, and these are quicker to find.
        groups = scores.view(len(codes), GROUP, -1)
        chosen = min(kept, groups.shape[2])
        best = groups.amax(1).topk(chosen, sorted=False).indices
        near = groups.gather(2, best[:, None].expand(-1, GROUP, -1)).flatten(1)
        value, place = near.topk(min(kept, near.shape[1]), sorted=False)
        values.append(value)
        rows.append(place // chosen * groups.shape[2] + best.gather(1, place % chosen) + part.start)
    value, place = torch.cat(values, 1).topk(kept)
    return value.numpy(), torch.cat(rows, 1).gather(1, place).numpy()


def _ranked(query, row, score, count: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of the best k of each query, of which there are `count`; pairs are in its order, k or
    more each.
    """
    order = np.lexsort((row, -score, query))
    best = order[np.searchsorted(query, np.arange(count))[:, None] + np.arange(k)]
    return score[best], row[best]


def _scores(queries, prepared: Prepared, query: np.ndarray, row: np.ndarray) -> Float32[np.ndarray, " pair"]:
    """NumPy's dot product, pair by pair."""
    found = np.empty(len(row), np.float32)
    for part in _slices(len(row), PAIRS):
        rows = np.ascontiguousarray(
            _float32(prepared.rows[row[part]])
        )  # strides would be summed in another order
        found[part] = np.vecdot(queries[query[part]], rows)
    return found


def _rounding(queries, norm: float) -> Float[np.ndarray, " query"]:
    """Most by which two float32 dot products of the same vectors differ, in whatever order they are
    summed.
    """
    return (queries.shape[1] + 8) * 2.0**-23 * norm * np.linalg.norm(queries, axis=1)


def _encode(candidates, norm: float) -> Prepared:
    """Of each row, what an estimate of the mean leaves: the spread of the scores is all that an order depends
    on.
    """
    import torch

    count, dim = candidates.shape
    centre = _float32(candidates[:: -(-count // 2048)]).mean(0)
    codes, scales = torch.empty((count, dim), dtype=torch.int8), torch.empty(count)
    radius = residual = 0.0
    for part in _slices(count, ROWS):
        rows = _float32(candidates[part]) - centre
        codes[part], scale, left = _codes(rows)
        scales[part] = torch.from_numpy(scale)
        radius, residual = max(radius, np.linalg.norm(rows, axis=1).max()), max(residual, left.max())
    return Prepared(candidates, norm, codes, scales, centre, float(radius), float(residual))


def _codes(rows: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """int8 of rows, the scale of each, and the norm of what that leaves out."""
    import torch

    exact = torch.from_numpy(np.ascontiguousarray(rows))
    scale = (exact.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (exact / scale[:, None]).round_()
    left = (exact - codes * scale[:, None]).norm(dim=1)
    return codes.to(torch.int8), scale.numpy(), left.numpy()


def _has_int8() -> bool:
    import torch

    return torch.cpu._is_vnni_supported()


def _largest_norm(rows, name: str) -> float:
    largest = 0.0
    for part in _slices(len(rows), ROWS):
        block = _float32(rows[part])
        with np.errstate(all="ignore"):
            squares = np.vecdot(block, block)
        if not np.isfinite(squares.max()):
            finite = np.isfinite(block).all(1)
            if not finite.all():
                raise ValueError(f"{name} hold NaN or infinity in row {part.start + int(np.argmin(finite))}")
            squares = np.vecdot(block, block, dtype=np.float64)
        largest = max(largest, float(squares.max()))
    return largest**0.5


def _float32(rows) -> Float32[np.ndarray, "row dim"]:
    return rows.astype(np.float32, copy=False) if isinstance(rows, np.ndarray) else rows.float().numpy()


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
