"""What a store costs at MERIT's size: 51,177 embeddings of 2048 dimensions.

python benchmarks/store.py        writes them, then opens and searches them in a process of its own
"""

import json
import subprocess
import sys
import tempfile
import time

import numpy as np
from table import keep, megabytes, row

from coral_lab.store.tables import Record, Table

COUNT, DIM, BATCH, SEARCHES = 51_177, 2048, 4096, 10


def store_in(folder: str) -> Table:
    return Table(folder, "synthetic", DIM, {"model": "synthetic"})


def ingest(folder: str) -> dict[str, list[float]]:
    """Seconds to write all, with metadata and thumbnails of 4 kB."""
    random, seconds = np.random.default_rng(0), 0.0
    thumbnail = random.bytes(4096)
    for start in range(0, COUNT, BATCH):
        ids = range(start, min(start + BATCH, COUNT))
        vectors = random.standard_normal((len(ids), DIM), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = [
            Record(
                f"{i:032x}",
                "product",
                str(i),
                f"title {i}",
                "shoes" if i % 16 else "bag",
                "th",
                "TH",
                ("color=red",),
                thumbnail,
            )
            for i in ids
        ]
        started = time.perf_counter()
        store_in(folder).commit(rows, vectors)
        seconds += time.perf_counter() - started
    return {"ingest, vectors a second": [COUNT / seconds]}


def search(folder: str) -> dict[str, list[float]]:
    """Peak memory of a process that opens the store and searches it, over its imports, and seconds a
    search.
    """
    imported = megabytes("VmHWM")
    random, store, seconds = np.random.default_rng(1), store_in(folder), []
    for number in range(SEARCHES):
        query = random.standard_normal(DIM, dtype=np.float32)
        started = time.perf_counter()
        rows, _ = store.nearest(query, 10, "class = 'bag'" if number % 2 else None)
        seconds.append(time.perf_counter() - started)
        assert len(rows) == 10
    taken, size = megabytes("VmHWM") - imported, COUNT * DIM * 4 / 2**20
    return {
        "search, s": seconds[::2],
        "search of one class, s": seconds[1::2],
        "imports, MB": [imported],
        "peak memory over the imports, MB": [taken],
        "vectors, MB": [size],
        "peak memory over the imports / vectors": [taken / size],
    }


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(search(sys.argv[2])))
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = ingest(folder)
            done = subprocess.run(
                [sys.executable, __file__, "search", folder], check=True, capture_output=True
            )
            found |= json.loads(done.stdout.splitlines()[-1])
        rows = [row(name, values) for name, values in found.items()]
        print(keep("store", rows).to_string(index=False))
