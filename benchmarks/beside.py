"""Encoding, searching and training alone and beside one busy process, by how long OpenMP's threads spin.

python benchmarks/beside.py          the settings in turn, three times, each time in a process of its own
"""

import json
import os
import subprocess
import sys
import time

SETTINGS = {
    "spinning long, as OpenMP does": {"GOMP_SPINCOUNT": "300000"},
    "spinning shortly, coral_lab's default": {},
    "not spinning": {"OMP_WAIT_POLICY": "PASSIVE"},
}
ROUNDS, TURNS = 3, 3


def measure() -> dict[str, list[float]]:
    """Seconds for 300 queries, for 60 searches by hand, and for a training step of 64 pairs."""
    import coral_lab as cl
    from coral_lab.mini.pairs import mini_pairs
    from coral_lab.training.batches import make_batch
    from coral_lab.training.contrastive import gradients
    from coral_lab.training.learner import Learner
    from coral_lab.training.pairs import pair_sampler
    from coral_lab.training.reconstruction import CONTRASTIVE, decoders

    model, shop = cl.load("mini"), cl.dataset("mini")
    quiet = cl.Settings(progress=False, store="")
    pool = cl.index(model, shop.products[:1000], settings=quiet)
    learner = Learner(model, decoders(model, CONTRASTIVE), CONTRASTIVE)
    batch = make_batch(model, pair_sampler(shop, mini_pairs(shop), 64, 10)(0))
    works = {
        "300 queries": lambda: cl.encode(model, shop.queries[:300], settings=quiet),
        "60 searches": lambda: [pool.search(query) for query in shop.queries[:60]],
        "a step of 64 pairs": lambda: gradients(learner, batch),
    }
    found = {}
    for name, work in works.items():
        work()
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        found[name] = seconds
    return found


def run(environment: dict[str, str], beside: bool) -> dict[str, list[float]]:
    without = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if beside else None
    try:
        done = subprocess.run(
            [sys.executable, __file__, "measure"], env=without | environment, capture_output=True, check=True
        )
    finally:
        if busy:
            busy.kill()
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measure()))
        sys.exit()
    from table import keep, ratios, row

    found: dict = {}
    for _ in range(TURNS):  # in turn, for a machine's speed changes from minute to minute
        for setting, environment in SETTINGS.items():
            for beside in (False, True):
                for work, seconds in run(environment, beside).items():
                    found.setdefault((setting, work), {}).setdefault(beside, []).extend(seconds)
    rows = []
    for (setting, work), seconds in found.items():
        name = f"{work}, threads {setting}"
        rows.append(row(f"{name}: s alone", seconds[False]))
        rows.append(row(f"{name}: beside, times as long", ratios(seconds[True], seconds[False]), "≤ 2.5"))
        print(rows[-2]["what"], rows[-2]["median"], rows[-1]["median"])
    keep("beside", rows)
