"""Taking a concept out of embeddings: the least change after which no linear probe finds it any more.

LEACE (Belrose et al. 2023, arXiv 2306.03819) is a closed form. `geometry.without` projects the directions of
the groups' means away at a right angle; this one knows how the embeddings spread, and moves them less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

SMALL = 1e-10
"""Variance below this share of the largest is rounding, and no direction of the embeddings."""


@dataclass(frozen=True, eq=False)
class Eraser:
    """An affine map x - P (x - mean): `mean` [dim] is that of the rows it was fitted on, P is `away`
    [dim, dim], of one rank fewer than there are labels.
    """

    mean: Float64[np.ndarray, " dim"]
    away: Float64[np.ndarray, "dim dim"]

    def __call__(self, rows: Float[np.ndarray, "row dim"]) -> Float64[np.ndarray, "row dim"]:
        """The rows erased, not normalised again. Raises ValueError for another number of dimensions."""
        if rows.shape[1] != len(self.mean):
            raise ValueError(f"rows have {rows.shape[1]} dimensions; the eraser has {len(self.mean)}")
        return rows - (rows - self.mean) @ self.away.T

    def normalised(self, rows: Float32[np.ndarray, "row dim"]) -> Float32[np.ndarray, "row dim"]:
        """The rows erased and L2-normalised again, as a search wants them: no longer quite linear, so that a
        probe may find a little.
        """
        bare = self(rows)
        return (bare / np.linalg.norm(bare, axis=1, keepdims=True)).astype(np.float32)


def leace(rows: Float[np.ndarray, "row dim"], labels: Sequence[str]) -> Eraser:
    """The eraser of what `labels`, one a row, say: of all affine maps after which rows and labels are
    uncorrelated, the one that moves the rows least.

    Theorem 4.3 and equation 1 of the paper: r(x) = x - W⁺ Q W (x - E[x]), where W = (Σxx^½)⁺ whitens the rows
    and Q projects at a right angle on the columns of W Σxz, z being the labels as 0 and 1. Raises ValueError
    for another number of labels, fewer than two different ones, or rows that are not finite.
    """
    names, places = np.unique(np.asarray(labels, str), return_inverse=True)
    if len(places) != len(rows) or len(names) < 2:
        raise ValueError(
            f"{len(rows)} rows, {len(places)} labels, {len(names)} different; give one a row, of two"
        )
    if not np.isfinite(rows).all():
        raise ValueError("rows hold NaN or infinity; leave out what could not be encoded")
    mean = rows.mean(0, dtype=np.float64)
    centred = rows - mean
    told = np.eye(len(names))[places]
    cross = centred.T @ (told - told.mean(0)) / len(rows)
    variances, basis = np.linalg.eigh(centred.T @ centred / len(rows))
    kept = variances > SMALL * max(variances.max(), np.finfo(float).tiny)
    basis, roots = basis[:, kept], np.sqrt(variances[kept])
    white, back = basis / roots @ basis.T, basis * roots @ basis.T
    left, sizes, _ = np.linalg.svd(white @ cross, full_matrices=False)
    own = left[:, sizes > 1e-8]  # of whitened rows: correlations, from 0 to 1
    return Eraser(mean, back @ own @ own.T @ white)
