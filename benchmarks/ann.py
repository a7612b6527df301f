"""Approximate search against exact search in a store of clustered vectors of 256 dimensions.

python benchmarks/ann.py              a million of them, IVF-PQ
python benchmarks/ann.py 10000000     ten million: 10 GB of disk, and the index
python benchmarks/ann.py 1000000 ivf-hnsw-sq
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from table import keep, megabytes, row
from tqdm import tqdm

from coral_lab.store import approximate
from coral_lab.store.blocks import append, write_fragments
from coral_lab.store.tables import Record, Table

DIM, CENTRES, SPREAD, BATCH = 256, 20_000, 0.7, 50_000
QUERIES, WISHED, K = 100, 0.95, 10
CLASSES = ("shoes", "bag", "shirt", "chair")


def clustered(random: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """Normalised; a vector's noise is `SPREAD` times as long as its centre."""
    noise = random.standard_normal((count, DIM), dtype=np.float32) * (SPREAD / np.sqrt(DIM))
    rows = centres[random.integers(len(centres), size=count)] + noise
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fill(table: Table, count: int, random: np.random.Generator, centres: np.ndarray) -> None:
    table.make_own()
    fragments = []
    for start in tqdm(range(0, count, BATCH), desc="write", unit="batch"):
        ids = range(start, min(start + BATCH, count))
        rows = [Record(f"{i:x}", "product", str(i), class_name=CLASSES[i % len(CLASSES)]) for i in ids]
        fragments += write_fragments(table, rows, clustered(random, centres, len(ids)))
    append(table, fragments)


def main(count: int, kind: str) -> None:
    random, found = np.random.default_rng(0), {}
    centres = random.standard_normal((CENTRES, DIM), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory(dir=Path("build")) as folder:
        table = Table(folder, "synthetic", DIM, {"model": "synthetic"})
        started = time.perf_counter()
        fill(table, count, random, centres)
        found["written, vectors a second"] = [count / (time.perf_counter() - started)]
        started = time.perf_counter()
        approximate.build(table, kind)
        found["index built, s"] = [time.perf_counter() - started]
        queries = clustered(random, centres, QUERIES)
        own = approximate.tune(table, queries, WISHED, kind, K)
        print(own)
        found["recall@10"] = [own.recall.mean]
        found["approximate search, ms"] = [own.seconds * 1e3]
        found["exact search, ms"] = [own.exact_seconds * 1e3]
        found["times as fast as exact search"] = [own.exact_seconds / own.seconds]
        found["recall@10 of one class"] = [of_one_class(table, queries, own.effort)]
        late = clustered(random, centres, 100)
        table.commit([Record(f"late{i}", "product", f"late{i}") for i in range(len(late))], late)
        at_once = [approximate.nearest(table, query, 1, None, own.effort)[0][0].id for query in late]
        found["added later, found at once"] = [np.mean([id == f"late{i}" for i, id in enumerate(at_once)])]
        files = [file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()]
        found["on disk / vectors"] = [sum(files) / (count * DIM * 4)]
        found["peak memory, MB"] = [megabytes("VmHWM")]
    wanted = {
        "recall@10": "≥ 0.95",
        "times as fast as exact search": "≥ 10",
        "added later, found at once": "1",
    }
    rows = [row(f"{kind}, {count:,}: {name}", own, wanted.get(name, "")) for name, own in found.items()]
    print(keep("ann", rows).to_string(index=False))


def of_one_class(table: Table, queries: np.ndarray, effort: approximate.Effort) -> float:
    """With a filter that a quarter of the rows meet; every hit meets it."""
    where, shares = f"class = '{CLASSES[1]}'", []
    for query, right in zip(queries, approximate.exact(table, queries, K, where), strict=True):
        hits = approximate.nearest(table, query, K, where, effort)[0]
        assert {hit.class_name for hit in hits} == {CLASSES[1]}
        shares.append(len({hit.name for hit in hits} & {*right}) / K)
    return float(np.mean(shares))


if __name__ == "__main__":
    Path("build").mkdir(exist_ok=True)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, sys.argv[2] if len(sys.argv) > 2 else "ivf-pq")
