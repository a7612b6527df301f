"""Encoding by two workers, of Ray and of torchrun, against one process: 3,000 products by coral-mini.

Start-up is over when every worker has done a block; what a product takes is counted from there. One process
has both cores, a worker one thread. Then a worker is killed with some blocks done, then whoever started it,
and the same call is made again: its rows are compared with those of a run that nobody disturbed.

python benchmarks/sharded.py        some minutes
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from table import keep, ratios, row

import coral_lab as cl
from coral_lab.store.blocks import Marks
from coral_lab.store.keeping import table_of
from coral_lab.store.sharded import Engine, encode_sharded

BLOCK, WORKERS, RUNS = 64, 2, 3
ENGINES = ("ray", "torchrun")
AFTER = {"worker": 8, "driver": 20}
"""Blocks, of 47, that are done when something is killed."""


def child(engine: str, store: str, diary: str) -> None:
    """What is timed and killed: one call, which notes when each block is done."""
    add = Marks.add

    def noted(marks: Marks, done: list) -> None:
        add(marks, done)
        with Path(diary).open("a") as file:
            file.write(f"{time.time()}\n")

    Marks.add = noted
    products = cl.dataset("mini").products
    workers = {"workers": WORKERS} if engine == "ray" else {}
    encode_sharded("mini", products, store, Engine(engine, block=BLOCK, **workers))


def begin(engine: str, store: Path, threads: int = 1) -> subprocess.Popen:
    count = ["--nproc-per-node", str(WORKERS)]
    torchrun = ["-m", "torch.distributed.run", *count] if engine == "torchrun" else []
    command = [sys.executable, *torchrun, __file__, "child", engine, str(store), f"{store}.txt"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, start_new_session=True, **quiet)


def timed(engine: str) -> tuple[float, float]:
    """Seconds of start-up, and of a block after it."""
    alone = engine == "local"
    with tempfile.TemporaryDirectory() as folder:
        store, started = Path(folder) / "store", time.time()
        process = begin(engine, store, 2 if alone else 1)
        if process.wait():
            raise RuntimeError(f"{engine} ended with {process.returncode}")
        done = sorted(map(float, Path(f"{store}.txt").read_text().split()))
    first = 0 if alone else WORKERS - 1
    return done[first] - started, (done[-1] - done[first]) / (len(done) - 1 - first)


def vectors(store: Path) -> np.ndarray:
    """Of all products, by id. Raises AssertionError for one that is there twice, or not at all."""
    ids, found = cl.open_store(store, cl.load("mini")).to_numpy()
    assert sorted(ids) == sorted(product.id for product in cl.dataset("mini").products)
    return found


def interrupted(engine: str, store: Path) -> list[int]:
    """Kill a worker, then whoever started it; how many blocks were done each time, and in the end all are."""
    marks, done = Marks(table_of(str(store), cl.load("mini"))), []
    process = begin(engine, store)
    for what, least in AFTER.items():
        while (count := len(marks.read())) < least:
            if process.poll() is not None:  # torchrun ends all when one is killed
                process = begin(engine, store)
            time.sleep(0.1)
        done.append(count)
        if what == "worker":
            worker_of(engine, process).kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if begin(engine, store).wait():
        raise RuntimeError(f"{engine} did not end its work")
    return done


def worker_of(engine: str, process: subprocess.Popen) -> psutil.Process:
    """A process that holds a model: Ray calls it by the name of its class."""
    below = psutil.Process(process.pid).children(recursive=True)
    name = {"ray": "Encoder", "torchrun": "sharded.py"}[engine]
    return next(own for own in below if name in " ".join(own.cmdline()))


def measure(engine: str, right: np.ndarray, local: list[float]) -> list[dict]:
    startup, blocks = zip(*(timed(engine) for _ in range(RUNS)), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        assert begin(engine, Path(folder) / "whole").wait() == 0
        difference = np.abs(vectors(Path(folder) / "whole") - right).max()
        done = interrupted(engine, Path(folder) / "killed")
        after = np.abs(vectors(Path(folder) / "killed") - right).max()
    print(engine, "killed with blocks done:", done)
    return [
        row(f"{engine}, 2 workers: start-up, s", startup),
        row(f"{engine}, 2 workers: a product's time, times one process's", ratios(blocks, local), "≤ 1.25"),
        row(f"{engine}, 2 workers: largest difference from one process", [difference], "0"),
        row(f"{engine}, worker and driver killed: largest difference", [after], "0"),
    ]


def main() -> None:
    startup, local = zip(*(timed("local") for _ in range(RUNS)), strict=True)
    rows = [
        row("one process: start-up, s", startup),
        row("one process: products a second", [BLOCK / own for own in local]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        assert begin("local", Path(folder) / "store").wait() == 0
        right = vectors(Path(folder) / "store")
    for engine in ENGINES:
        rows += measure(engine, right, list(local))
    print(keep("sharded", rows).to_string(index=False))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        main()
