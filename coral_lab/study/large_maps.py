"""A map of millions: a sample is mapped, all others are placed on it batch by batch, and what that is worth
is measured.

A product is placed at the mean of its nearest mapped ones, weighed by a power of one over their distance (D.
Shepard, A two-dimensional interpolation function for irregularly-spaced data, 1968): what equals a mapped
product stands on it. The power is high, so that few stand in the void between two islands.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float32, Int64

from coral_lab.metrics import Estimate, estimate
from coral_lab.sources.border import brief
from coral_lab.store.topk import Prepared, prepare, top_k
from coral_lab.study.geometry import FEWEST, map_neighbours, neighbours, overlap, umap
from coral_lab.study.plots import TEMPLATE, plain

NEAREST, POWER = 5, 16  # mapped products that place another, and of one over the distance
CHECKED = 2_000  # of the mapped and of the placed, each
NEAR = 10  # neighbours that are looked for on the map
SAME = 1e-12  # squared distance below which two embeddings are the same
LENGTH = 0.01  # how far an embedding's may be from 1

Batches: TypeAlias = Callable[[], Iterable[tuple[Sequence[str], np.ndarray]]]
"""Gives ids and embeddings of all products, some thousand at a time, whenever it is called."""

Window: TypeAlias = tuple[float, float, float, float]
"""Left, right, lower and upper end."""


@dataclass(frozen=True, eq=False)
class LargeMap:
    """Where every product stands, and which of them were `mapped` and not placed.

    Of the mapped and of the placed each: the share of their ten nearest, among some thousands of both, that
    are among their ten nearest on the map; `chance` is what any map has.
    """

    ids: np.ndarray
    places: Float32[np.ndarray, "product 2"]
    mapped: Bool[np.ndarray, " product"]
    kept_mapped: Estimate
    kept_placed: Estimate
    chance: float

    @property
    def window(self) -> Window:
        """All of it, with a margin."""
        low, high = self.places.min(0), self.places.max(0)
        margin = 0.02 * (high - low) + 1e-6
        (left, lower), (right, upper) = low - margin, high + margin
        return float(left), float(right), float(lower), float(upper)

    def inside(self, window: Window) -> Int64[np.ndarray, " found"]:
        """The rows of the products within it."""
        (x, y), (left, right, lower, upper) = self.places.T, window
        return np.flatnonzero((x >= left) & (x <= right) & (y >= lower) & (y <= upper))

    def __repr__(self) -> str:
        placed = len(self.ids) - int(self.mapped.sum())
        kept = f"of {NEAR} nearest the map keeps {self.kept_mapped} of the mapped"
        kept += f", {self.kept_placed} of the placed" if placed else ""
        head = f"LargeMap({len(self.ids):,} products, {placed:,} of them placed"
        return f"{head}; {kept}; {self.chance:.3f} by chance)"


def in_batches(
    ids: Sequence[str], embeddings: Float32[np.ndarray, "product dim"], size: int = 8_192
) -> Batches:
    """What `large_map` takes, of embeddings in memory. Raises ValueError for another number of ids."""
    if len(ids) != len(embeddings):
        raise ValueError(f"{len(ids)} ids and {len(embeddings)} embeddings; give one each")
    starts = range(0, len(ids), size)
    return lambda: ((ids[at : at + size], embeddings[at : at + size]) for at in starts)


def large_map(batches: Batches, sample: int = 10_000, seed: int = 0) -> LargeMap:
    """Map a random `sample` of all products by UMAP, and place all others on it.

    `batches` are `Store.in_batches`, or `in_batches` of an array: they are read twice, and never in memory
    together. Equal seeds give equal maps, whatever the size of batches. Raises ValueError for a sample or a
    catalogue of less than UMAP needs, for embeddings that are not of one length, finite and normalised, and
    for products that change between the two readings.
    """
    if sample < FEWEST:
        raise ValueError(f"sample is {sample}; map at least {FEWEST}, some thousands of a large catalogue")
    drawn = _draw(batches, sample, seed)
    base, pool = umap(drawn.mapped, seed).astype(np.float32), prepare(drawn.mapped)
    ids: list[str] = []
    parts = []
    for own, embeddings in _looked_over(batches):
        ids += own
        parts.append(_placed(embeddings, pool, base))
    if len(ids) != drawn.count or [ids[row] for row in drawn.rows] != drawn.ids:
        problem = f"{drawn.count:,} products were read first and {len(ids):,} then, or in another order"
        raise ValueError(f"{problem}; let nothing write there meanwhile, and make the map again")
    places, mapped = np.concatenate(parts), np.zeros(len(ids), bool)
    places[drawn.rows], mapped[drawn.rows] = base, True
    return LargeMap(np.array(ids), places, mapped, *_kept(drawn, places))


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Products that are mapped, and some of the others to check the placing with: rows and embeddings. Of
    the mapped their ids too, and how many products there are.
    """

    count: int
    ids: list[str]
    rows: Int64[np.ndarray, " mapped"]
    mapped: Float32[np.ndarray, "mapped dim"]
    other_rows: Int64[np.ndarray, " other"]
    others: Float32[np.ndarray, "other dim"]


