"""The shape of an embedding space: how it is spread, what lies near what, and what a map of it gets wrong.

All embeddings are L2-normalised, so nearness is the dot product. Equal seeds give equal results on one
machine; UMAP's differ between processors, so keep coordinates that matter.
"""

import atexit
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int64, UInt64
from scipy.stats import norm, skew

from coral_lab.errors import require
from coral_lab.metrics import Difference
from coral_lab.store.topk import top_k

Embeddings = Float32[np.ndarray, "row dim"]
Map = Float[np.ndarray, "row 2"]
FEWEST = 4  # rows: of fewer, UMAP's spectral start cannot be worked out
PAIRS = 100_000  # random pairs behind an estimate of all


def neighbours(embeddings: Embeddings, k: int) -> Int64[np.ndarray, "row k"]:
    """The `k` nearest other rows of each row, nearest first; ties go to the lower row.

    Raises ValueError for k < 1 or fewer than k + 1 rows.
    """
    if not 1 <= k < len(embeddings):
        raise ValueError(f"k is {k} for {len(embeddings)} rows; choose 1 to {len(embeddings) - 1}")
    _, found = top_k(embeddings, embeddings, k + 1)
    own = np.arange(len(embeddings))[:, None]
    # Each row leaves its own list, or its last entry where equal rows pushed it out.
    others = np.argsort(found == own, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, others, 1)


def anisotropy(embeddings: Embeddings, seed: int = 0) -> float:
    """Mean cosine of two random rows: 0 when directions are used evenly, 1 when all are one (Ethayarajh,
    1909.00512).
    """
    left, right = _pairs(len(embeddings), seed)
    return float(np.einsum("ij,ij->i", embeddings[left], embeddings[right]).mean())


def alignment(queries: Embeddings, positives: Float32[np.ndarray, "_ _"]) -> float:
    """Mean squared distance of a query and its positive, 0 to 4; lower is better (Wang and Isola,
    2005.10242).
    """
    if queries.shape != positives.shape:
        raise ValueError(
            f"shapes are {queries.shape} and {positives.shape}; give one positive for each query"
        )
    return float(((queries - positives) ** 2).sum(1).mean())


def uniformity(embeddings: Embeddings, seed: int = 0) -> float:
    """Log of the mean of exp(-2 d²) over random pairs; lower is more uniform, 0 for a point (Wang and Isola,
    2005.10242).
    """
    left, right = _pairs(len(embeddings), seed)
    return float(np.log(np.exp(-2 * ((embeddings[left] - embeddings[right]) ** 2).sum(1)).mean()))


def _pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows in pairs: all pairs where they are few, else a random sample."""
    if count < 2:
        raise ValueError(f"{count} rows have no pairs; give at least 2")
    if count * (count - 1) // 2 <= PAIRS:
        return np.triu_indices(count, 1)
    random = np.random.default_rng(seed)
    left = random.integers(count, size=PAIRS)
    return left, (left + random.integers(1, count, size=PAIRS)) % count


def modality_gap(first: Embeddings, second: Embeddings) -> float:
    """Distance of the two sets' means, 0 to 2 (Liang et al., 2203.02053)."""
    return float(np.linalg.norm(first.mean(0) - second.mean(0)))


def occurrences(embeddings: Embeddings, k: int = 10) -> Int64[np.ndarray, " row"]:
    """How often each row is among the `k` nearest of the others; `k` on average."""
    return np.bincount(neighbours(embeddings, k).ravel(), minlength=len(embeddings))


def hubness(embeddings: Embeddings, k: int = 10) -> float:
    """Skewness of `occurrences`: 0 without hubs, above 1 with some that are near everything (Radovanović et
    al., 2010).
    """
    return float(skew(occurrences(embeddings, k)))


def intrinsic_dimension(embeddings: Embeddings) -> float:
    """TwoNN: how many directions a neighbourhood has, from the ratio of the two nearest distances (Facco et
    al., 2017).

    Equal rows are counted once. Raises ValueError for fewer than 3 distinct rows.
    """
    distinct = np.unique(embeddings, axis=0)
    if len(distinct) < 3:
        raise ValueError(f"{len(distinct)} distinct rows; the two nearest others of each are needed")
    near = neighbours(distinct, 2)
    first, second = (
        np.linalg.norm(distinct - distinct[near[:, i]], axis=1).astype(np.float64) for i in (0, 1)
    )
    apart = first > 0
    total = np.log(second[apart] / first[apart]).sum()
    return float(apart.sum() / total)


