"""Approximate search against exact search in a store of clustered vectors of 256 dimensions.

python benchmarks/ann.py              a million of them, IVF-PQ
python benchmarks/ann.py 10000000     ten million: 10 GB of disk, and the index
python benchmarks/ann.py 1000000 ivf-hnsw-sq

What notebook 11 shows of it is kept in data/results/search-at-scale.csv too.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from table import HERE, keep, megabytes, row
from tqdm import tqdm

from coral_lab.replication.cells import provenance, read_results, write_results
from coral_lab.store import approximate
from coral_lab.store.blocks import append, write_fragments
from coral_lab.store.tables import Record, Table
from coral_lab.study.scaling import centres, clustered

DIM, CENTRES, BATCH = 256, 20_000, 50_000
QUERIES, WISHED, K = 100, 0.95, 10
CLASSES = ("shoes", "bag", "shirt", "chair")
SHIPPED = HERE.parent / "data" / "results" / "search-at-scale.csv"


def fill(table: Table, count: int, random: np.random.Generator, about: np.ndarray) -> None:
    table.make_own()
    fragments = []
    for start in tqdm(range(0, count, BATCH), desc="write", unit="batch"):
        ids = range(start, min(start + BATCH, count))
        rows = [Record(f"{i:x}", "product", str(i), class_name=CLASSES[i % len(CLASSES)]) for i in ids]
        fragments += write_fragments(table, rows, clustered(random, about, len(ids)))
    append(table, fragments)


def main(count: int, kind: str) -> None:
    random, found = np.random.default_rng(0), {}
    about = centres(random, CENTRES, DIM)
    with tempfile.TemporaryDirectory(dir=Path("build")) as folder:
        table = Table(folder, "synthetic", DIM, {"model": "synthetic"})
        started = time.perf_counter()
        fill(table, count, random, about)
        found["written, vectors a second"] = [count / (time.perf_counter() - started)]
        started = time.perf_counter()
        approximate.build(table, kind)
        found["index built, s"] = [time.perf_counter() - started]
        queries = clustered(random, about, QUERIES)
        own = approximate.tune(table, queries, WISHED, kind, K)
        print(own)
        found["recall@10"] = [own.recall.mean]
        found["approximate search, ms"] = [own.seconds * 1e3]
        found["exact search, ms"] = [own.exact_seconds * 1e3]
        found["times as fast as exact search"] = [own.exact_seconds / own.seconds]
        found["recall@10 of one class"] = [of_one_class(table, queries, own.effort)]
        late = clustered(random, about, 100)
        table.commit([Record(f"late{i}", "product", f"late{i}") for i in range(len(late))], late)
        at_once = [approximate.nearest(table, query, 1, None, own.effort)[0][0].id for query in late]
        found["added later, found at once"] = [np.mean([id == f"late{i}" for i, id in enumerate(at_once)])]
        files = [file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()]
        found["on disk / vectors"] = [sum(files) / (count * DIM * 4)]
        found["peak memory, MB"] = [megabytes("VmHWM")]
    ship(own, found)
    wanted = {
        "recall@10": "≥ 0.95",
        "times as fast as exact search": "≥ 10" if count >= 1_000_000 else "",
        "added later, found at once": "1",
    }
    rows = [row(f"{kind}, {count:,}: {name}", own, wanted.get(name, "")) for name, own in found.items()]
    print(keep("ann", rows).to_string(index=False))


def ship(own: approximate.Approximation, found: dict[str, list[float]]) -> None:
    figures = {
        "built, s": found["index built, s"][0],
        "recall@10": own.recall.mean,
        "low": own.recall.low,
        "high": own.recall.high,
        "approximate, ms": own.seconds * 1e3,
        "exact, ms": own.exact_seconds * 1e3,
        "on disk / vectors": found["on disk / vectors"][0],
        "peak memory, GB": found["peak memory, MB"][0] / 1e3,
    }
    new = {"kind": own.kind, "products": own.rows, "dim": DIM, **figures, **provenance()}
    rows = [read_results(SHIPPED)] if SHIPPED.is_file() else []
    others = [old[(old["kind"] != own.kind) | (old["products"] != own.rows)] for old in rows]
    table = pd.concat([*others, pd.DataFrame([new])], ignore_index=True).sort_values(["kind", "products"])
    write_results(SHIPPED, table, "python benchmarks/ann.py")


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