def _draw(batches: Batches, sample: int, seed: int) -> _Drawn:
    """Every product gets a random number, and those with the lowest are drawn: of whatever number there are,
    in one reading.
    """
    random, count, start = np.random.default_rng(seed), sample + CHECKED, 0
    numbers, rows, names = np.zeros(0), np.zeros(0, np.int64), np.zeros(0, object)
    kept = np.zeros((0, 0), np.float32)
    for ids, embeddings in _looked_over(batches):
        numbers = np.append(numbers, random.random(len(ids)))
        rows = np.append(rows, np.arange(start, start + len(ids)))
        names = np.append(names, np.array(ids, object))
        kept = np.concatenate([kept.reshape(-1, embeddings.shape[1]), embeddings])
        low = np.argsort(numbers, kind="stable")[:count]
        numbers, rows, names, kept = numbers[low], rows[low], names[low], kept[low]
        start += len(ids)
    if not len(rows):
        raise ValueError("no products are given; give some, or encode them into the store first")
    own, others = np.sort(rows[:sample]), np.sort(rows[sample:])
    order = np.concatenate([np.argsort(rows[:sample]), sample + np.argsort(rows[sample:])])
    first, rest = order[: len(own)], order[len(own) :]
    return _Drawn(start, names[first].tolist(), own, kept[first], others, kept[rest])


def _looked_over(batches: Batches) -> Iterator[tuple[list[str], Float32[np.ndarray, "row dim"]]]:
    dim = None
    for ids, given in batches():
        embeddings = np.ascontiguousarray(given, np.float32)
        dim = dim or embeddings.shape[-1]
        if embeddings.shape != (len(ids), dim):
            raise ValueError(f"{len(ids)} ids and embeddings {embeddings.shape}; give {dim} numbers for each")
        lengths = np.linalg.norm(embeddings, axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1) < LENGTH))
        if len(wrong):
            problem = f"the embedding of {brief(ids[wrong[0]])} has length {lengths[wrong[0]]:.3g}"
            raise ValueError(f"{problem}; give normalised ones, of length 1")
        yield list(ids), embeddings


def _placed(
    embeddings: Float32[np.ndarray, "row dim"], pool: Prepared, base: Float32[np.ndarray, "mapped 2"]
) -> Float32[np.ndarray, "row 2"]:
    """Between the nearest mapped products."""
    cosines, near = top_k(embeddings, pool, NEAREST)
    weights = np.maximum(2 - 2 * cosines.astype(np.float64), SAME) ** (-POWER / 2)
    weights /= weights.sum(1, keepdims=True)
    return (weights[..., None] * base[near]).sum(1).astype(np.float32)


def _kept(drawn: _Drawn, places: Float32[np.ndarray, "product 2"]) -> tuple[Estimate, Estimate, float]:
    """What `LargeMap` says of the map."""
    # Rows are in the catalogue's order: the first of them may be of one class
    some = np.random.default_rng(0).permutation(len(drawn.rows))[:CHECKED]
    embeddings = np.concatenate([drawn.mapped[some], drawn.others])
    on_map = places[np.concatenate([drawn.rows[some], drawn.other_rows])]
    k = min(NEAR, len(embeddings) - 1)
    kept = overlap(neighbours(embeddings, k), map_neighbours(on_map, k))
    count = len(drawn.rows[some])
    placed = estimate(kept[count:]) if len(drawn.others) else Estimate(np.nan, np.nan, np.nan, 0)
    return estimate(kept[:count]), placed, k / (len(embeddings) - 1)


def counted(
    found: LargeMap, window: Window, cells: int = 200
) -> tuple[Int64[np.ndarray, "y x"], Float32[np.ndarray, " x"], Float32[np.ndarray, " y"]]:
    """How many products stand in each cell of a window, and the middles of its columns and rows; `cells` are
    on its longer side. Raises ValueError for a window or a number of cells that is none.
    """
    left, right, lower, upper = window
    if not (left < right and lower < upper) or cells < 1:
        raise ValueError(
            f"window is {window} with {cells} cells; give its ends in order, and at least 1 cell"
        )
    side = max(right - left, upper - lower) / cells
    shape = [max(1, round((upper - lower) / side)), max(1, round((right - left) / side))]
    x, y = found.places[found.inside(window)].T
    counts, ys, xs = np.histogram2d(y, x, shape, [[lower, upper], [left, right]])
    middles = [((ends[1:] + ends[:-1]) / 2).astype(np.float32) for ends in (xs, ys)]
    return counts.astype(np.int64), middles[0], middles[1]


def density(found: LargeMap, title: str = "", window: Window | None = None, cells: int = 200) -> go.Figure:
    """How many products stand where: darker by powers of ten, white where nobody is."""
    counts, x, y = counted(found, window or found.window, cells)
    figure = go.Figure(heatmap(counts, x, y), layout=layout(title or f"{len(found.ids):,} products"))
    return figure


def heatmap(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> go.Heatmap:
    """Of `counted`: colours by the logarithm, since most products stand in few cells."""
    shown = np.where(counts > 0, np.log10(np.maximum(counts, 1)), np.nan).astype(np.float32)
    top = max(1, int(np.ceil(np.log10(max(1, counts.max())))))
    ticks = list(range(top + 1))
    return go.Heatmap(
        x=x,
        y=y,
        z=shown,
        zmin=-0.3,
        zmax=top,
        colorscale=[[0, "#d5e3f0"], [0.5, "#3c84b8"], [1, "#08244a"]],
        colorbar={
            "title": "products",
            "tickvals": ticks,
            "ticktext": [f"{10**n:,}" for n in ticks],
            "thickness": 12,
        },
        customdata=counts,
        hovertemplate="%{customdata:,} products<extra></extra>",
    )


def layout(title: str) -> dict:
    axis = {"visible": False}
    return {
        "template": TEMPLATE,
        "width": 700,
        "height": 520,
        "title": {"text": plain(title), "font": {"size": 15}},
        "xaxis": axis,
        "yaxis": {**axis, "scaleanchor": "x"},
        "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
    }
