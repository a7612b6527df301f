"""A map of MERIT's size beside plain UMAP: 51,177 vectors of 2048 dimensions, trustworthiness of both.

Vectors are those of benchmarks/search.py. `geometry.umap` gives UMAP exact neighbours and a seed, so that maps can be
repeated; plain UMAP is run with the same seed, and once as it comes, on all threads and never the same twice.
Writes projection.csv.

python benchmarks/projection.py           five maps each, about fifteen minutes
"""

import warnings

import numpy as np
from search import COUNT, alternately, clustered
from table import keep, profiled, ratios, row
from umap import UMAP

from coral_lab.geometry import trustworthiness, umap

RUNS, NEIGHBOURS = 5, 15


def main() -> list[dict]:
    rows = clustered(COUNT, 1)
    maps: dict[str, np.ndarray] = {}

    def run(name: str, project) -> None:
        maps[name] = project(rows)

    plain = UMAP(metric="cosine", random_state=0, n_jobs=1)
    own, theirs, free = "geometry.umap", "umap.UMAP, same seed", "umap.UMAP as it comes"
    calls = {own: lambda: run(own, umap), theirs: lambda: run(theirs, plain.fit_transform)}
    for project in (umap, plain.fit_transform, UMAP(metric="cosine").fit_transform):
        project(rows[:5000])  # numba compiles what it meets first
    times = alternately(calls, RUNS, warm=False)
    times |= alternately({free: lambda: run(free, UMAP(metric="cosine").fit_transform)}, 1, warm=False)
    with profiled("projection"):
        umap(rows)
    trust = {name: trustworthiness(rows, places, NEIGHBOURS) for name, places in maps.items()}
    return [
        *(row(f"{name}, s", values) for name, values in times.items()),
        row("geometry.umap / umap.UMAP, same seed", ratios(times[own], times[theirs]), "≤ 0.6"),
        row("geometry.umap / umap.UMAP as it comes", [value / times[free][0] for value in times[own]], "≤ 0.6"),
        *(row(f"trustworthiness, {name}", [value]) for name, value in trust.items()),
        row("trustworthiness less that of umap.UMAP, same seed", [trust[own] - trust[theirs]], "± 0.005"),
    ]  # fmt: skip


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning, module="umap")
    print(keep("projection", main()).to_string(index=False))