def overlap(first: Int64[np.ndarray, "row k"], second: Int64[np.ndarray, "_ _"]) -> Float[np.ndarray, " row"]:
    """Share of each row's neighbours that are the same in both lists, whatever their order."""
    if first.shape != second.shape:
        raise ValueError(
            f"shapes are {first.shape} and {second.shape}; give as many neighbours of the same rows"
        )
    return np.array([len(np.intersect1d(a, b)) for a, b in zip(first, second, strict=True)]) / first.shape[1]


def pca(
    embeddings: Embeddings, directions: int = 2
) -> tuple[Float[np.ndarray, "row direction"], Float[np.ndarray, " direction"]]:
    """Coordinates along the directions of most variance, and each one's share of it."""
    from sklearn.decomposition import PCA

    found = PCA(directions, random_state=0)
    coordinates = found.fit_transform(embeddings)
    return coordinates, found.explained_variance_ratio_


def umap(embeddings: Embeddings, seed: int = 0, neighbours: int = 15, min_dist: float = 0.1) -> Map:
    """UMAP of the rows by cosine; the same map for the same seed on one machine (McInnes et al., 1802.03426).

    UMAP finds its own, approximate neighbours: exact ones take longer and make no better map
    (benchmarks/projection.py).
    """
    _enough(embeddings)
    return (
        _umap()
        .UMAP(
            n_neighbors=min(neighbours, len(embeddings) - 1),
            min_dist=min_dist,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
        )
        .fit_transform(embeddings)
    )


def _umap() -> Any:
    """umap-learn. Numba keeps what it compiles beside it or in the home, and gives up where neither can
    be written: there it gets a folder that is deleted at exit.
    """
    try:
        return import_module("umap")
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
    settings: Any = require("numba.core.config", "study")

    place = TemporaryDirectory(prefix="numba-")
    atexit.register(place.cleanup)
    # numba reads the variable again when it first compiles
    os.environ["NUMBA_CACHE_DIR"] = settings.CACHE_DIR = place.name
    for name in [name for name in sys.modules if name.partition(".")[0] in ("umap", "pynndescent")]:
        del sys.modules[name]  # half imported
    return import_module("umap")


def _enough(embeddings: np.ndarray) -> None:
    if len(embeddings) < FEWEST:
        raise ValueError(f"{len(embeddings)} rows make no map; give at least {FEWEST}")


def aligned_umaps(spaces: Sequence[Embeddings], seed: int = 0, neighbours: int = 15) -> list[Map]:
    """One map a space, of the same items in the same order, drawn so that an item stays where it can.

    Raises ValueError for spaces of different length.
    """
    if len({len(own) for own in spaces}) > 1 or len(spaces) < 2:
        raise ValueError(f"{[len(own) for own in spaces]} rows; give two spaces or more of the same items")
    _enough(spaces[0])
    same = [{i: i for i in range(len(spaces[0]))}] * (len(spaces) - 1)
    found = _umap().AlignedUMAP(
        n_neighbors=min(neighbours, len(spaces[0]) - 1), metric="cosine", random_state=seed
    )
    with (
        warnings.catch_warnings()
    ):  # AlignedUMAP takes no n_jobs, and says for each space that a seed allows but one
        warnings.filterwarnings("ignore", "n_jobs value", UserWarning)
        return [np.asarray(own) for own in found.fit_transform(list(spaces), relations=same)]


def map_neighbours(places: Map, k: int) -> Int64[np.ndarray, "row k"]:
    """The `k` nearest other points on a map, by distance."""
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= k < len(places):
        raise ValueError(f"k is {k} for {len(places)} points; choose 1 to {len(places) - 1}")
    return NearestNeighbors(n_neighbors=k).fit(places).kneighbors(return_distance=False)


