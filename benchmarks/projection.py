"""A map of MERIT's size, by UMAP with its own neighbours and with exact ones: 51,177 vectors of 2048
dimensions.

Exact neighbours, by coral_lab's search, were meant to make maps quicker. They do not: finding them takes
longer than UMAP's approximate ones, with which a map is as trustworthy, so `geometry.umap` leaves it to UMAP.
Vectors are those of benchmarks/search.py. Maps have a seed, so that they can be repeated, but for one as UMAP
comes: on all threads, and never the same twice. Writes projection.csv.

python benchmarks/projection.py           five maps each, about ten minutes
"""

import warnings

import numpy as np
from search import COUNT, alternately, clustered
from table import keep, profiled, ratios, row
from umap import UMAP

from coral_lab.study.geometry import neighbours, trustworthiness, umap

RUNS, NEIGHBOURS = 5, 15


def exactly(rows: np.ndarray) -> np.ndarray:
    """A map from each row's exact neighbours, as UMAP counts them: itself first."""
    near = np.column_stack([np.arange(len(rows)), neighbours(rows, NEIGHBOURS - 1)])
    distances = np.maximum(0, 1 - np.stack([rows[some] @ row for row, some in zip(rows, near, strict=True)]))
    distances[:, 0] = 0
    plain = UMAP(metric="cosine", random_state=0, n_jobs=1, precomputed_knn=(near, distances))
    return plain.fit_transform(rows)


def main() -> list[dict]:
    rows = clustered(COUNT, 1)
    maps: dict[str, np.ndarray] = {}

    def run(name: str, project) -> None:
        maps[name] = project(rows)

    exact, own, free = "exact neighbours", "UMAP's own neighbours", "UMAP as it comes"
    calls = {exact: lambda: run(exact, exactly), own: lambda: run(own, umap)}
    for project in (exactly, umap, UMAP(metric="cosine").fit_transform):
        project(rows[:5000])  # numba compiles what it meets first
    times = alternately(calls, RUNS, warm=False)
    times |= alternately({free: lambda: run(free, UMAP(metric="cosine").fit_transform)}, 1, warm=False)
    with profiled("projection"):
        umap(rows)
    trust = {name: trustworthiness(rows, places, NEIGHBOURS) for name, places in maps.items()}
    return [
        *(row(f"{name}, s", values) for name, values in times.items()),
        row("exact neighbours / UMAP's own", ratios(times[exact], times[own]), "≤ 0.6"),
        *(row(f"trustworthiness, {name}", [value]) for name, value in trust.items()),
        row("trustworthiness, exact less UMAP's own", [trust[exact] - trust[own]], "± 0.005"),
    ]


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning, module="umap")
    print(keep("projection", main()).to_string(index=False))
