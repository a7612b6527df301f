"""The quick path of this checkout against another one, an older commit say, in turns: encoding and searching.

git worktree add build/before COMMIT && python benchmarks/against.py build/before

Each turn is a process of its own on either checkout, the first alternating: processor seconds of one thread,
which a busy neighbour changes little. Pictures are processed before. Writes benchmarks/against.csv.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TURNS, ROUNDS = 6, 3
WORKS = ("300 queries", "1,000 products", "60 searches")


def measure() -> dict[str, float]:
    """Processor seconds of the quickest of a few rounds of each work."""
    import torch

    import coral_lab as cl

    torch.set_num_threads(1)
    model, shop = cl.load("mini"), cl.dataset("mini")
    quiet = cl.Settings(progress=False, store="")
    pool = cl.index(model, shop.products[:1000], settings=quiet)
    works = (
        lambda: cl.encode(model, shop.queries[:300], settings=quiet),
        lambda: cl.encode(model, shop.products[:1000], settings=quiet),
        lambda: [pool.search(query) for query in shop.queries[:60]],
    )
    found = {}
    for name, work in zip(WORKS, works, strict=True):
        work()
        seconds = []
        for _ in range(ROUNDS):
            started = time.process_time()
            work()
            seconds.append(time.process_time() - started)
        found[name] = min(seconds)
    return found


def run(checkout: Path) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "measure"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(other: Path) -> None:
    from table import keep, ratios, row

    checkouts = {"this": Path(__file__).resolve().parents[1], "other": other.resolve()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for turn in range(TURNS):
        for name in [*checkouts][:: 1 if turn % 2 else -1]:
            found[name].append(run(checkouts[name]))
    rows = []
    for work in WORKS:
        ours, theirs = ([turn[work] for turn in found[name]] for name in checkouts)
        rows.append(row(f"{work}: speed against the checkout before", ratios(theirs, ours), "≥ 0.98"))
    print(keep("against", rows).to_string(index=False))


if __name__ == "__main__":
    print(json.dumps(measure())) if sys.argv[1:] == ["measure"] else main(Path(sys.argv[1]))