def torn(embeddings: Embeddings, places: Map, k: int) -> Bool[np.ndarray, "row k"]:
    """Which of each row's `k` nearest neighbours, in the order of `neighbours`, are not among its `k` nearest
    on a map.
    """
    near, shown = neighbours(embeddings, k), map_neighbours(places, k)
    return np.array([~np.isin(a, b) for a, b in zip(near, shown, strict=True)])


def trustworthiness(embeddings: Embeddings, places: Map, k: int, most: int = 2000, seed: int = 0) -> float:
    """From 1 (no point got new neighbours on the map) towards 0, false ones weighed by how far off they are.

    The other half of `torn`, which counts neighbours that were lost (Venna and Kaski 2001). Of at most `most`
    rows drawn by the seed, each among all others; scikit-learn's measure, which needs all distances at once,
    if there are no more.
    """
    count = len(embeddings)
    if not 1 <= k < count / 2:
        raise ValueError(f"k is {k} for {count} rows; trustworthiness is defined for k below half of them")
    shown = map_neighbours(places, k)
    some = np.arange(count)
    if count > most:
        some = np.random.default_rng(seed).choice(count, most, replace=False)
    excess = 0
    for part in np.array_split(some, -(-len(some) // 256)):
        cosines = embeddings[part] @ embeddings.T
        own = np.take_along_axis(cosines, shown[part], 1)
        np.put_along_axis(
            cosines, part[:, None], np.inf, 1
        )  # itself is the nearest, so ranks of others begin at 1
        ranks = np.stack([(cosines > limit[:, None]).sum(1) for limit in own.T], 1)
        excess += np.maximum(0, ranks - k).sum()
    return float(1 - 2 * excess / (len(some) * k * (2 * count - 3 * k - 1)))


def shared(near: Int64[np.ndarray, "row k"], labels: Sequence[str]) -> Float[np.ndarray, " row"]:
    """Share of each row's neighbours that have its own label."""
    values = np.asarray(labels, object)
    return (values[near] == values[:, None]).mean(1)


def shared_by_chance(labels: Sequence[str]) -> float:
    """How often two different rows, drawn at random, have one label: what `shared` is without any
    structure.
    """
    _, counts = np.unique(np.asarray(labels), return_counts=True)
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def label_agreement(
    near: Int64[np.ndarray, "row k"],
    labels: Mapping[str, Sequence[str | tuple[str, ...]]],
    *,
    apart: Sequence[str] | None = None,
    permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """How often neighbours have a label in common, and how often they would if labels were dealt out anew.

    `labels` are one or several values for each row, by name; rows of several agree if they share one. With
    `apart`, a listing for each row, say, neighbours of the same one do not count, and listings' labels are
    dealt out together: siblings have one label and the same neighbours, so they are no independent rows.
    Columns: label, agreement, by chance, low, high (mean and 95% interval over permutations), p (one-sided:
    that chance agrees as much; NaN where no neighbours count). Rows without a value are left out of both.
    Raises ValueError for lengths that differ or fewer than one permutation.
    """
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; choose 1 or more")
    rng, rows = np.random.default_rng(seed), []
    for name, own in labels.items():
        if len(own) != len(near) or (apart is not None and len(apart) != len(near)):
            raise ValueError(f"{len(near)} rows and {len(own)} labels of {name!r}; give one each")
        bits = _bits([(value,) if isinstance(value, str) else value for value in own])
        known = np.asarray(bits.any(1))
        counted = known[:, None] & known[near]
        if apart is not None:
            groups = np.asarray(apart, object)
            counted &= groups[near] != groups[:, None]
        agree = _agreement(bits, near, counted)
        there = np.flatnonzero(known)
        group = (np.arange(len(near)) if apart is None else pd.factorize(groups)[0])[there]
        drawn, home = [], there[np.argsort(group, kind="stable")]
        for _ in range(permutations):
            dealt, turn = bits.copy(), rng.permutation(len(near))[group]
            dealt[home] = bits[there[np.argsort(turn, kind="stable")]]
            drawn.append(_agreement(dealt, near, counted))
        low, high = np.quantile(drawn, [0.025, 0.975])
        p = (1 + sum(value >= agree for value in drawn)) / (1 + permutations) if counted.any() else np.nan
        row = {"label": name, "agreement": agree, "by chance": float(np.mean(drawn))}
        rows.append(row | {"low": low, "high": high, "p": p})
    return pd.DataFrame(rows)


def _bits(values: Sequence[tuple[str, ...]]) -> UInt64[np.ndarray, "row word"]:
    """Each row's values as bits: two rows share one where the bits of both meet."""
    places = {value: n for n, value in enumerate(sorted({v for own in values for v in own if v}))}
    bits = np.zeros((len(values), max(1, -(-len(places) // 64))), np.uint64)
    for row, own in enumerate(values):
        for place in (places[value] for value in own if value):
            bits[row, place // 64] |= np.uint64(1) << np.uint64(place % 64)
    return bits


def _agreement(bits: np.ndarray, near: np.ndarray, counted: np.ndarray) -> float:
    """Share of the neighbours that count which have a value in common with their row; NaN if none counts."""
    shared = np.zeros(near.shape, bool)
    for word in bits.T:
        shared |= (word[near] & word[:, None]) != 0
    return float(shared[counted].mean()) if counted.any() else float("nan")


def over_halves(
    measure: Callable[[Embeddings], float], embeddings: Embeddings, repeats: int = 10, seed: int = 0
) -> Float[np.ndarray, " repeat"]:
    """A measure of as many random halves of the rows: how much it depends on which rows there happen to
    be.
    """
    random = np.random.default_rng(seed)
    picks = (random.permutation(len(embeddings))[: len(embeddings) // 2] for _ in range(repeats))
    return np.array([measure(embeddings[np.sort(some)]) for some in picks])


def change_over_halves(
    measure: Callable[[Embeddings], float],
    before: Embeddings,
    after: Float32[np.ndarray, "_ _"],
    repeats: int = 100,
    seed: int = 0,
) -> Difference:
    """How much higher a measure is of `after` than of `before`, rows of the same items, by the same halves of
    both.

    A half drawn without replacement varies around the whole as the whole does around all there could be
    (Politis and Romano 1994), so the halves' differences have its standard error: the interval is 1.96 of
    them, and p by the normal law. Raises ValueError for other numbers of rows.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} rows before and {len(after)} after; give rows of the same items")
    halves = [over_halves(measure, rows, repeats, seed) for rows in (before, after)]
    error = float(np.std(halves[1] - halves[0], ddof=1))
    whole = float(measure(after) - measure(before))
    p = float(2 * norm.sf(abs(whole) / error)) if error else float(whole == 0)
    return Difference(whole, whole - 1.96 * error, whole + 1.96 * error, p, len(before))


def group_means(
    embeddings: Embeddings, labels: Sequence[str]
) -> tuple[list[str], Float32[np.ndarray, "group dim"]]:
    """The labels in order, and each one's mean row less the mean of these means: where a group lies to one
    side.
    """
    values = np.asarray(labels, object)
    names = sorted(set(labels))
    means = np.stack([embeddings[values == name].mean(0) for name in names])
    return names, (means - means.mean(0)).astype(np.float32)


def between(embeddings: Embeddings, labels: Sequence[str]) -> float:
    """Share of the rows' variance that lies between the groups' means, 0 to 1 (eta squared, over all
    directions).
    """
    values, centred = np.asarray(labels, object), embeddings - embeddings.mean(0)
    own = ((values == name) for name in sorted(set(labels)))
    return float(sum(some.sum() * (centred[some].mean(0) ** 2).sum() for some in own) / (centred**2).sum())


def directions(means: Float32[np.ndarray, "group dim"]) -> Float32[np.ndarray, "direction dim"]:
    """Orthonormal directions in which groups' means differ, one fewer than groups; strongest first."""
    return np.linalg.svd(means - means.mean(0), full_matrices=False)[2][: len(means) - 1]


def without(embeddings: Embeddings, directions: Float32[np.ndarray, "direction dim"]) -> Embeddings:
    """The rows with orthonormal directions projected away, L2-normalised again.

    Along these directions no linear probe finds anything any more (Bolukbasi et al., 1607.06520).
    """
    rest = embeddings - embeddings @ directions.T @ directions
    return rest / np.linalg.norm(rest, axis=1, keepdims=True)
