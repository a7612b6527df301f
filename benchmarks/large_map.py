"""A map of a million made-up products of 256 dimensions, read from a store: 10,000 mapped, the others placed.

python benchmarks/large_map.py          some minutes
python benchmarks/large_map.py 50000
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ann import DIM, fill
from table import keep, megabytes, row

from coral_lab.store.checking import matrix
from coral_lab.store.tables import PRODUCTS, Table
from coral_lab.study.large_maps import counted, density, large_map
from coral_lab.study.scaling import centres

KINDS = 500


def main(count: int) -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=Path("build")) as folder:
        table = Table(folder, "synthetic", DIM, {"model": "synthetic"})
        fill(table, count, random, centres(random, KINDS, DIM))

        def batches():
            for batch in table.scan(["id", "vector"], PRODUCTS, 8_192):
                yield batch["id"].to_pylist(), matrix(batch["vector"])

        before, started = megabytes("VmRSS"), time.perf_counter()
        found = large_map(batches)
        seconds = time.perf_counter() - started
    print(found)
    started = time.perf_counter()
    left, right, lower, upper = found.window
    counted(found, (left, (left + right) / 2, lower, (lower + upper) / 2))
    zoomed = time.perf_counter() - started
    figures = {
        "mapped and placed, s": seconds,
        "memory beyond what was there, MB": megabytes("VmHWM") - before,
        "of ten nearest kept, mapped": found.kept_mapped.mean,
        "of ten nearest kept, placed": found.kept_placed.mean,
        "by chance": found.chance,
        "a zoom, ms": zoomed * 1e3,
        "figure, MB": len(density(found).to_json()) / 1e6,
    }
    print(keep("large_map", [row(f"{count:,}: {name}", [own]) for name, own in figures.items()]).to_string())


if __name__ == "__main__":
    Path("build").mkdir(exist_ok=True)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
