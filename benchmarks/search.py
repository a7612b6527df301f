"""Exact search beside FAISS's flat index, in MERIT's size: 51,177 vectors of 2048 dimensions. Writes
search.csv.

python benchmarks/search.py           2,000 queries and one, and the memory it takes python
benchmarks/search.py mapped    1,000,000 vectors in a bfloat16 file of 4 GB, larger than what is read at once

Vectors are drawn from a seed: 2,000 centres, each coordinate with as much noise, L2-normalised, so that about
25 lie near each other at a cosine of 0.5.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from table import keep, megabytes, profiled, ratios, row

from coral_lab.store.topk import prepare, top_k

COUNT, DIM, CENTRES, QUERIES, K, RUNS = 51_177, 2048, 2000, 2000, 10, 7


def clustered(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    """Rows around the same centres for every seed."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, dim), dtype=np.float32)
    random, rows = np.random.default_rng(seed), np.empty((count, dim), np.float32)
    for part in np.array_split(rows, -(-count // 4096)):
        part[:] = centres[random.integers(CENTRES, size=len(part))]
        part += random.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alternately(
    calls: dict[str, Callable[[], object]], runs: int = RUNS, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each call, by turns, after one of each that is not counted unless `warm` is false."""
    for call in calls.values() if warm else ():
        call()
    turns = [{name: seconds(call) for name, call in calls.items()} for _ in range(runs)]
    return {name: [turn[name] for turn in turns] for name in calls}


def checked_equal(found: tuple[np.ndarray, np.ndarray], faiss: tuple[np.ndarray, np.ndarray]) -> None:
    """The same rows; where two differ, their scores do by no more than float32 sums can."""
    np.testing.assert_allclose(found[0], faiss[0], atol=2e-6)
    same = (found[1] == faiss[1]).all(1).mean()
    assert same > 0.999, f"{same:.2%} of the queries have FAISS's rows in its order"


def compare() -> list[dict]:
    import faiss

    candidates, queries = clustered(COUNT, 1), clustered(QUERIES, 2)
    index = faiss.IndexFlatIP(DIM)
    index.add(candidates)
    faiss.omp_set_num_threads(torch.get_num_threads())
    pool, rows = prepare(candidates), []
    rows.append(row("prepare 51,177 vectors, s", [seconds(lambda: prepare(candidates)) for _ in range(RUNS)]))
    for count, asked, wanted in ((QUERIES, "2,000 queries", "≥ 2.5"), (1, "one query", "≥ 1.5")):
        some = queries[:count]
        checked_equal(top_k(some, pool, K), index.search(some, K))
        runs = RUNS if count > 1 else 50
        times = alternately(
            {"own": lambda q=some: top_k(q, pool, K), "FAISS": lambda q=some: index.search(q, K)}, runs
        )
        rows += [
            row(f"{asked}, prepared, s", times["own"]),
            row(f"{asked}, FAISS IndexFlatIP, s", times["FAISS"]),
            row(f"{asked}: times as fast as FAISS", ratios(times["FAISS"], times["own"]), wanted),
        ]
    with profiled("search"):
        top_k(queries, pool, K)
    times = alternately({"own": lambda: top_k(queries, candidates, K)}, 5)
    rows.append(row("2,000 queries, not prepared, s", times["own"]))
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/candidates.npy", candidates)
        np.save(f"{folder}/queries.npy", queries)
        peaks = [
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "peak", folder], check=True, capture_output=True
                ).stdout
            )
            for _ in range(5)
        ]
    rows.append(row("peak memory of preparing and searching / the vectors", peaks, "< 1.6"))
    return rows


def peak(folder: str) -> float:
    """Most memory that a process took beyond what its libraries do, over that of the vectors, which are in
    it.
    """
    torch._int_mm(torch.ones(64, 64, dtype=torch.int8), torch.ones(64, 64, dtype=torch.int8))
    before = megabytes("VmHWM")
    candidates = np.load(f"{folder}/candidates.npy")
    queries = np.load(f"{folder}/queries.npy")
    top_k(queries, prepare(candidates), K)
    return (megabytes("VmHWM") - before) * 2**20 / candidates.nbytes


def mapped(count: int = 1_000_000) -> list[dict]:
    with tempfile.NamedTemporaryFile() as file:
        for seed in range(0, count, 50_000):
            rows = torch.from_numpy(clustered(min(50_000, count - seed), seed + 1)).bfloat16()
            file.write(rows.view(torch.int16).numpy())
        file.flush()
        candidates = torch.from_file(file.name, shared=False, size=count * DIM, dtype=torch.bfloat16).view(
            count, DIM
        )
        start = time.perf_counter()
        pool = prepare(candidates)
        rows = [row("1,000,000 in a bfloat16 file: prepare, s", [time.perf_counter() - start])]
        queries = clustered(100, 2)
        for number, asked in ((100, "100 queries"), (1, "one query")):
            times = [seconds(lambda n=number: top_k(queries[:n], pool, K)) for _ in range(5)]
            rows.append(row(f"1,000,000 in a bfloat16 file: {asked}, s", times))
        private = megabytes("RssAnon")
        best = top_k(queries[:3], pool, K)
        part = [
            top_k(queries[:3], candidates[a : a + 100_000].float().numpy(), K)
            for a in range(0, count, 100_000)
        ]
        scores = np.concatenate([scores for scores, _ in part], 1)
        found = np.concatenate([found + 100_000 * i for i, (_, found) in enumerate(part)], 1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
        np.testing.assert_array_equal(np.take_along_axis(found, order, 1), best[1])
    rows.append(row("1,000,000 in a bfloat16 file: memory that is not the file's, MB", [private]))
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print(json.dumps(peak(sys.argv[2])))
    else:
        print(keep("search", mapped() if sys.argv[1:] == ["mapped"] else compare()).to_string(index=False))
