"""What Coral costs over contrastive training, and what GradCache costs in memory.

python benchmarks/objective.py            both objectives on the same batches, in turn, in this process python
benchmarks/objective.py memory     peak memory of a step of 64 and of 512 pairs, each in its own process
"""

import json
import subprocess
import sys
import time

import torch
from table import keep, megabytes, ratios, row

from coral_lab import dataset, load
from coral_lab.mini.pairs import mini_pairs
from coral_lab.training.batches import make_batch
from coral_lab.training.contrastive import gradients
from coral_lab.training.learner import Learner
from coral_lab.training.pairs import pair_sampler
from coral_lab.training.reconstruction import CONTRASTIVE, Coral, decoders

RUNS, CHUNK = 9, 32
OBJECTIVES = {"contrastive": CONTRASTIVE, "coral": Coral()}


def timings() -> list[dict]:
    """Seconds of a step of 128 pairs, forward and backward, pictures already processed."""
    shop, model = dataset("mini", "val"), load("mini-base")
    model.network.train()
    pairs = pair_sampler(shop, mini_pairs(shop), 128, 10)
    learners = {name: Learner(model, decoders(model, coral), coral) for name, coral in OBJECTIVES.items()}
    seconds = {name: [] for name in OBJECTIVES}
    for run in range(RUNS + 1):
        batch = make_batch(model, pairs(run), 1024, augmented=True)
        model.pixels((picture, prompt.name) for prompt in batch.prompts for picture in prompt.pictures)
        for name, learner in learners.items():
            model.network.zero_grad()
            started = time.perf_counter()
            gradients(learner, batch)
            if run:  # the first is warm-up
                seconds[name].append(time.perf_counter() - started)
    rows = [row(f"{name} step of 128 pairs, s", values) for name, values in seconds.items()]
    return [*rows, row("coral / contrastive, same batch", ratios(seconds["coral"], seconds["contrastive"]))]


def peak(pairs: int) -> dict[str, float]:
    """Peak memory of this process in MB: before any step, after one of a chunk's size, and after one of
    `pairs`.
    """
    shop, model = dataset("mini", "val"), load("mini-base")
    model.network.train()
    model.pixels.limit = 0  # else the pictures themselves would be kept
    coral = Coral()
    heads, sampler = decoders(model, coral), pair_sampler(shop, mini_pairs(shop), pairs, 10)
    found = {"before": megabytes("VmHWM")}
    torch.manual_seed(0)
    batch = make_batch(model, sampler(0), heads.longest, augmented=True)
    gradients(Learner(model, heads, coral), batch, CHUNK)
    return found | {"step": megabytes("VmHWM")}


def memory() -> list[dict]:
    rows = []
    for pairs in (64, 512):
        command = [sys.executable, __file__, "peak", str(pairs)]
        found = [
            json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(3)
        ]
        own = [run["step"] - run["before"] for run in found]
        rows.append(row(f"step of {pairs} pairs, {CHUNK} at a time: peak over the loaded model, MB", own))
    growth = rows[1]["median"] / rows[0]["median"] - 1
    return [*rows, row("growth from 64 to 512 pairs", [growth])]


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        print(json.dumps(peak(int(sys.argv[2]))))
    else:
        rows = memory() if sys.argv[1:] == ["memory"] else timings()
        print(keep("objective", rows).to_string(index=False))
